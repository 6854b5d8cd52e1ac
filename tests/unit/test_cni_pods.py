"""Pods of the node with the addresses that they are wired with, and of nobody else; what an agent remembers of them."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.cli.summary import _cni_problems
from spliceway.agent.cni import wirings as wirings_module
from spliceway.agent.cni.netconf import Container
from spliceway.agent.cni.pods import WiredPods
from spliceway.agent.cni.side import NoCni
from spliceway.agent.cni.veth import HostSide
from spliceway.agent.cni.wirings import Wiring, Wirings
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import Key
from spliceway.agent.sources.events import FileChanged, FileRemoved
from spliceway.policy.engine import Engine, Options
from spliceway.policy.labels import SIDECAR_KEY
from spliceway.policy.model import Object, Pod
from spliceway.policy.numbering import Numbering
from support.agent import NODE
from support.leftpods import injected

FOUR, SIX = "10.240.1.7", "fd00:240:1::7"


def wiring(
    pod: str = "default/web",
    *,
    uid: str = "u1",
    container: str = "c1",
    index: int = 5,
    ips: tuple[str, ...] = (FOUR, SIX),
) -> Wiring:
    side = HostSide(f"veth{index}", index, 4000 + index)
    return Wiring(pod, uid, container, "eth0", Path(f"/run/netns/{container}"), side, ips)


def manifest(
    name: str, *, uid: str = "u1", node: str = NODE, ips: tuple[str, ...] = (), more: str = "", spec: str = ""
) -> str:
    listed = ", ".join(f"{{ip: '{ip}'}}" for ip in ips)
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: "{uid}", labels: {{app: {name}}}, annotations: {{{more}}}}}
spec: {{nodeName: {node}{spec}}}
status: {{podIPs: [{listed}]}}
"""


class Site:
    """Source and wirings of one node."""

    def __init__(self, directory: Path, *, only: bool = True) -> None:
        self.inventory = Inventory(NODE)
        self.wirings = Wirings(directory)
        self.pods = WiredPods(self.inventory.claims, self.wirings.all, only=only)
        self.known: dict[Key, Object] = {}

    def say(self, name: str, text: str | None) -> None:
        file = f"{name}.yaml"
        self.inventory.feed((FileRemoved(file) if text is None else FileChanged(file, text),))
        self.take()

    def take(self) -> set[str]:
        changes = dict(self.inventory.changes())
        self.pods.complete(changes)
        for key, item in changes.items():
            self.known.pop(key, None)
            if item is not None:
                self.known[key] = item
        return {name for _kind, name in changes}

    def addresses(self, name: str) -> tuple[str, ...]:
        pod = self.known["Pod", f"default/{name}"]
        assert isinstance(pod, Pod)
        return tuple(map(str, pod.addresses))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_pod_has_its_wirings_addresses_before_its_status_has_any(site: Site) -> None:
    site.say("web", manifest("web"))
    assert site.addresses("web") == ()
    assert not site.pods.endpoints()
    site.wirings.put(wiring())
    assert site.take() == {"default/web"}
    assert site.addresses("web") == (FOUR, SIX)
    (endpoint,) = site.pods.endpoints()
    assert (endpoint.name, endpoint.interface, endpoint.netns) == ("default/web", "veth5", Path("/run/netns/c1"))
    assert endpoint.addresses == (ip_address(FOUR), ip_address(SIX))


def test_a_status_that_comes_later_changes_nothing_and_outlives_nothing(site: Site) -> None:
    site.say("web", manifest("web"))
    site.wirings.put(wiring())
    site.take()
    site.say("web", manifest("web", ips=("10.240.1.99",)))
    assert site.addresses("web") == (FOUR, SIX)
    assert site.wirings.release(Container("c1", "eth0", None, "default/web", "u1"), 0)
    site.take()
    assert site.addresses("web") == ()
    assert not site.pods.endpoints()


def test_what_a_sidecar_sees_is_known_once_the_status_has_both_families(site: Site) -> None:
    """Istio's rules are for the family of the first address alone, unless it says otherwise."""
    site.wirings.put(wiring("shop/api"))
    for families, dual_stack, known in (
        ((), True, False),
        ((4,), False, False),
        ((4, 6), False, False),
        ((4, 6), True, True),
    ):
        site.say("api", json.dumps(injected("api", 1, families=families, dual_stack=dual_stack)))
        pod = site.known["Pod", "shop/api"]
        assert isinstance(pod, Pod)
        assert pod.addresses == (ip_address(FOUR), ip_address(SIX))
        assert (SIDECAR_KEY in pod.labels) is known, (families, dual_stack)


def test_an_address_that_is_given_to_another_pod_has_no_trace_of_the_first(site: Site) -> None:
    site.say("web", manifest("web", ips=(FOUR,)))
    site.say("db", manifest("db", uid="u2"))
    site.wirings.put(wiring())
    site.take()
    site.wirings.put(wiring("default/db", uid="u2", container="c2", index=6, ips=(FOUR,)))
    assert site.take() == {"default/web", "default/db"}
    assert site.addresses("db") == (FOUR,)
    assert site.addresses("web") == ()
    assert [one.name for one in site.pods.endpoints()] == ["default/db"]


def test_pods_of_other_nodes_lose_addresses_that_are_wired_here_and_get_them_back(site: Site) -> None:
    site.say("old", manifest("old", uid="u9", node="node2", ips=(FOUR, "10.240.2.1")))
    assert site.addresses("old") == (FOUR, "10.240.2.1")
    site.say("web", manifest("web"))
    site.wirings.put(wiring())
    assert "default/old" in site.take()
    assert site.addresses("old") == ("10.240.2.1",)
    site.wirings.release(Container("c1", "eth0", None, "", ""), 0)
    site.take()
    assert site.addresses("old") == (FOUR, "10.240.2.1")


def test_where_nobody_tells_of_ends_an_address_of_two_is_nobodys(tmp_path: Path) -> None:
    site = Site(tmp_path, only=False)

    def identities() -> set[tuple[str, ...]]:
        table = Engine(Options(NODE), Numbering()).apply(site.known.values(), revision=1)
        return {table.identities[table.ipcache[ip_network(text)]] for text in (FOUR, SIX)}

    site.say("web", manifest("web", ips=(FOUR, SIX)))
    site.wirings.put(wiring())
    site.take()
    (mine,) = identities()
    # web has ended, which is not seen yet; who comes next must not pass for it.
    for node in (NODE, "node2"):
        site.say("late", manifest("late", uid="u2", node=node, ips=(FOUR, SIX)))
        assert site.addresses("web") == site.addresses("late") == (FOUR, SIX)
        assert identities() == {("reserved:unmanaged",)}
    site.wirings.release(Container("c1", "eth0", None, "", ""), 0)
    site.say("web", None)
    (later,) = identities()
    assert "k8s:app=web" in str(mine)
    assert "k8s:app=late" in str(later)


def test_a_pod_of_the_same_name_that_was_there_before_is_another_one(site: Site) -> None:
    site.say("web", manifest("web", uid="old"))
    site.wirings.put(wiring(uid="new"))
    site.take()
    assert site.addresses("web") == ()
    assert not site.pods.known(wiring(uid="new"))
    site.say("web", manifest("web", uid="new"))
    assert site.addresses("web") == (FOUR, SIX)
    assert site.pods.known(wiring(uid="new"))


def test_a_static_pod_is_known_by_the_uid_that_the_kubelet_gave_it(site: Site) -> None:
    static = 'kubernetes.io/config.hash: "u1", kubernetes.io/config.mirror: "u1"'
    site.say("web", manifest("web", uid="mirror", more=static))
    assert site.pods.known(wiring())


def test_nobody_is_known_by_a_uid_that_he_says_himself(site: Site) -> None:
    """Otherwise pods could be found where another one's processes are."""
    for more in ('kubernetes.io/config.hash: "u2"', 'kubernetes.io/config.hash: "u2", kubernetes.io/config.mirror: x'):
        site.say("web", manifest("web", more=more))
        assert site.inventory.claims["default/web"].uids == ("u1",)


def test_pods_that_say_how_they_are_wired_are_left_alone(site: Site) -> None:
    said = "spliceway.io/interface: lxc1, spliceway.io/netns: /run/netns/a"
    site.say("web", manifest("web", ips=(FOUR,), more=said))
    assert site.addresses("web") == (FOUR,)
    assert not site.pods.unwired()
    assert [one.interface for one in site.inventory.endpoints] == ["lxc1"]


def test_a_cluster_whose_pods_nobody_wires_is_told(site: Site, tmp_path: Path) -> None:
    side = NoCni(site.inventory, tmp_path, cluster=True)
    site.say("new", manifest("new"))
    site.say("far", manifest("far", node="node2", ips=(SIX,)))
    assert problems_of(side) == []
    site.say("web", manifest("web", ips=(FOUR,)))
    (told,) = problems_of(side)
    assert told.startswith("cni: no policy covers 1 pods of this node: cni.enabled is false")
    assert problems_of(NoCni(site.inventory, tmp_path)) == [], (
        "a directory's pods say it themselves, or are none of ours"
    )


def problems_of(side: NoCni) -> list[str]:
    return _cni_problems(msgspec.to_builtins(side.status()))


def test_pods_in_the_hosts_network_are_left_alone(site: Site) -> None:
    site.say("web", manifest("web", ips=("10.10.0.2",), spec=", hostNetwork: true"))
    assert site.addresses("web") == ("10.10.0.2",)
    assert not site.inventory.claims


def test_what_may_be_spliced_of_a_pod_follows_its_annotations(site: Site) -> None:
    site.say("web", manifest("web"))
    site.wirings.put(wiring())
    site.take()
    assert site.pods.endpoints()[0].splice
    site.say("web", manifest("web", more='spliceway.io/splice: "false"'))
    assert not site.pods.endpoints()[0].splice


def test_those_of_whom_nothing_is_known_are_told(site: Site) -> None:
    site.say("web", manifest("web", ips=(FOUR,)))
    site.say("new", manifest("new", uid="u2"))
    site.say("far", manifest("far", uid="u3", node="node2", ips=("10.240.2.2",)))
    assert list(site.pods.unwired()) == ["default/web"]
    site.wirings.put(wiring(container="", uid=""))
    assert not site.pods.unwired()


def test_a_release_is_of_the_container_and_not_of_the_name(site: Site) -> None:
    site.wirings.put(wiring(container="new", index=6))
    assert site.wirings.release(Container("old", "eth0", None, "default/web", "u1"), 0) is None
    assert site.wirings.release(Container("new", "net1", None, "default/web", "u1"), 0) is None  # a further interface
    assert site.wirings.release(Container("new", "eth0", None, "default/web", "u1"), 0) is not None
    assert not site.wirings.all


def test_one_that_was_found_goes_by_its_namespace_or_its_name(site: Site) -> None:
    found = msgspec.structs.replace(wiring(container=""), inner="")
    site.wirings.put(found)
    assert site.wirings.release(Container("c9", "eth0", None, "default/web", ""), 77) is None
    assert site.wirings.release(Container("c9", "eth0", None, "default/web", ""), 4005) == found
    site.wirings.put(found)
    assert site.wirings.release(Container("c9", "eth0", None, "default/web", ""), 0) == found
    assert 4005 in site.wirings.released
    assert not site.wirings.is_free(found)


def test_they_outlive_the_agent_and_not_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Wirings(tmp_path)
    first.put(wiring())
    first.save(first.packed())
    assert (tmp_path / "wirings.json").stat().st_mode & 0o777 == 0o600
    second = Wirings(tmp_path)
    second.load()
    assert second.all == first.all
    monkeypatch.setattr(wirings_module, "boot_id", lambda: "another")
    third = Wirings(tmp_path)
    third.load()
    assert not third.all


def test_a_damaged_file_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "wirings.json").write_text('{"version": 1, "boot"')
    found = Wirings(tmp_path)
    found.load()
    assert not found.all
