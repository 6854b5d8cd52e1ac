"""`spliceway cleanup`: all of ours goes, nothing of others', without an agent, without a configuration, and twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.proxysupervisor import running_pids
from spliceway.agent.testbed.agentprocess import agent_config, config_text, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf, record
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.install import pin_root
from spliceway.bpf.selftest.leftovers import PREFIX, own_name
from support.foreign import BOTH
from support.kernel import KernelNode
from support.node import demo_manifests, http_status
from support.waiting import until

pytestmark = pytest.mark.kernel

_CLI = (sys.executable, "-m", "spliceway.agent")
_NOBODY = 4194305  # no process has this number: PID_MAX_LIMIT is smaller
DENY_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend, namespace: default}
spec: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Ingress]}
"""
HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: backend}}
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /}]}}]}]
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up(demo_manifests()) as made:
        yield made


def cleanup(testbed: Testbed, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without a configuration: the node's places are named on the command line."""
    info = testbed.node.info
    places = ("--bpffs", str(info.bpffs), "--state-dir", str(info.state))
    return testbed.node.run_on_node([*_CLI, "cleanup", *places, *arguments], timeout=60)


def traces(testbed: Testbed) -> list[str]:
    """What an agent leaves in the kernel, as others' tools show it."""
    info = testbed.node.info
    script = (
        "for device in $(ls /sys/class/net); do for side in ingress egress; do echo $device $side; "
        "tc filter show dev $device $side; done; done; tc qdisc show | grep clsact; "
        "for version in -4 -6; do ip $version rule; ip $version route show table 2480; done; "
        "cat /proc/sys/net/ipv4/tcp_tw_reuse /proc/sys/net/ipv4/tcp_early_demux; "
        "ip link show type veth | grep spliceway; nft list ruleset; "
        f"ls {info.bpffs}; bpftool cgroup tree {info.cgroups.pods.parent}"
    )
    return testbed.node.run_on_node(["sh", "-c", script]).stdout.splitlines()


@pytest.fixture
def denied(testbed: Testbed) -> Iterator[None]:
    testbed.node.write_policy("deny", DENY_ALL)
    yield
    testbed.node.remove_policy("deny")


@pytest.mark.usefixtures("denied")
@pytest.mark.parametrize("how", BOTH)
def test_all_of_it_goes_and_nothing_else(testbed: Testbed, how: str) -> None:
    before = traces(testbed)
    # Without splicing nobody has to wait for the self-test.
    agent = start_agent(testbed.node, {"splice": {"mode": "off"}, "datapath": {"tcx": how}})
    try:
        agent.wait_in_force()
        refused = cleanup(testbed, "--yes")
        asked = cleanup(testbed)
    finally:
        agent.kill()  # it leaves everything
    assert (asked.returncode, asked.stdout.count("Would remove proxy")) == (1, 1)
    assert "an agent runs: stop it first, or say --yes --force" in asked.stderr
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "belongs to a running agent" in refused.stderr
    assert http_status(testbed, "frontend", "backend", timeout=1) == 0
    listed = cleanup(testbed)
    assert listed.returncode == 1
    hook = r"link \S+/tcx/\d+-from_pod \(from_pod at lxc" if how == "auto" else "filter from_pod at ingress of lxc"
    assert re.search(f"Would remove {hook}", listed.stdout), listed.stdout
    assert "say --yes. Afterwards policy is not enforced on this node" in listed.stderr
    assert http_status(testbed, "frontend", "backend", timeout=1) == 0

    done = cleanup(testbed, "--yes", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    kinds = {item["kind"] for item in said["removed"]}
    filters = set() if how == "auto" else {"filter", "clsact"}
    assert kinds == {"proxy", "link", "rule", "device", "netfilter", "sysctl", "pins"} | filters
    assert {item["kind"] for item in said["kept"]} == {"state"}
    assert traces(testbed) == before
    assert http_status(testbed, "frontend", "backend") == 200
    assert not (testbed.node.info.cgroups.proxy / "cgroup.procs").read_text()

    again = cleanup(testbed, "--yes", "-o", "json")
    assert (again.returncode, json.loads(again.stdout)["removed"]) == (0, [])
    assert (testbed.node.info.state / "state.json").exists()
    last = cleanup(testbed, "--yes", "--state")
    assert "Removed state" in last.stdout
    assert "not enforced" not in last.stdout  # it was not before, either
    assert not (testbed.node.info.state / "state.json").exists()
    again = cleanup(testbed)
    assert (again.stdout, str(testbed.node.info.bpffs) in again.stderr) == ("Nothing to remove.\n", True)


def test_a_proxy_that_began_without_programs_is_not_taken_over(testbed: Testbed) -> None:
    """`cleanup --force` under an agent: it starts another proxy, which the next agent's programs don't know."""
    state = testbed.node.info.state
    testbed.node.write_policy("http", HTTP)
    agent = start_agent(testbed.node, {"splice": {"mode": "off"}})
    try:
        (first,) = running_pids(state)
        assert cleanup(testbed, "--yes", "--force").returncode == 0
        (second,) = until(lambda: running_pids(state).keys() - {first}, 20)
        assert "pins of programs and links" in agent.client.get("status")["datapath"]["problems"][0]
        agent.stop()
        agent = start_agent(testbed.node, {"splice": {"mode": "off"}})
        assert second not in running_pids(state)
        assert http_status(testbed, "frontend", "backend") == 200
        assert http_status(testbed, "frontend", "backend", "/secret") == 403
    finally:
        agent.kill()
        testbed.node.remove_policy("http")
        assert cleanup(testbed, "--yes", "--state").returncode == 0


def test_what_others_attached_stays(testbed: Testbed) -> None:
    node = testbed.node
    device = testbed.pod("backend").interface
    mine = node.run_on_node(["tc", "qdisc", "add", "dev", "eth0", "clsact"])  # somebody else made this one
    assert mine.returncode == 0, mine.stderr
    theirs = ("prio", "9", "protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")
    node.run_on_node(["tc", "filter", "add", "dev", "eth0", "egress", *theirs])
    node.run_on_node(["ip", "rule", "add", "fwmark", "0x1000/0x1002", "lookup", "2480", "prio", "9"])
    node.run_on_node(["ip", "route", "add", "10.99.0.0/16", "dev", "eth0", "table", "2480"])
    try:
        kernel = KernelNode(node, tcx="off")
        node.run_on_node(["tc", "filter", "add", "dev", device, "ingress", *theirs])
        kernel.run(kernel.datapath.close())
        kernel.loop.stop()
        done = cleanup(testbed, "--yes")
        assert done.returncode == 0, done.stderr
        assert f"Kept clsact of {device} (others use it)" in done.stdout
        assert "u32" in node.run_on_node(["tc", "filter", "show", "dev", device, "ingress"]).stdout
        assert "from_pod" not in node.run_on_node(["tc", "filter", "show", "dev", device, "ingress"]).stdout
        assert "u32" in node.run_on_node(["tc", "filter", "show", "dev", "eth0", "egress"]).stdout
        assert "9:\tfrom all fwmark 0x1000/0x1002 lookup 2480" in node.run_on_node(["ip", "rule"]).stdout
        assert "\n7:\t" not in node.run_on_node(["ip", "rule"]).stdout
        assert node.run_on_node(["ip", "route", "show", "table", "2480"]).stdout.split()[:1] == ["10.99.0.0/16"]
    finally:
        node.run_on_node(["ip", "rule", "del", "prio", "9"])
        node.run_on_node(["ip", "route", "flush", "table", "2480"])
        for name in ("eth0", device):
            node.run_on_node(["tc", "qdisc", "del", "dev", name, "clsact"])


@pytest.mark.parametrize("how", BOTH)
def test_from_another_network_namespace(testbed: Testbed, how: str) -> None:
    """Interfaces have the same numbers in every namespace: nothing is taken there for ours."""
    info = testbed.node.info
    kernel = KernelNode(testbed.node, tcx=how)
    kernel.run(kernel.datapath.close())
    kernel.loop.stop()
    attached = traces(testbed)
    argv = [*_CLI, "cleanup", "--bpffs", str(info.bpffs), "--state-dir", str(info.state)]

    def outside(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*argv, *more], capture_output=True, text=True, timeout=60, check=False)

    listed = outside()
    assert listed.returncode == 1
    assert "another network namespace, of which nothing is seen from here" in listed.stderr
    assert {line.split()[2] for line in listed.stdout.splitlines()} == {"link", "pins"}
    refused = outside("--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "ran in another network namespace" in refused.stderr
    assert traces(testbed) == attached

    done = outside("--yes", "--force", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert {item["kind"] for item in json.loads(done.stdout)["removed"]} == {"link", "pins"}
    rest = json.loads(cleanup(testbed, "--yes", "-o", "json").stdout)["removed"]
    filters = set() if how == "auto" else {"filter", "clsact"}
    assert {item["kind"] for item in rest} == {"rule", "device", "netfilter", "sysctl"} | filters, rest


def test_pins_that_go_are_told(testbed: Testbed) -> None:
    kernel = KernelNode(testbed.node)
    root = pin_root(kernel.settings)
    try:
        assert not [text for text in kernel.datapath.status().problems if "pins" in text]
        for name in ("links/guard", "programs/measure_splice"):
            (root / name).unlink()
        (told,) = [text for text in kernel.datapath.status().problems if "pins" in text]
        assert "gone (links/guard, programs/measure_splice): policy is not enforced as it should be" in told
        with pytest.raises(KernelRefusedError, match="the pin was removed: start the agent again"):
            kernel.run(kernel.datapath.measure())
    finally:
        kernel.run(kernel.datapath.close())
        kernel.loop.stop()
    assert cleanup(testbed, "--yes").returncode == 0


def test_no_bpffs_and_a_plain_directory(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "spliceway" / "precious").mkdir(parents=True)
    argv = [*_CLI, "cleanup", "--bpffs", str(tmp_path), "--state-dir", str(tmp_path / "none"), "--yes"]
    done = testbed.node.run_on_node(argv)
    assert done.returncode == 1
    assert "is not on a bpffs" in done.stderr
    assert (tmp_path / "spliceway" / "precious").is_dir()
    (tmp_path / "spliceway" / "precious").rmdir()
    (tmp_path / "spliceway").rmdir()
    done = testbed.node.run_on_node(argv)
    assert (done.returncode, done.stdout) == (0, "Nothing to remove.\n")


def test_rules_of_an_agent_with_another_bpffs_stay(testbed: Testbed, tmp_path: Path) -> None:
    argv = [*_CLI, "cleanup", "--bpffs", str(tmp_path), "--state-dir", str(tmp_path / "none")]
    kernel = KernelNode(testbed.node)
    try:
        attached = traces(testbed)
        listed = testbed.node.run_on_node(argv)
        refused = testbed.node.run_on_node([*argv, "--yes"])
        for told in (listed, refused):
            assert told.returncode == 1
            assert f"belongs to the agent of {testbed.node.info.bpffs}: name that with --bpffs" in told.stderr
        assert traces(testbed) == attached
    finally:
        kernel.run(kernel.datapath.close())
        kernel.loop.stop()
    forced = testbed.node.run_on_node([*argv, "--yes", "--force"])
    assert "Removed rule" in forced.stdout
    assert "not enforced" not in forced.stdout  # the programs are where they were
    assert cleanup(testbed, "--yes").returncode == 0


def test_cgroups_of_killed_self_tests_go(testbed: Testbed) -> None:
    """They are the only things of a self-test that the kernel does not take back."""
    info = testbed.node.info
    config = info.directory / "cleanup.yaml"
    config.write_text(config_text(agent_config(testbed.node)))
    argv = [*_CLI, "cleanup", "--config", str(config), "--yes"]
    lives = info.cgroups.proxy / own_name()
    ended = [parent / f"{PREFIX}-{_NOBODY}-1" for parent in (info.cgroups.pods, info.cgroups.proxy)]
    for path in (lives, *ended):
        path.mkdir()
    try:
        done = testbed.node.run_on_node(argv)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line for line in done.stdout.splitlines() if "cgroup" in line] == [
            f"Removed cgroup {path}" for path in ended
        ]
        assert [path for path in (lives, *ended) if path.exists()] == [lives]
    finally:
        for path in (lives, *ended):
            if path.exists():
                path.rmdir()
    assert "cgroup" not in testbed.node.run_on_node(argv).stdout


def crash(kernel: KernelNode) -> None:
    """Leave what an agent leaves that is killed while it puts new programs in place."""
    root = pin_root(kernel.settings)
    (root / "staging").mkdir()
    pin_again(root / "programs" / "guard", root / "staging" / "guard")
    (root / "digest").unlink()
    (root / "links" / "guard").unlink()  # attached, and not yet pinned: it went with its process
    kernel.run(kernel.datapath.close())
    kernel.loop.stop()


def pin_again(source: Path, target: Path) -> None:
    program = libbpf.open_pin(source)
    libbpf.pin(program, target)
    os.close(program)


def test_what_a_crash_left_is_taken_over_or_goes(testbed: Testbed) -> None:
    """Staged programs, an incomplete root, a former uplink, a former rule: to the next agent, and to cleanup."""
    node, info = testbed.node, testbed.node.info
    device = "was-uplink"
    node.run_on_node(["ip", "link", "add", device, "type", "veth", "peer", "name", "nobodys"])
    show = ["tc", "filter", "show", "dev", device, "ingress"]
    first = KernelNode(node, rule_priority=8, devices=(device, "eth0"), tcx="off")
    root, proxy_map = pin_root(first.settings), first.datapath.proxy_map
    assert "from_network" in node.run_on_node(show).stdout
    crash(first)

    second = KernelNode(node, tcx="off")
    assert second.datapath.status().taken_over
    assert second.datapath.proxy_map == proxy_map  # a proxy that runs can go on
    assert not (root / "staging").exists()
    assert (root / "links" / "guard").exists()
    rules = node.run_on_node(["ip", "rule"]).stdout
    assert "\n7:\tfrom all fwmark 0x1000/0x1002 lookup 2480" in rules
    assert "\n8:\t" not in rules
    assert node.run_on_node(["ip", "route", "show", "table", "2480"]).stdout.startswith("local default dev spliceway1")
    assert "from_network" not in node.run_on_node(show).stdout
    second.apply()
    assert http_status(testbed, "frontend", "backend") == 200
    found = json.loads(
        node.run_on_node([*_CLI, "preflight", "--no-self-test", "--bpffs", str(info.bpffs), "-o", "json"]).stdout
    )
    ours = [check for check in found["checks"] if check["name"] in ("other-owner", "rules", "route-table", "marks")]
    assert [check["status"] for check in ours] == ["ok"] * 4, ours

    old = record.top(info.bpffs) / "v1"
    (old / "staging").mkdir(parents=True)
    pin_again(root / "programs" / "from_pod", old / "staging" / "from_pod")
    crash(second)
    (info.state / "sysctls-before.json").write_text("{")  # cut off
    done = cleanup(testbed, "--yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    pins = {item["what"] for item in json.loads(done.stdout)["removed"] if item["kind"] == "pins"}
    assert pins == {str(old), str(root)}
    assert not record.top(info.bpffs).exists()
    node.run_on_node(["ip", "link", "del", device])
