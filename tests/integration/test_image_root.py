"""The image's root with the chart's mounts and capabilities: an agent in it works, and leaves its proxy behind.

Long: `make image` makes the root and says where it is. What a container engine adds (seccomp, layers) is not here.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from spliceway.agent.config import NODE_NAME, Config
from spliceway.agent.nodecheck.rights import NEEDED
from spliceway.agent.proxyprocess import start_time
from spliceway.agent.testbed import cgroups
from spliceway.agent.testbed.agentprocess import AgentProcess
from spliceway.agent.testbed.testbed import Testbed
from support.container import Container
from support.helm import Helm, one
from support.node import API_POLICY, http_status, pod_manifest, server_manifest

ROOT = os.environ.get("SPLICEWAY_IMAGE_ROOT", "")
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not ROOT, reason="the image's root is made by `make image` only"),
    pytest.mark.timeout(600),
]

_IN_CONTAINER = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    pods = [pod_manifest("frontend", {"role": "frontend"}), server_manifest("api", {"role": "api"})]
    with Testbed.up([*pods, pod_manifest("intruder", {"role": "intruder"})]) as made:
        made.node.write_policy("api", API_POLICY)
        yield made


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


def places(testbed: Testbed) -> dict[str, Path]:
    """Volume → what it is on this node."""
    info = testbed.node.info
    whole = cgroups.mounted(not_below=Path("/nonexistent"))
    assert whole is not None
    found = {
        "config": info.directory / "config",
        "tmp": info.directory / "tmp",
        "state": info.directory / "state",
        "run": info.directory / "run",
        "bpffs": info.bpffs,
        "cgroup": whole,
        "netns": Path("/run/netns"),
        "xtables-lock": info.directory / "xtables.lock",
        "kill-switch": info.directory / "kill-switch",
    }
    for name in ("config", "tmp", "state", "run", "kill-switch"):
        found[name].mkdir(exist_ok=True)
    found["xtables-lock"].touch()
    return found


def container(testbed: Testbed, helm: Helm, name: str, values: dict[str, Any]) -> Container:
    """A container of the chart on this node, with the chart's configuration for it; policies from a directory."""
    objects = helm.render(values)
    where = places(testbed)
    info = testbed.node.info
    config = yaml.safe_load(one(objects, "ConfigMap")["data"]["agent.yaml"])
    known = {each.encode_name for each in msgspec.structs.fields(Config)}
    config = {key: value for key, value in config.items() if key in known}
    inside = {
        field: str(_IN_CONTAINER / path.relative_to(where["cgroup"]))
        for field, path in (("pods", info.cgroups.pods), ("proxy", info.cgroups.proxy))
    }
    config |= {"source": {"directory": "/mnt"}, "cgroups": inside}
    (where["config"] / "agent.yaml").write_text(yaml.safe_dump(config))
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    # This process is in the node's cgroup namespace; a machine's first one is not always to be looked at.
    environment = {NODE_NAME: testbed.node.name, "SPLICEWAY_NODE_PROCESS": str(os.getpid())}
    return Container(
        Path(ROOT), testbed.node, spec, name, places=where, more={"/mnt": info.manifests}, environment=environment
    )


def start(testbed: Testbed, made: Container) -> AgentProcess:
    where = places(testbed)
    log = testbed.node.info.logs / "container.log"
    with log.open("ab") as output:
        process = made.spawn(stdout=output, stderr=output)
    agent = AgentProcess(process, where["config"] / "agent.yaml", log, where["run"] / "agent.sock")
    agent.wait_in_force(300.0)
    return agent


def probe(testbed: Testbed, path: str) -> str:
    asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:9969{path}"]
    return testbed.node.run_on_node(asked).stdout


def asked(testbed: Testbed) -> dict[tuple[str, str, int], int]:
    """(client, path, IP version) → status."""
    return {
        (client, path, version): http_status(testbed, client, "api", path, version=version, timeout=2)
        for client in ("frontend", "intruder")
        for path in ("/articles/1", "/private")
        for version in (4, 6)
    }


ENFORCED = {
    (client, path, version): (200 if path == "/articles/1" else 403) if client == "frontend" else 0
    for client in ("frontend", "intruder")
    for path in ("/articles/1", "/private")
    for version in (4, 6)
}


def test_preflight_agent_upgrade_and_cleanup(testbed: Testbed, helm: Helm) -> None:
    values = {"enforcement": "enforce"}
    checked = container(testbed, helm, "preflight", values).run(
        ["preflight", "--config", "/etc/spliceway/agent.yaml", "--no-self-test", "-o", "json"]
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = {each["name"]: each for each in json.loads(checked.stdout)["checks"]}
    for name in ("user", "capabilities", "bpffs", "cgroups", "bcc", "libbpf"):
        assert found[name]["status"] == "ok", found[name]

    made = container(testbed, helm, "agent", values)
    began = time.monotonic()
    agent = start(testbed, made)
    first = time.monotonic() - began
    try:
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        wanted = sum(1 << number for _, number, *_ in NEEDED)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            (mask,) = re.findall(rf"^{kind}:\t(\w+)$", status, flags=re.M)
            assert int(mask, 16) == wanted, kind
        mounts = Path(f"/proc/{agent.process.pid}/mountinfo").read_text().splitlines()
        (root,) = [line.split() for line in mounts if line.split()[4] == "/"]
        assert "ro" in root[5].split(",")
        # Compiled in there: no programs of the testbed's are in this state directory.
        assert list((places(testbed)["state"] / "programs").glob("*.programs"))
        assert (probe(testbed, "/healthz"), probe(testbed, "/readyz")) == ("200", "200")
        assert asked(testbed) == ENFORCED
        said = agent.client.get("status")
        assert not said["datapath"]["problems"], said["datapath"]
        proxy = said["proxy"]["process"]["pid"]
        # It is in the node's cgroup namespace, out of which it could be moved, and in the proxy's cgroup.
        assert Path(f"/proc/{proxy}/ns/cgroup").readlink() == Path("/proc/self/ns/cgroup").readlink()
        assert str(proxy) in (testbed.node.info.cgroups.proxy / "cgroup.procs").read_text().split()
        told = made.run(["status"])
        assert "revision" in told.stdout + told.stderr
    finally:
        agent.stop()

    # The pod is gone, and its mounts with it, but for what the proxy holds.
    assert asked(testbed) == ENFORCED
    began = time.monotonic()
    agent = start(testbed, made)
    second = time.monotonic() - began
    try:
        said = agent.client.get("status")
        assert said["proxy"]["process"]["pid"] == proxy
        assert said["proxy"]["process"]["adopted"]
        assert said["datapath"]["takenOver"]
        assert asked(testbed) == ENFORCED
    finally:
        agent.stop()
    print(f"in force after {first:.1f} s, with compiled programs and the proxy of before after {second:.1f} s")

    cleanup = container(testbed, helm, "cleanup", {**values, "uninstall": True})
    done = cleanup.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Policy is not enforced on this node any more." in done.stdout
    assert start_time(proxy) is None
    assert set(asked(testbed).values()) == {200}
    again = cleanup.run()
    assert again.returncode == 0
    assert "Nothing to remove." in again.stdout


def test_without_what_the_chart_gives_the_entry_says_what_is_missing(testbed: Testbed, helm: Helm) -> None:
    made = container(testbed, helm, "preflight", {})
    for capability, told in (("SYS_ADMIN", "needs CAP_SYS_ADMIN"), ("SYS_PTRACE", "needs CAP_SYS_PTRACE")):
        given = made._container["securityContext"]["capabilities"]
        before = list(given["add"])
        given["add"] = [each for each in before if each != capability]
        done = made.run(["version"])
        given["add"] = before
        assert done.returncode == 1
        assert told in done.stderr
    assert made.run(["version"]).returncode == 0


def test_sysctls_are_set_on_the_node(testbed: Testbed, helm: Helm) -> None:
    made = container(testbed, helm, "preflight", {})
    done = made.run(["sysctl", "net.ipv4.ip_local_port_range=33000 60000"])
    assert (done.returncode, done.stdout) == (0, "net.ipv4.ip_local_port_range=33000 60000\n"), done.stderr
    path = "/proc/sys/net/ipv4/ip_local_port_range"
    assert testbed.node.run_on_node(["cat", path]).stdout.split() == ["33000", "60000"]
    wrong = made.run(["sysctl", "net.ipv4.nothing=1"])
    assert wrong.returncode == 1
    assert "net.ipv4.nothing=1 can't be set" in wrong.stderr
