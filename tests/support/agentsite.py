"""Directories, configuration and memory sides of one agent, for tests of the whole of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from spliceway.agent.app import Agent
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.cli.root import app as cli
from spliceway.agent.config import Config, parse_config
from spliceway.bpf.types import DatapathSettings
from support.agent import NODE, MemoryDatapath, MemoryEvidence, MemoryProxyProcess, report

MakeProxy = Callable[[Config, Callable[[str], None]], MemoryProxyProcess]


class Site:
    """Directories, configuration and memory sides of one agent."""

    def __init__(self, directory: Path, extra: str = "", source: str = "") -> None:
        """`source`: YAML of another one than the directory."""
        self.source = directory / "manifests"
        self.source.mkdir(exist_ok=True)
        self.config: Config = parse_config(
            f"""
node: {{name: {NODE}}}
stateDir: {directory}/state
bpffs: {directory}
cgroups: {{pods: {directory}/pods, proxy: {directory}/proxy}}
source: {source or f"{{directory: {self.source}}}"}
admin: {{socket: {directory}/agent.sock}}
killSwitch: {{file: {directory}/disabled}}
{extra}
""",
            "agent.yaml",
        )
        self.socket = self.config.admin.socket
        self.datapath = MemoryDatapath([])
        self.proxies: list[MemoryProxyProcess] = []
        self.stop = asyncio.Event()
        self.evidence = MemoryEvidence(report())

    async def open(self, settings: DatapathSettings) -> MemoryDatapath:
        self.datapath.splice = settings.splice
        self.datapath.disabled = settings.disabled
        return self.datapath

    def make_proxy(self, _config: Config, on_exit: Callable[[str], None]) -> MemoryProxyProcess:
        self.proxies.append(MemoryProxyProcess(on_exit))
        return self.proxies[-1]

    def agent(self, make_proxy: MakeProxy | None = None) -> Agent:
        return Agent(
            self.config,
            open_datapath=self.open,
            make_proxy=make_proxy or self.make_proxy,
            evidence=self.evidence,
            check=lambda _config: None,
        )

    def write(self, name: str, text: str) -> None:
        beside = self.source / f".{name}"
        beside.write_text(text)
        beside.rename(self.source / name)

    async def get(self, target: str, **query: str) -> Any:
        return await asyncio.to_thread(AgentClient(self.socket).get, target, **query)

    async def cli(self, *arguments: str, status: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments, "--socket", str(self.socket)])
        assert result.exit_code == status, result.output
        return result.output
