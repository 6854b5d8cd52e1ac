"""Pods that nobody told of are found where they are, also when another pod claims to be them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.cni import search
from spliceway.agent.cni.search import Search
from spliceway.agent.cni.wirings import Wiring
from spliceway.agent.endpoints import Claim
from spliceway.agent.testbed import cgroups, netns, processes
from spliceway.policy.model import Pod
from support.cninode import CniNode, CniPod, cni_node
from support.waiting import until

pytestmark = pytest.mark.kernel

UID = "11111111-2222-3333-4444-555555555555"
#: Where the kubelet has a pod's containers, by driver.
CGROUPS = {
    "systemd": f"kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-1.scope",
    "systemd, guaranteed": f"kubepods-pod{UID.replace('-', '_')}.slice/cri-1.scope",
    "cgroupfs": f"burstable/pod{UID}/1",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CniNode]:
    """A node without an agent: its chain has no plugin of ours."""
    with cni_node(tmp_path_factory.mktemp("cni")) as made:
        yield made


@pytest.fixture
def pod(site: CniNode) -> Iterator[CniPod]:
    made = site.sandbox("web")
    made.add()
    yield made
    made.delete()
    made.gone()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[Any]]]:
    """Processes that end with the test."""
    found: list[subprocess.Popen[Any]] = []
    yield found
    for one in found:
        one.kill()
        one.wait(10)


def runs(site: CniNode, place: Path, cgroup: str) -> subprocess.Popen[Any]:
    """A process of a pod."""
    path = site.node.info.cgroups.pods
    for part in Path(cgroup).parts:
        path = path / part
        if not path.is_dir():
            cgroups.create(path)
    process = processes.spawn(place, path, ["sleep", "300"], processes.environment())
    inside = Path(f"/proc/{process.pid}/ns/net")
    until(lambda: inside.stat().st_ino == place.stat().st_ino)
    return process


def find(site: CniNode, pod: CniPod, *, uid: str = "", released: frozenset[int] = frozenset()) -> list[Wiring]:
    addresses = tuple(ip_address(pod.address(version)) for version in (4, 6))
    wanted = {"default/web": (Pod("default", "web", {}, addresses, site.node.name), Claim((uid,) if uid else ()))}
    return netns.call(site.node.info.netns, lambda: Search(site.node.info.cgroups.pods, released).find(wanted))


def device(pod: CniPod) -> str:
    """The node's end, by what the bridge plugin said."""
    return str(pod.result["interfaces"][1]["name"])


def claims(place: Path, address: str) -> None:
    """A pod that may configure its interfaces takes an address of another one."""
    add = ["ip", "address", "add", f"{address}/32", "dev", "eth0"]
    netns.call(place, lambda: subprocess.run(add, check=True, timeout=10))


@pytest.mark.parametrize("cgroup", CGROUPS.values(), ids=CGROUPS)
def test_by_the_cgroup_that_has_its_uid(
    site: CniNode, pod: CniPod, started: list[subprocess.Popen[Any]], cgroup: str
) -> None:
    started.append(runs(site, pod.netns, cgroup))
    (found,) = find(site, pod, uid=UID)
    assert (found.pod, found.uid, found.side.interface) == ("default/web", UID, device(pod))
    assert set(found.ips) == {pod.address(4), pod.address(6)}
    assert found.netns == pod.netns  # a name outlives the process
    assert not find(site, pod, uid=UID, released=frozenset({found.side.netns}))


def test_who_claims_its_address_is_not_taken_for_it(
    site: CniNode, pod: CniPod, started: list[subprocess.Popen[Any]]
) -> None:
    other = site.sandbox("thief")
    other.add()
    claims(other.netns, pod.address())
    started.append(runs(site, pod.netns, CGROUPS["systemd"]))
    started.append(runs(site, other.netns, "burstable/podother/1"))
    assert [one.side.interface for one in find(site, pod, uid=UID)] == [device(pod)]
    other.delete()
    other.gone()


def test_a_pod_that_hides_in_a_namespace_of_its_own_is_found_at_its_device(
    site: CniNode, pod: CniPod, started: list[subprocess.Popen[Any]]
) -> None:
    """Inside of the pod another namespace has its address, and the pod's own interface has it no more."""
    inner = pod.netns.with_name(f"{pod.netns.name}-inner")
    netns.create(inner, lambda: None)
    address = pod.address()
    made = (
        f"ip link add veth9 type veth peer name eth0 netns {inner.name} && ip link set veth9 up && "
        "ip address flush dev eth0"
    )
    netns.call(pod.netns, lambda: subprocess.run(made, shell=True, check=True, timeout=10))
    claims(inner, address)
    started.append(runs(site, inner, CGROUPS["cgroupfs"]))
    started.append(runs(site, pod.netns, CGROUPS["cgroupfs"]))
    try:
        assert [one.side.interface for one in find(site, pod, uid=UID)] == [device(pod)]
    finally:
        netns.delete(inner)


def test_without_a_uid_by_its_address_unless_two_have_it(site: CniNode, pod: CniPod) -> None:
    assert [one.side.interface for one in find(site, pod)] == [device(pod)]
    other = site.sandbox("thief")
    other.add()
    claims(other.netns, pod.address())
    assert not find(site, pod)
    other.delete()
    other.gone()
    assert [one.side.interface for one in find(site, pod)] == [device(pod)]


def test_a_uid_without_processes_is_not_looked_for_elsewhere(site: CniNode, pod: CniPod) -> None:
    assert not find(site, pod, uid="00000000-0000-0000-0000-000000000000")


def test_a_container_with_many_processes_does_not_hide_the_others(tmp_path: Path) -> None:
    """The namespaces that are looked at are of all of a pod's cgroups, whoever has most processes."""
    for name, numbers in (("a-crowd", range(100_000, 105_000)), ("b-few", (7, 8))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("".join(f"{number}\n" for number in numbers))
    (tmp_path / "cgroup.procs").write_text("")
    found = [int(path.parts[2]) for path in search._namespaces(tmp_path)]
    assert {7, 8} <= set(found)
    assert len(found) == search.MAX_TOGETHER + 2
