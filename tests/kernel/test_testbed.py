"""Virtual nodes as they are in the kernel: links, routes, cgroups, programs, several nodes."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from spliceway.agent.testbed import cgroups, netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.syscalls import mount_detached
from spliceway.agent.testbed.testbed import Testbed
from support.node import http_status, pod_manifest, python_in, server_manifest, url

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("frontend", "backend"),
        ("frontend", "frontend"),
        ("frontend", "outside"),
        ("inside", "api"),
        ("inside", "outside"),
    ],
)
def test_everyone_reaches_everyone(demo_testbed: Testbed, client: str, server: str, version: int) -> None:
    assert http_status(demo_testbed, client, server, version=version) == 200


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_reaches_its_pods_as_the_kubelet_does(demo_testbed: Testbed, version: int) -> None:
    target = url(demo_testbed.pod("api"), "/healthz", version=version)
    done = demo_testbed.node.run_on_node(["curl", "-sS", "--max-time", "5", target])
    assert done.stdout == "api GET /healthz\n"


def test_a_pod_sees_only_its_own_world(demo_testbed: Testbed) -> None:
    pod = demo_testbed.pod("frontend")
    addresses = pod.run(["ip", "-brief", "address", "show", "eth0"]).stdout.split()
    assert "10.240.1.10/32" in addresses
    assert "fd00:240:1::10/128" in addresses
    routes = pod.run(["ip", "-4", "route"]).stdout
    assert "default via 169.254.1.1 dev eth0" in routes
    assert pod.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()[-1].endswith("/node1/pods/default_frontend")
    environment = pod.run(["env"]).stdout.splitlines()
    assert "POD_NAME=frontend" in environment
    assert not [line for line in environment if line.lower().startswith(("http_proxy=", "https_proxy="))]


def test_a_packet_to_a_pod_that_is_gone_never_leaves_the_node(demo_testbed: Testbed) -> None:
    node = demo_testbed.node
    for family, prefix in (("-4", "10.240.0.0/12"), ("-6", "fd00:240::/32")):
        assert f"blackhole {prefix}" in node.run_on_node(["ip", family, "route"]).stdout
    code = (
        "import socket, sys\n"
        "sent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sent.sendto(b'x', ('10.241.7.7', 9))\n"
    )
    before = _uplink_packets(demo_testbed)
    python_in(demo_testbed.pod("frontend"), code)
    assert _uplink_packets(demo_testbed) == before


def test_neighbours_are_permanent_on_both_sides(demo_testbed: Testbed) -> None:
    pod = demo_testbed.pod("backend")
    inside = pod.run(["ip", "neigh", "show", "nud", "permanent"]).stdout
    assert "169.254.1.1 dev eth0" in inside
    assert "fe80::1 dev eth0" in inside
    outside = demo_testbed.node.run_on_node(["ip", "neigh", "show", "nud", "permanent", "dev", pod.interface]).stdout
    assert all(ip in outside for ip in pod.ips)


def test_manifests_for_the_agent_are_complete(demo_testbed: Testbed) -> None:
    directory = demo_testbed.node.info.manifests / "pods"
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "namespace-default.yaml",
        "node-node1.yaml",
        *(f"pod-default_{name}.yaml" for name in ("api", "backend", "frontend", "intruder")),
    ]
    document = yaml.safe_load((directory / "pod-default_api.yaml").read_text())
    pod = demo_testbed.pod("api")
    assert document["metadata"]["annotations"]["spliceway.io/interface"] == pod.interface
    assert Path(document["metadata"]["annotations"]["spliceway.io/netns"]).exists()
    assert demo_testbed.node.run_on_node(["ip", "link", "show", pod.interface]).returncode == 0


def test_the_bpf_file_system_is_the_nodes_own(demo_testbed: Testbed) -> None:
    info = demo_testbed.node.info
    assert info.bpffs.is_mount()
    assert os.statvfs(info.bpffs).f_fsid != os.statvfs("/sys/fs/bpf").f_fsid or not Path("/sys/fs/bpf").is_mount()
    (info.bpffs / "probe").mkdir()
    (info.bpffs / "probe").rmdir()


def test_echo_streams_both_ways(demo_testbed: Testbed) -> None:
    body = os.urandom(3_000_000).hex()
    target = url(demo_testbed.pod("api"), "/a/echo")
    chunked = ["-H", "Transfer-Encoding: chunked"]
    for extra in ([], chunked):
        done = demo_testbed.run("frontend", ["curl", "-sS", "--data-binary", "@-", *extra, target], stdin=body)
        assert done.stdout == body, done.stderr


def test_receive_packet_steering_is_set_in_the_namespace_and_nowhere_else() -> None:
    def masks() -> dict[str, str]:
        files = Path("/sys/class/net").glob("*/queues/rx-*/rps_cpus")
        return {str(file): file.read_text() for file in files}

    before = masks()
    with Testbed.up([server_manifest("web"), pod_manifest("client")]) as testbed:
        testbed.node.set_rps(1)
        for pod in testbed.node.pods.values():
            pod.set_rps(1)
        seen = {each: netns.call(each, rps_masks) for each in (testbed.node.info.netns, testbed.pod("web").netns)}
        assert set(seen[testbed.node.info.netns]) == {"eth0", *(pod.interface for pod in testbed.node.pods.values())}
        assert set(seen[testbed.pod("web").netns]) == {"eth0"}
        assert {int(mask, 16) for each in seen.values() for mask in each.values()} == {1}
        assert http_status(testbed, "client", "web") == 200
        testbed.node.set_rps(0)
        assert {int(mask, 16) for mask in netns.call(testbed.node.info.netns, rps_masks).values()} == {0}
    assert masks() == before


def rps_masks() -> dict[str, str]:
    """The mask of each interface but `lo` of the calling thread's namespace."""
    root = mount_detached("sysfs")
    try:
        files = Path(f"/proc/self/fd/{root}/class/net").glob("*/queues/rx-0/rps_cpus")
        return {file.parts[-4]: file.read_text().replace(",", "") for file in files if file.parts[-4] != "lo"}
    finally:
        os.close(root)


def test_run_gives_up_after_its_time(demo_testbed: Testbed) -> None:
    begun = time.monotonic()
    with pytest.raises(TestbedError, match=r"sleep 60: not done after 0\.2 s"):
        demo_testbed.run("frontend", ["sleep", "60"], timeout=0.2)
    assert time.monotonic() - begun < 10


def test_unknown_and_ambiguous_pods(demo_testbed: Testbed) -> None:
    with pytest.raises(TestbedError, match="pod nobody: there are default/api, "):
        demo_testbed.pod("nobody")
    assert demo_testbed.pod("default/api") == demo_testbed.node.pod("api")


def test_nodes_reach_each_others_pods_and_pods_come_and_go() -> None:
    away = server_manifest("away", namespace="shop")
    away["spec"]["nodeName"] = "node2"
    home = server_manifest("home")
    home["spec"]["nodeName"] = "node1"
    far = pod_manifest("far", addresses=["10.77.3.9", "fd00:77::9"], outside=True)
    with Testbed.up([home, away, far]) as testbed:
        first, second = testbed.nodes
        assert (first.name, second.name) == ("node1", "node2")
        for version in (4, 6):
            assert http_status(testbed, "home", "away", version=version) == 200
            assert http_status(testbed, "far", "away", version=version) == 200
        remote = yaml.safe_load((first.info.manifests / "pods" / "pod-shop_away.yaml").read_text())
        assert "annotations" not in remote["metadata"]

        added = testbed.add_pod(server_manifest("late", namespace="shop"))
        assert (first.info.manifests / "pods" / "pod-shop_late.yaml").exists()
        assert http_status(testbed, "away", "late") == 200
        testbed.set_labels("late", {"role": "other"})
        changed = yaml.safe_load((second.info.manifests / "pods" / "pod-shop_late.yaml").read_text())
        assert changed["metadata"]["labels"] == {"role": "other"}
        testbed.remove_pod("late")
        assert not added.netns.exists()
        assert not added.cgroup.exists()
        assert not (second.info.manifests / "pods" / "pod-shop_late.yaml").exists()
        assert first.run_on_node(["ip", "link", "show", added.interface]).returncode != 0


def test_a_program_that_never_listens_is_reported_and_nothing_stays() -> None:
    bad = pod_manifest("bad", command=["sh", "-c", "exit 7"], ports=[80])
    before = _names()
    with pytest.raises(TestbedError, match="default/bad: nothing listens on TCP 80: the program ended with status 7"):
        Testbed.up([bad])
    assert _names() == before


def test_up_takes_less_than_two_seconds_without_servers() -> None:
    """Of CPU, with those of the commands that it runs: on a busy machine it takes as long as it waits for one."""
    begun = _cpu_seconds()
    with Testbed.up([pod_manifest(f"pod{number}") for number in range(10)]):
        assert _cpu_seconds() - begun < 2


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def test_down_takes_everything_and_can_be_called_again() -> None:
    testbed = Testbed.up([pod_manifest("web")])
    cgroup = testbed.pod("web").cgroup
    program = ["sh", "-c", "echo; exec sleep 1000"]
    with (
        testbed.spawn("web", program, stdout=subprocess.PIPE) as in_pod,
        testbed.node.spawn_on_node(program, "proxy", stdout=subprocess.PIPE) as on_node,
    ):
        for process in (in_pod, on_node):
            assert process.stdout
            process.stdout.readline()
        testbed.down()
        testbed.down()
    assert (in_pod.returncode, on_node.returncode) == (-9, -9)
    assert not cgroup.exists()
    assert not cgroup.parents[2].exists()
    assert not [name for name in _names() if testbed.run_id in name]


def test_cgroups_of_a_process_are_joined_before_it_starts(demo_testbed: Testbed) -> None:
    node = demo_testbed.node
    with node.spawn_on_node(["cat", "/proc/self/cgroup"], "proxy", stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].splitlines()[-1].endswith("/node1/proxy")


def test_a_program_does_not_start_outside_its_cgroup(demo_testbed: Testbed, tmp_path: Path) -> None:
    pod = demo_testbed.pod("frontend")
    gone = type(pod)(**{**{name: getattr(pod, name) for name in pod.__struct_fields__}, "cgroup": tmp_path / "none"})
    done = gone.run(["echo", "started"])
    assert (done.returncode, done.stdout) == (125, "")


def test_a_namespace_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match="no such network namespace"):
        netns.enter(tmp_path / "none")


def test_a_cgroup_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(TestbedError, match="can't make a cgroup"):
        cgroups.create(Path("/proc/spliceway"))


def _uplink_packets(testbed: Testbed) -> str:
    command = ["cat", "/proc/thread-self/net/dev"]
    lines = testbed.node.run_on_node(command).stdout.splitlines()
    return next(line.split()[10] for line in lines if line.strip().startswith("eth0:"))


def _names() -> set[str]:
    return {path.name for path in netns.DIRECTORY.iterdir()} if netns.DIRECTORY.is_dir() else set()
