"""The capabilities that the chart names are enough for all that an agent does; where one is missing, that is told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from spliceway.agent.nodecheck.rights import NEEDED
from spliceway.agent.proxyprocess import ProcessHandle, end, identify, save_identity, spawn
from spliceway.agent.testbed.agentprocess import agent_config, start_agent
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.testbed import Testbed
from support.node import API_POLICY, http_status, pod_manifest, server_manifest

pytestmark = pytest.mark.kernel

NAMES = tuple(name for name, *_ in NEEDED)


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    pods = [pod_manifest("frontend", {"role": "frontend"}), server_manifest("api", {"role": "api"})]
    with Testbed.up(pods) as made:
        made.node.write_policy("api", API_POLICY)
        yield made


def limited(*without: str) -> list[str]:
    """A command that becomes another one, as root with the chart's capabilities but these."""
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in NAMES if name not in without)
    return ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--"]


def preflight(testbed: Testbed, *without: str) -> subprocess.CompletedProcess[str]:
    path = testbed.node.info.directory / "preflight.yaml"
    path.write_text(yaml.safe_dump(agent_config(testbed.node)))
    command = [sys.executable, "-m", "spliceway.agent", "preflight", "--config", str(path), "--no-self-test"]
    return testbed.node.run_on_node([*limited(*without), *command, "-o", "json"], timeout=120)


def rights(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """(status, found) of the capabilities' rows."""
    return [
        (each["status"], each["found"]) for each in json.loads(done.stdout)["checks"] if each["name"] == "capabilities"
    ]


def test_with_them_everything_works(testbed: Testbed, tmp_path: Path) -> None:
    # A cache of its own: what the compiler may see of the kernel is a matter of rights, too (/proc/kallsyms).
    cache = tmp_path / "programs"
    cache.mkdir(mode=0o700)
    agent = start_agent(testbed.node, {"datapath": {"programCache": str(cache)}}, wrap=limited())
    try:
        mask = re.search(r"^CapEff:\t(\w+)$", Path(f"/proc/{agent.process.pid}/status").read_text(), flags=re.M)
        assert mask is not None
        assert int(mask[1], 16) == sum(1 << number for _, number, *_ in NEEDED)
        for version in (4, 6):
            assert http_status(testbed, "frontend", "api", "/articles/1", version=version) == 200
            assert http_status(testbed, "frontend", "api", "/private", version=version) == 403
        status = agent.client.get("status")
        assert status["datapath"]["problems"] == []
        assert status["proxy"]["process"]["problems"] == []
        pid = status["proxy"]["process"]["pid"]
    finally:
        agent.stop()
    # An agent with other rights, as one that was started by hand, and then the chart's again: the proxy stays.
    for wrap in ([], limited()):
        agent = start_agent(
            testbed.node, {"datapath": {"programCache": str(cache)}, "splice": {"mode": "off"}}, wrap=wrap
        )
        try:
            assert agent.client.get("status")["proxy"]["process"]["pid"] == pid
        finally:
            agent.stop()
    assert rights(preflight(testbed)) == [("ok", ", ".join(NAMES))]


@pytest.mark.parametrize("name", [each for each in NAMES if each not in ("CAP_BPF", "CAP_PERFMON")])
def test_without_one_preflight_names_it(testbed: Testbed, name: str) -> None:
    done = preflight(testbed, name)
    found = rights(done)
    told = [text for _, text in found]
    assert any(text.startswith(f"no {name}: ") for text in told), told
    # CAP_SYS_ADMIN includes the two that are named beside it: so they are there without it.
    assert len(found) == 1
    assert done.returncode == (1 if found[0][0] == "fail" else 0)


def test_bpf_and_perfmon_are_named_when_sys_admin_does_not_include_them(testbed: Testbed) -> None:
    assert rights(preflight(testbed, "CAP_BPF", "CAP_PERFMON"))[0][0] == "ok"
    found = rights(preflight(testbed, "CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"))
    assert [text.split()[1].rstrip(":") for _, text in found] == ["CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"]


@pytest.mark.parametrize("name", ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"])
def test_without_these_an_agent_does_not_start_and_says_why(testbed: Testbed, name: str) -> None:
    with pytest.raises(TestbedError, match=f"missing: {name}"):
        start_agent(testbed.node, wrap=limited(name))


def test_without_sys_ptrace_a_proxy_that_has_more_rights_is_not_known_again(testbed: Testbed, tmp_path: Path) -> None:
    binary = Path("/bin/sleep").resolve()
    pid = spawn([str(binary), "60"], tmp_path / "log", None)
    proxy = ProcessHandle(pid)
    try:
        # It becomes that program after a shell has raised its limits.
        while Path(f"/proc/{pid}/exe").readlink() != binary:
            os.sched_yield()
        identity = identify(pid, binary, "1", "", "embedded")
        assert identity is not None
        save_identity(tmp_path / "embedded.json", identity)
        code = (
            "import pathlib, sys; from spliceway.agent.proxyprocess import running;"
            "print(running(pathlib.Path(sys.argv[1])) is not None)"
        )
        for without, known in (((), "True"), (("CAP_SYS_PTRACE",), "False")):
            command = [*limited(*without), sys.executable, "-c", code, str(tmp_path / "embedded.json")]
            done = testbed.node.run_on_node(command)
            assert done.stdout.strip() == known, done.stderr
    finally:
        asyncio.run(end(proxy, 5.0))
