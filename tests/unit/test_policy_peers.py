"""Sets of identities as bits: the same answers as asking every selector about every identity."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.entity import ENTITY_SELECTORS, RESERVED_LABELS, Entity
from spliceway.policy.identity import cidr_labels
from spliceway.policy.labels import Operator, Requirement, Selector, pod_labels
from spliceway.policy.model import CidrPeer, Peers
from spliceway.policy.peers import PeerIndex, members, partition

PREFIXES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17", "10.2.0.0/16", "11.0.0.0/8", "10.1.0.1/32")
PREFIXES_6 = ("fd00::/8", "fd00::/64", "fd00:0:0:1::/64", "fe00::/8")
IDENTITIES = dict(RESERVED_LABELS)
IDENTITIES |= {1000 + i: cidr_labels(ip_network(text)) for i, text in enumerate((*PREFIXES, *PREFIXES_6))}
IDENTITIES |= {
    2000 + i: pod_labels(namespace, {"role": role, **extra}, {"team": "x"} if namespace == "one" else {}, "")
    for i, (namespace, role, extra) in enumerate(product(("one", "two"), "abc", ({}, {"zone": "q"}, {"zone": ""})))
}
INDEX = PeerIndex(IDENTITIES)

requirements = st.builds(
    Requirement,
    st.sampled_from(("any", "k8s", "reserved")),
    st.sampled_from(("role", "zone", "world-ipv4", "host", "io.kubernetes.pod.namespace", "missing")),
    st.sampled_from(list(Operator)),
    st.lists(st.sampled_from(("a", "b", "q", "", "one")), max_size=3).map(tuple),
)


def identities(bits: int) -> set[int]:
    return {INDEX.numbers[position] for position in members(bits)}


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(requirements, max_size=3).map(tuple))
def test_selectors(items: tuple[Requirement, ...]) -> None:
    selector = Selector(items)
    assert identities(INDEX.selector(selector)) == {n for n, labels in IDENTITIES.items() if selector.matches(labels)}


def test_cidr_rules_mean_the_prefixes_inside() -> None:
    everything = {
        n: ip_network(labels[0].removeprefix("cidr:")) for n, labels in IDENTITIES.items() if n in range(1000, 2000)
    }
    everything |= {9: ip_network("0.0.0.0/0"), 10: ip_network("::/0")}
    for outer, hole in product(everything.values(), repeat=2):
        expected = {
            number
            for number, prefix in everything.items()
            if prefix.version == outer.version
            and prefix.subnet_of(outer)  # type: ignore[arg-type]
            and not (prefix.version == hole.version and prefix.subnet_of(hole))  # type: ignore[arg-type]
        }
        assert identities(INDEX.peers(Peers(cidrs=(CidrPeer(outer, (hole,)),)))) == expected


def test_entities() -> None:
    for entity in Entity:
        expected = {
            number
            for number, labels in IDENTITIES.items()
            if any(selector.matches(labels) for selector in ENTITY_SELECTORS[entity])
        }
        assert identities(INDEX.peers(Peers(entities=(entity,)))) == expected
    assert identities(INDEX.peers(Peers(entities=(Entity.ALL,)))) == set(IDENTITIES)


@given(st.lists(st.integers(0, 255), max_size=6))
def test_partition(sets: list[int]) -> None:
    parts = partition(255, sets)
    assert sum(part for part, _ in parts) == 255
    assert len({inside for _, inside in parts}) == len(parts)
    for part, inside in parts:
        assert part
        for position in members(part):
            assert inside == {index for index, chosen in enumerate(sets) if chosen >> position & 1}


def test_a_pod_cannot_set_derived_labels() -> None:
    claimed = {
        "io.kubernetes.pod.namespace": "bank",
        "io.cilium.k8s.namespace.labels.team": "blue",
        "io.cilium.k8s.policy.serviceaccount": "root",
        "app": "web",
    }
    assert pod_labels("shop", claimed, {"team": "red"}, "web") == (
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=red",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=web",
        "k8s:io.kubernetes.pod.namespace=shop",
    )
