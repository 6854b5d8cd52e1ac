"""The node's addresses beside those that its Node object names."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from spliceway.agent.hostaddresses import with_own
from spliceway.policy.model import Node

NODE = Node(
    "node1", (ip_address("10.10.0.2"),), (ip_network("10.240.1.0/24"), ip_network("fd00:240:1::/64")), labels={"a": "b"}
)


def test_those_in_its_pods_prefixes_are_its_own() -> None:
    own = ("127.0.0.1", "10.10.0.2", "10.240.1.1", "10.240.1.0", "10.240.2.1", "192.0.2.1", "fd00:240:1::1", "fe80::1")
    found = with_own(NODE, map(ip_address, own))
    assert list(map(str, found.addresses)) == ["10.10.0.2", "10.240.1.0", "10.240.1.1", "fd00:240:1::1"]
    assert (found.name, found.labels) == ("node1", {"a": "b"})


def test_nothing_to_add() -> None:
    assert with_own(NODE, [ip_address("10.10.0.2")]) is NODE
    assert with_own(Node("node1"), [ip_address("10.240.1.1")]).addresses == ()
