"""Whom peers mean, by indices: the same answers as asking every selector about every identity, whatever came first."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.addresses import cidr_labels
from spliceway.policy.entity import ENTITY_SELECTORS, RESERVED_LABELS, Entity
from spliceway.policy.labels import Operator, Requirement, Selector, pod_labels
from spliceway.policy.model import CidrGroup, CidrPeer, EndpointSlice, Peers, Service, ServicePeer
from spliceway.policy.peersets import PeerSets
from spliceway.policy.prefixsets import PrefixCounts
from spliceway.policy.services import Directory
from support.slices import ready

PREFIXES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17", "10.2.0.0/16", "11.0.0.0/8", "10.1.0.1/32")
PREFIXES_6 = ("fd00::/8", "fd00::/64", "fd00:0:0:1::/64", "fe00::/8")
IDENTITIES = dict(RESERVED_LABELS)
IDENTITIES |= {1000 + i: cidr_labels(ip_network(text)) for i, text in enumerate((*PREFIXES, *PREFIXES_6))}
IDENTITIES |= {
    2000 + i: pod_labels(namespace, {"role": role, **extra}, {"team": "x"} if namespace == "one" else {}, "")
    for i, (namespace, role, extra) in enumerate(product(("one", "two"), "abc", ({}, {"zone": "q"}, {"zone": ""})))
}

requirements = st.builds(
    Requirement,
    st.sampled_from(("any", "k8s", "reserved")),
    st.sampled_from(("role", "zone", "world-ipv4", "host", "io.kubernetes.pod.namespace", "missing")),
    st.sampled_from(list(Operator)),
    st.lists(st.sampled_from(("a", "b", "q", "", "one")), max_size=3).map(tuple),
)


def _sets(directory: Directory | None = None, identities: dict[int, tuple[str, ...]] = IDENTITIES) -> PeerSets:
    sets = PeerSets(directory or Directory())
    for number, labels in identities.items():
        sets.add(number, labels)
    return sets


def _members(
    peers: Peers, directory: Directory | None = None, extra: dict[int, tuple[str, ...]] | None = None
) -> set[int]:
    """Identities of these peers: entered after all identities, and before them; both must come out alike."""
    identities = {**IDENTITIES, **(extra or {})}
    after = _sets(directory, identities).use(peers).members
    before = PeerSets(directory or Directory())
    found = before.use(peers)
    for number, labels in identities.items():
        before.add(number, labels)
    assert found.members == after
    assert {number for number in identities if found in before.member(number).sets} == after  # type: ignore[union-attr]
    for number in identities:
        before.remove(number)
    assert found.members == set()
    return after


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(requirements, max_size=3).map(tuple))
def test_selectors(items: tuple[Requirement, ...]) -> None:
    selector = Selector(items)
    expected = {n for n, labels in IDENTITIES.items() if selector.matches(labels)}
    assert _members(Peers(endpoints=(selector,))) == expected


@pytest.mark.parametrize("inside", [False, True])
def test_cidr_rules_mean_the_prefixes_inside(inside: bool) -> None:
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
        assert _members(Peers(cidrs=(CidrPeer(outer, (hole,), inside=inside),))) == expected


def test_blocks_mean_pods_and_nodes_in_them_and_cidrs_do_not() -> None:
    extra = {
        3000: ("block:10.1.0.0/16", *IDENTITIES[2000]),
        3001: ("block:10.1.0.0/17", "reserved:remote-node"),
        3002: ("block:10.0.0.0/8", "reserved:unmanaged"),
    }
    wide, hole = ip_network("10.1.0.0/16"), ip_network("10.1.0.0/17")
    outside = _members(Peers(cidrs=(CidrPeer(wide),)), extra=extra)
    assert outside.isdisjoint(extra)
    assert _members(Peers(cidrs=(CidrPeer(wide, inside=True),)), extra=extra) == outside | {3000, 3001}
    holed = _members(Peers(cidrs=(CidrPeer(wide, (hole,), inside=True),)), extra=extra)
    assert holed & set(extra) == {3000}


def test_entities() -> None:
    for entity in Entity:
        expected = {
            number
            for number, labels in IDENTITIES.items()
            if any(selector.matches(labels) for selector in ENTITY_SELECTORS[entity])
        }
        assert _members(Peers(entities=(entity,))) == expected
    assert _members(Peers(entities=(Entity.ALL,))) == set(IDENTITIES)


def test_nodes() -> None:
    gpu = Selector((Requirement("any", "gpu", Operator.IN, ("yes",)),))
    no_gpu = Selector((Requirement("any", "gpu", Operator.DOES_NOT_EXIST),))
    extra = {
        64: ("node:gpu=yes", "reserved:host"),
        3001: ("node:gpu=yes", "reserved:remote-node"),
        3002: ("node:1:", "node:gpu=yes", "reserved:remote-node"),  # of two nodes, the other without the label
        3003: ("node:gpu=no", "reserved:remote-node"),
    }
    assert _members(Peers(nodes=(gpu,)), extra=extra) == {3001, 3002}
    assert _members(Peers(all_nodes=(gpu,)), extra=extra) == {64, 3001, 3002}
    assert _members(Peers(nodes=(no_gpu,)), extra=extra) == {6, 3002}
    assert _members(Peers(all_nodes=(no_gpu,)), extra=extra) == {1, 6, 3002}
    # What nodes are labelled with is no label of pods or nodes for any other selector.
    assert _members(Peers(endpoints=(gpu,)), extra=extra) == set()


def test_services_and_groups() -> None:
    directory = Directory()
    directory.put_service(None, Service("one", "web", {"role": "a"}))
    directory.put_service(None, Service("one", "outside", None, {"kind": "legacy"}))
    endpoints = ready("10.1.0.1", "192.0.2.1")
    directory.put_slice(None, EndpointSlice("one", "outside-1", "outside", endpoints))
    directory.put_group(None, CidrGroup("office", (ip_network("10.2.0.0/16"),), {"site": "x"}))
    web = {
        n for n, labels in IDENTITIES.items() if {"k8s:role=a", "k8s:io.kubernetes.pod.namespace=one"} <= set(labels)
    }
    assert _members(Peers(services=(ServicePeer("one", "web"),)), directory) == web
    assert _members(Peers(services=(ServicePeer("two", "web"),)), directory) == set()
    legacy = Selector((Requirement("any", "kind", Operator.EXISTS),))
    assert _members(Peers(services=(ServicePeer("", selector=legacy),)), directory) == {1006}
    assert _members(Peers(cidrs=(CidrPeer(group="office"),)), directory) == {1004}
    assert _members(Peers(cidrs=(CidrPeer(group="missing"),)), directory) == set()
    site = Selector((Requirement("any", "site", Operator.IN, ("x",)),))
    assert _members(Peers(cidrs=(CidrPeer(groups=site),)), directory) == {1004}


def test_what_names_stand_for_is_looked_up_again() -> None:
    directory = Directory()
    sets = _sets(directory)
    found = sets.use(Peers(cidrs=(CidrPeer(group="office"),)))
    assert found.members == set()
    directory.put_group(None, CidrGroup("office", (ip_network("10.2.0.0/16"), ip_network("11.0.0.0/8"))))
    sets.renew(found)
    assert found.members == {1004, 1005}
    assert sets.moved == {found: {1004, 1005}}
    assert [(str(atom[0]), times) for atom, times in sets.atoms] == [("10.2.0.0/16", 1), ("11.0.0.0/8", 1)]


@given(st.lists(st.sampled_from((*PREFIXES, *PREFIXES_6)), max_size=6), st.sampled_from((*PREFIXES, *PREFIXES_6)))
def test_longest_prefix(texts: list[str], wanted: str) -> None:
    counts = PrefixCounts()
    for text in texts:
        counts.add(ip_network(text), 1)
    prefix = ip_network(wanted)
    holding = [n for n in map(ip_network, texts) if n.version == prefix.version and prefix.subnet_of(n)]  # type: ignore[arg-type]
    assert counts.longest(prefix) == max(holding, key=lambda n: n.prefixlen, default=None)
    for text in texts:
        counts.add(ip_network(text), -1)
    assert not counts


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
