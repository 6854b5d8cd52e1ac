"""The agent on a virtual node: its configuration, starting and ending it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spliceway.agent.cli.client import AgentClient
from spliceway.agent.errors import ClientError
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.node import Node

#: How long an agent may take until all is in force, in seconds: on a busy machine the self-test alone takes minutes.
START_SECONDS = 240.0
#: Compiled programs, shared by all virtual nodes of the machine.
PROGRAMS = Path("/run/spliceway/programs")


def agent_config(node: Node, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Configuration of the agent for a virtual node; `overrides` replace values, mappings key by key.

    A section that is None is left out.
    """
    info = node.info
    config: dict[str, Any] = {
        "node": {"name": info.name},
        "stateDir": str(info.state),
        "bpffs": str(info.bpffs),
        "cgroups": {"pods": str(info.cgroups.pods), "proxy": str(info.cgroups.proxy)},
        "source": {"directory": str(info.manifests)},
        "admin": {"socket": str(info.state / "agent.sock")},
        "proxy": {"kind": "embedded"},
        "splice": {"mode": "auto"},
        "datapath": {"programCache": str(PROGRAMS)},
        # The file of the machine is none of this node's.
        "killSwitch": {"file": str(info.directory / "disabled")},
    }
    return {name: section for name, section in merged(config, overrides or {}).items() if section is not None}


def config_text(config: Mapping[str, Any]) -> str:
    """As a file; words that only YAML 1.1 takes for booleans, `on` and `off`, stay text."""
    return str(yaml.safe_dump(config, sort_keys=False))


def start_agent(
    node: Node,
    overrides: Mapping[str, Any] | None = None,
    *,
    timeout: float = START_SECONDS,
    wrap: Sequence[str] = (),
    module: Sequence[str] = ("spliceway.agent",),
) -> AgentProcess:
    """Write the configuration, start `spliceway agent` on the node and wait until its policies are in force.

    `wrap`: a command in front of it, which becomes the agent, as setpriv(1) does; `module`: what is run as `spliceway`,
    with arguments of its own. Raises TestbedError with the end of
    its log when it ends or takes longer than `timeout` seconds.
    """
    config = agent_config(node, overrides)
    path = node.info.directory / "agent.yaml"
    path.write_text(config_text(config))
    log = node.info.logs / "agent.log"
    with log.open("ab") as output:
        argv = [*wrap, sys.executable, "-m", *module, "agent", "--config", str(path)]
        process = node.spawn_on_node(argv, "agent", stdout=output, stderr=output)
    agent = AgentProcess(process, path, log, Path(config["admin"]["socket"]))
    try:
        agent.wait_in_force(timeout)
    except BaseException:
        agent.kill()
        raise
    return agent


def takes_long() -> str:
    """What to tell while an agent starts that no node has had before; empty when its programs are compiled."""
    kept = any(PROGRAMS.glob("*.programs"))
    return "" if kept else "; the first time its kernel programs are compiled, which takes up to a minute"


class AgentProcess:
    """A running agent. `config`, `log` and `socket` (admin) are paths."""

    def __init__(self, process: subprocess.Popen[Any], config: Path, log: Path, admin: Path) -> None:
        self.process = process
        self.config = config
        self.log = log
        self.socket = admin

    def __repr__(self) -> str:
        state = self.process.poll()
        return f"<AgentProcess pid={self.process.pid} {'running' if state is None else f'ended {state}'}>"

    @property
    def client(self) -> AgentClient:
        """Client of its admin API."""
        return AgentClient(self.socket)

    def wait_in_force(self, timeout: float = START_SECONDS) -> dict[str, Any]:
        """Return its status once all that it has read is in force in kernel and proxy, and what is spliced is decided.

        Raises TestbedError with the reason or the end of the log.
        """
        deadline = time.monotonic() + timeout
        while True:
            why, status = self._not_in_force()
            if status is not None:
                return status
            if self.process.poll() is not None:
                raise TestbedError(f"the agent ended with status {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise TestbedError(f"no policy is in force after {timeout:g} s: {why}\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self, timeout: float = 30.0) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit status. Raises TestbedError when it doesn't end."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        self._end(signal.SIGKILL, 10.0)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _not_in_force(self) -> tuple[str, dict[str, Any] | None]:
        try:
            status = self.client.get("status")
        except ClientError as error:
            return str(error), None
        policy = status["policy"]
        if policy["revision"] > 0 and policy["revision"] == policy["wanted"] and not policy["waiting"]:
            # What connects before stays unspliced for its life.
            return ("", status) if status["splice"]["decided"] else ("the splice's self-test still runs", None)
        why = f"revision {policy['revision']} of {policy['wanted']}, waiting for {policy['waiting']}"
        return f"{why} {policy['error']} {policy['endpointError']}", None

    def _end(self, how: signal.Signals, timeout: float) -> int:
        self.process.send_signal(how)
        try:
            return int(self.process.wait(timeout))
        except subprocess.TimeoutExpired:
            raise TestbedError(f"the agent is still there {timeout:g} s after {how.name}:\n{self.log_tail()}") from None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mappings key by key."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
