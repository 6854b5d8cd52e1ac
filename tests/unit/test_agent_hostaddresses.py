"""The node's addresses beside those that its Node object names, and what each of them means."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from spliceway.agent.hostaddresses import Held, Own, OwnNode, sort_out, with_own
from spliceway.policy.model import Node

NODE = Node(
    "node1", (ip_address("10.10.0.2"),), (ip_network("10.240.1.0/24"), ip_network("fd00:240:1::/64")), labels={"a": "b"}
)


def held(*pairs: tuple[str, str]) -> Own:
    return sort_out(Held(ip_address(address), device) for device, address in pairs)


def addresses(*texts: str) -> frozenset[object]:
    return frozenset(map(ip_address, texts))


def test_every_address_is_the_hosts_but_those_that_mean_something_else() -> None:
    found = held(
        ("lo", "127.0.0.1"),
        ("lo", "::1"),
        ("lo", "10.99.0.1"),  # of a node whose address is routed (BGP)
        ("eth0", "10.10.0.2"),
        ("eth0", "fd00:10::2"),
        ("eth0", "fe80::1"),
        ("cni0", "10.240.1.1"),
        ("docker0", "172.17.0.1"),
        ("flannel.1", "10.240.1.0"),
        ("kube-ipvs0", "10.96.0.1"),
        ("kube-ipvs0", "10.10.0.2"),  # an external IP that is the node's own
        ("kube-dummy-if", "10.96.0.2"),
        ("spliceway1", "127.83.87.1"),
        ("spliceway0", "fd00::99"),
        ("nodelocaldns", "169.254.20.10"),
        ("nodelocaldns", "10.96.0.10"),
        ("nodelocaldns", "fd00:96::10"),
        ("nodelocaldns", "fe80::2"),
        ("kube-ipvs0", "10.96.0.10"),
    )
    assert found.host == addresses("10.99.0.1", "10.10.0.2", "fd00:10::2", "10.240.1.1", "172.17.0.1", "10.240.1.0")
    assert found.dns == addresses("169.254.20.10", "10.96.0.10", "fd00:96::10")


def test_the_caches_own_address_is_known_at_any_device() -> None:
    found = held(("dns0", "169.254.20.10"), ("dns0", "10.10.0.9"))
    assert (found.host, found.dns) == (addresses("10.10.0.9"), addresses("169.254.20.10"))


def test_the_node_has_what_it_has() -> None:
    told = Node("node1", NODE.addresses, NODE.pod_cidrs, labels=NODE.labels, further=(ip_address("10.240.1.1"),))
    found = with_own(told, held(("eth0", "10.10.0.2"), ("cni0", "fd00:240:1::1"), ("docker0", "172.17.0.1")))
    assert list(map(str, found.addresses)) == ["10.10.0.2", "172.17.0.1", "fd00:240:1::1"]
    assert (found.name, found.labels, found.further) == ("node1", {"a": "b"}, ())


def test_an_object_that_names_the_caches_address_does_not_make_it_the_hosts() -> None:
    node = Node("node1", (ip_address("10.10.0.2"), ip_address("10.96.0.10")))
    assert with_own(node, held(("nodelocaldns", "10.96.0.10"))).addresses == (ip_address("10.10.0.2"),)


def test_changes_are_made_whole_and_told_once() -> None:
    node, key = OwnNode("node1"), ("Node", "node1")
    node.own = held(("eth0", "10.10.0.2"), ("docker0", "172.17.0.1"))
    first: dict = {key: NODE, ("Pod", "a/b"): None}
    node.complete(first)
    assert (first[key].addresses, len(first)) == ((ip_address("10.10.0.2"), ip_address("172.17.0.1")), 2)
    again: dict = {key: NODE}
    node.complete(again)
    assert again == {}, "nothing is new"
    node.own = held(("eth0", "10.10.0.2"))
    node.complete(again)
    assert again[key].addresses == (ip_address("10.10.0.2"),)


def test_a_node_without_an_object_has_its_addresses() -> None:
    node, key = OwnNode("node1"), ("Node", "node1")
    node.own = held(("eth0", "10.10.0.2"))
    changes: dict = {}
    node.complete(changes)
    assert changes == {key: Node("node1", (ip_address("10.10.0.2"),))}
    changes = {key: NODE}
    node.complete(changes)
    assert changes[key].labels == {"a": "b"}
    changes = {key: None}
    node.complete(changes)
    assert changes == {key: Node("node1", (ip_address("10.10.0.2"),))}
