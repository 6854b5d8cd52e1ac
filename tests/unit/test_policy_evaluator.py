"""Random clusters and questions: the evaluator that remembers has the same answers as the interpreter."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy import evaluator
from spliceway.policy.entity import Entity
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.evaluator import Evaluator
from spliceway.policy.http import HttpRequest
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import (
    Action,
    CidrGroup,
    CidrPeer,
    Cluster,
    ContainerPort,
    EndpointSlice,
    HttpMatch,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Peers,
    Pod,
    PortRange,
    PortRule,
    Rule,
    Service,
    ServicePeer,
    Spec,
    Tier,
)
from spliceway.policy.verdict import Direction, Protocol
from support.cases import load_case_files
from support.slices import ready

CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "10.240.1.0/24", "10.240.1.10/32", "172.30.0.0/24", "203.0.113.0/28", "fd00::/8")
ADDRESSES = (
    "10.240.1.10",
    "10.240.1.11",
    "10.240.1.11",
    "10.240.2.12",
    "10.240.2.12",
    "10.240.2.13",
    "10.240.1.99",
    "172.30.0.1",
    "172.30.0.2",
    "172.30.0.9",
    "203.0.113.9",
    "203.0.113.77",
    "fd00:240:1::10",
    "fd00:240:2::12",
    "2001:db8::1",
)
QUESTIONS = (
    *((6, 80),) * 5,
    *((6, 81), (6, 8080), (17, 80), (17, 53), (1, 8 << 8), (1, 3 << 8 | 1), (58, 128 << 8), (47, 0)),
)
OBJECTS: list[Object] = [
    Namespace("one", {"team": "x"}),
    Namespace("two"),
    Node("node1", (ip_address("172.30.0.1"),), (ip_network("10.240.1.0/24"),), labels={"zone": "a"}),
    Node("node2", (ip_address("172.30.0.2"),), (ip_network("10.240.2.0/24"),), labels={"zone": "b"}),
    Pod("one", "on-host", {"role": "a"}, (ip_address("172.30.0.9"),), "node2", host_network=True),
    CidrGroup("group", (ip_network("203.0.113.0/26"), ip_network("10.240.0.0/16")), {"role": "a"}),
    Service("two", "pods", {"role": "b"}, {"role": "a"}),
    Service("one", "outside", None, {"role": "b"}),
    EndpointSlice("one", "outside", "outside", ready("203.0.113.77", "10.240.2.12")),
    EndpointSlice("default", "api", "kubernetes", ready("203.0.113.9", "172.30.0.2")),
]

some = st.sampled_from
networks = some(CIDRS).map(ip_network)
requirements = st.one_of(
    st.builds(lambda key, value: Requirement("any", key, Operator.IN, (value,)), some(("role", "zone")), some("abq")),
    st.builds(
        Requirement,
        some(("any", "k8s", "reserved")),
        some(("role", "zone", "world-ipv4", "kube-apiserver", "io.cilium.k8s.namespace.labels.team")),
        some((Operator.EXISTS, Operator.DOES_NOT_EXIST)),
    ),
)
selectors = st.builds(lambda items: Selector(tuple(items)), st.lists(requirements, max_size=2))


def few(items: st.SearchStrategy[Any], size: int = 1) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=size).map(tuple)


cidr_peers = st.one_of(
    st.builds(
        lambda cidr, excepts, inside: CidrPeer(cidr, excepts, inside=inside), networks, few(networks), st.booleans()
    ),
    some((CidrPeer(group="group"), CidrPeer(group="none"))),
    st.builds(lambda selector: CidrPeer(groups=selector), selectors),
)
service_peers = st.one_of(
    some((ServicePeer("two", "pods"), ServicePeer("one", "outside"), ServicePeer("one", "none"))),
    st.builds(lambda selector: ServicePeer("", selector=selector), selectors),
)
peers = st.one_of(
    st.none(),
    st.builds(lambda items: Peers(endpoints=items), few(selectors, 2)),
    st.builds(lambda items: Peers(cidrs=items), few(cidr_peers, 2)),
    st.builds(lambda items: Peers(entities=items), few(some(tuple(Entity)))),
    st.builds(lambda items: Peers(nodes=items), few(selectors)),
    st.builds(lambda one, two: Peers(all_nodes=one, cidrs=two), few(selectors), few(cidr_peers)),
    st.builds(lambda items: Peers(services=items), few(service_peers)),
)
ranges = some(
    (
        *(PortRange(Protocol.TCP, 80, 80),) * 4,
        PortRange(Protocol.TCP, 80, 8080),
        PortRange(Protocol.ANY, 0, 65535),
        PortRange(Protocol.UDP, 53, 53),
        PortRange(Protocol.ICMP, 8 << 8, 8 << 8 | 255),
        PortRange(Protocol.ICMPV6, 128 << 8, 128 << 8 | 255),
        PortRange(Protocol.TCP, 0, 0, "web"),
        PortRange(Protocol.ANY, 0, 0, "web"),
    )
)
MATCHES = (HttpMatch("m0", path_regex="/a"), HttpMatch("m1", method_regex="GET"), HttpMatch("m2", host_regex="h"))


@st.composite
def rules(draw: Any, tier: Tier, place: int) -> Rule:
    action = draw(some(tuple(Action) if tier is not Tier.NORMAL else (Action.ALLOW, Action.ALLOW, Action.DENY)))
    path = f"r{place}"
    entries = []
    for number in range(draw(some((0, 0, 1, 2)))):
        http = None
        if tier is Tier.NORMAL and action is Action.ALLOW and draw(some((True, True, False))):
            matches = draw(few(some(MATCHES), 2)) or MATCHES[:1]
            http = tuple(HttpMatch(f"{path}.{number}.{n}", *_rest(match)) for n, match in enumerate(matches))
        entries.append(PortRule(f"{path}.toPorts[{number}]", draw(few(ranges, 2)), http))
    void = tier is Tier.NORMAL and draw(some((*(False,) * 5, True)))
    return Rule(path, draw(some(tuple(Direction))), action, draw(peers), tuple(entries), void)


def _rest(match: HttpMatch) -> tuple[str, str, str]:
    return match.method_regex, match.path_regex, match.host_regex


@st.composite
def policies(draw: Any, number: int) -> NetworkPolicy:
    tier = draw(some((Tier.NORMAL, Tier.NORMAL, Tier.ADMIN, Tier.BASELINE)))
    found = tuple(draw(rules(tier, place)) for place in range(draw(st.integers(0, 4))))
    normal = tier is Tier.NORMAL
    deny = (normal and draw(st.booleans()), normal and draw(st.booleans()))
    spec = Spec(
        "spec",
        draw(st.one_of(st.just(Selector()), selectors)),
        found,
        deny,
        (draw(some((True, True, False))), draw(some((True, True, False)))),
        tier=tier,
        priority=draw(some((0, 1))),
    )
    kind = "CiliumNetworkPolicy" if normal else "ClusterNetworkPolicy"
    audit = draw(st.booleans())
    return NetworkPolicy(kind, "one" if normal else "", f"p{number}", (spec,), audit=audit)


def _http_policy(audit: bool, role: str) -> NetworkPolicy:
    """What random rules say too seldom: HTTP rules that no plain rule voids, at one end or at both."""
    entry = PortRule("http.toPorts[0]", (PortRange(Protocol.TCP, 80, 80),), MATCHES[:1])
    found = tuple(Rule("http", direction, Action.ALLOW, None, (entry,)) for direction in Direction)
    subject = Selector((Requirement("any", "role", Operator.IN, (role,)),))
    spec = Spec("spec", subject, found, (False, False), (True, True))
    return NetworkPolicy("CiliumNetworkPolicy", "one", "http", (spec,), audit=audit)


@st.composite
def clusters(draw: Any) -> Cluster:
    items = list(OBJECTS)
    for number in range(4):
        network = 1 if number < 2 else 2
        addresses = [ip_address(f"10.240.{network}.{number + 10}"), ip_address(f"fd00:240:{network}::{number + 10}")]
        if number == 1 and draw(some((False, False, True))):
            addresses[0] = ip_address("10.240.1.10")
        named = draw(some(((), (ContainerPort("web", Protocol.TCP, 80),), (ContainerPort("web", Protocol.TCP, 8080),))))
        labels = {"role": draw(some("ab")), **draw(some(({}, {"zone": "q"})))}
        items.append(
            Pod(draw(some(("one", "two"))), f"pod{number}", labels, tuple(addresses), f"node{network}", ports=named)
        )
    items += [draw(policies(number)) for number in range(draw(st.integers(1, 5)))]
    if draw(st.booleans()):
        items.append(_http_policy(draw(st.booleans()), draw(some("ab"))))
    pod_cidrs = (ip_network("fd00:240:1::/64"), ip_network("fd00:240:2::/64"))
    return Cluster(pod_cidrs=pod_cidrs, audit=draw(some((False, False, False, True)))).with_objects(items)


REQUESTS = (
    None,
    HttpRequest.of("GET", "/a"),
    HttpRequest.of("POST", "/c"),
    HttpRequest.of("POST", "/c", [("Host", "h")]),
    HttpRequest.of("PUT", "/b;"),
)


@pytest.mark.parametrize("memory", [3, evaluator.MEMORY])
def test_the_evaluator_has_the_interpreters_answers(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it forgets all the time."""
    monkeypatch.setattr(evaluator, "MEMORY", memory)
    seen: set[tuple[str, str]] = set()

    @settings(max_examples=90, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(clusters(), st.integers(0, 2**32))
    def check(cluster: Cluster, seed: int) -> None:
        random = Random(seed)
        remembers = Evaluator(cluster)
        for _ in range(60):
            source = ip_address(random.choice(ADDRESSES))
            destination = ip_address(random.choice([a for a in ADDRESSES if ip_address(a).version == source.version]))
            connection = Connection(source, destination, *random.choice(QUESTIONS))
            request = random.choice(REQUESTS)
            expected = evaluate(cluster, connection, request)
            assert remembers.evaluate(connection, request) == expected
            seen.add((expected.verdict.label, expected.reason.label))
            if expected.http is not None:
                seen.add(("http", expected.http.reason.label))

    check()
    assert seen >= {
        ("allow", "no-policy"),
        ("allow", "policy-allowed"),
        ("allow", "host-allowed"),
        ("allow", "default-deny"),
        ("allow", "policy-denied"),
        ("deny", "default-deny"),
        ("deny", "policy-denied"),
        ("redirect", "redirected"),
        ("http", "http-allowed"),
        ("http", "http-denied"),
        ("http", "http-ambiguous"),
    }


def test_the_evaluator_has_the_interpreters_answers_to_the_table_of_cases() -> None:
    for file in load_case_files():
        remembers = Evaluator(file.cluster)
        for case in file.cases:
            connection = Connection(case.source, case.destination, case.protocol, case.port)
            expected = evaluate(file.cluster, connection, case.request)
            assert remembers.evaluate(connection, case.request) == expected, case.id


def test_addresses_of_two_families_are_no_connection() -> None:
    with pytest.raises(ValueError, match="family"):
        Evaluator(Cluster()).evaluate(Connection(ip_address("10.0.0.1"), ip_address("::1"), 6, 80))
