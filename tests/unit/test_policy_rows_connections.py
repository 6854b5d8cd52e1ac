"""Connections between two local endpoints, and the requests on them: tables, read whole, equal the interpreter.

Random policies of every tier with HTTP rules in both directions, some in audit, with headers that read Secrets; then
edits of policies and Secrets, so that rule sets and pairs have to follow.
"""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address, ip_network

import pytest

from spliceway.policy.engine import Engine, Options
from spliceway.policy.entity import Entity
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.lookup import Judgement, identify, lookup, lookup_pair
from spliceway.policy.model import (
    Action,
    Cluster,
    ContainerPort,
    HeaderCondition,
    HttpMatch,
    NetworkPolicy,
    Object,
    Peers,
    Pod,
    PortRange,
    PortRule,
    Rule,
    Secret,
    Spec,
    Tier,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import Mismatch, PolicyTable
from spliceway.policy.verdict import Direction, Protocol, Verdict

TCP = Protocol.TCP
ROLES = ("a", "b", "c")
PODS = tuple(
    Pod(
        "one",
        role,
        {"role": role},
        (ip_address(f"10.240.1.{10 + number}"),),
        "node1",
        ports=(ContainerPort("web", TCP, 80 + number),),
    )
    for number, role in enumerate(ROLES)
)
PORTS = (80, 81, 82, 443)
REQUESTS = tuple(
    HttpRequest.of(method, path, (("host", host), *headers))
    for method in ("GET", "PUT")
    for path, host, headers in (
        ("/a", "a", ()),
        ("/b", "b", (("x-token", "s3cret"),)),
        ("/b", "a", (("x-token", "own"),)),
        ("/c", "b", (("x-token", "s3cret"), ("x-token", "s3cret"))),
        ("/a;x", "a", ()),
        ("/%2f", "a", ()),
    )
)
CLUSTER = Cluster(pod_cidrs=(ip_network("10.240.1.0/24"),))


def _role(role: str) -> Selector:
    return Selector((Requirement("any", "role", Operator.IN, (role,)),))


def _http(rng: random.Random, path: str) -> HttpMatch:
    token = rng.choice((None, None, "own", "secret", "secret", "both"))
    headers: tuple[HeaderCondition, ...] = ()
    if token:
        secret = ("one/keys", rng.choice(("", "token"))) if token != "own" else None
        value = "own" if token != "secret" else None
        headers = (HeaderCondition("X-Token", value, secret, rng.choice((Mismatch.DENY, *Mismatch))),)
    return HttpMatch(
        path, rng.choice(("", "", "GET")), rng.choice(("", "/a", "/[ab]", "/b")), rng.choice(("", "", "a")), headers
    )


def _rule(rng: random.Random, tier: Tier, place: int) -> Rule:
    direction = rng.choice(tuple(Direction))
    weights = (8, 1, 0) if tier is Tier.NORMAL else (2, 1, 4)
    action = rng.choices(tuple(Action), weights)[0]
    path = f"spec.{direction.label}[{place}]"
    peers = rng.choice((None, None, Peers(endpoints=(_role(rng.choice(ROLES)),)), Peers(entities=(Entity.CLUSTER,))))
    entries = []
    for index in range(rng.choice((0, 1, 1, 2) if action is Action.ALLOW else (1, 1, 2))):
        where = f"{path}.toPorts[{index}]"
        first = rng.choice(PORTS)
        ports = rng.choice((PortRange(TCP, first, first), PortRange(TCP, 80, 82), PortRange(TCP, 0, 0, "web")))
        http = None
        if tier is Tier.NORMAL and action is Action.ALLOW and rng.random() < 0.8:
            http = tuple(_http(rng, f"{where}.rules.http[{one}]") for one in range(rng.choice((1, 2))))
        entries.append(PortRule(where, (ports,), http))
    return Rule(path, direction, action, peers, tuple(entries), void=rng.random() < 0.05)


def _policy(rng: random.Random, name: str) -> NetworkPolicy:
    tier = rng.choices((Tier.ADMIN, Tier.NORMAL, Tier.BASELINE), (1, 6, 1))[0]  # support/worlds.py has AUTHORIZATION
    rules = tuple(_rule(rng, tier, place) for place in range(rng.randint(1, 3)))
    applies = tuple(any(rule.direction is direction for rule in rules) for direction in Direction)
    deny = tuple(tier is Tier.NORMAL and has and rng.random() < 0.7 for has in applies)
    subject = rng.choice((Selector(), Selector(), _role(rng.choice(ROLES))))
    spec = Spec(
        "spec", subject, rules, (deny[0], deny[1]), (applies[0], applies[1]), tier=tier, priority=rng.randint(0, 2)
    )
    return NetworkPolicy("CiliumNetworkPolicy", "one", name, (spec,), audit=rng.random() < 0.3)


def _secret(rng: random.Random) -> Secret:
    data = rng.choice(({"token": b"s3cret"}, {"token": b"other"}, {"token": b"a\n"}, {"token": b"s3cret", "b": b"x"}))
    return Secret("one", "keys", data)


@pytest.mark.parametrize("seed", range(20))
def test_connections_and_requests_are_as_the_interpreter_has_them(seed: int) -> None:
    rng = random.Random(seed)
    audit = rng.random() < 0.15
    cluster = Cluster(pod_cidrs=CLUSTER.pod_cidrs, audit=audit)
    engine = Engine(Options(node="node1", pod_cidrs=CLUSTER.pod_cidrs, audit=audit), Numbering())
    objects: list[Object] = [*PODS, _secret(rng), *(_policy(rng, f"p{index}") for index in range(rng.randint(2, 5)))]
    seen: Counter[str] = Counter()
    for revision in range(1, 7):
        removed = [("CiliumNetworkPolicy", "one/p0")] if revision == 4 else []
        removed += [("Secret", "one/keys")] if revision == 5 else []
        for kind, key in removed:
            cluster = cluster.without(kind, key)
        cluster = cluster.with_objects(objects)
        table = engine.apply(objects, removed, revision=revision)
        _compare(cluster, table, seen)
        engine.settle(revision)
        objects = [rng.choice((_policy(rng, f"p{rng.randint(0, 3)}"), _policy(rng, "p1"), _secret(rng)))]
    assert seen["connections"] > 100


def _compare(cluster: Cluster, table: PolicyTable, seen: Counter[str]) -> None:
    for client in PODS:
        for server in PODS:
            for port in PORTS if client is not server else ():
                found = _judge(table, client, server, port)
                connection = Connection(client.addresses[0], server.addresses[0], TCP, port)
                expected = evaluate(cluster, connection)
                rule = table.rules.get(found.rule)
                assert (found.verdict, found.reason, rule) == (expected.verdict, expected.reason, expected.rule)
                seen["connections"] += 1
                seen["audits"] += found.audit
                if found.verdict is Verdict.REDIRECT:
                    rule_set = table.rule_sets[found.rule_set]
                    seen["pairs"] += rule_set.also is not None
                    seen["unenforced"] += rule_set.rules is None
                    for request in REQUESTS:
                        got = decide(request, rule_set, table.rules)
                        whole = evaluate(cluster, connection, request)
                        wanted = whole.http
                        assert wanted is not None
                        assert (got.verdict, got.reason, got.changes) == (wanted.verdict, wanted.reason, wanted.changes)
                        assert (table.rules.get(got.rule), got.nearest_miss) == (whole.http_rule, whole.nearest_miss)
                        seen["denied" if got.verdict is Verdict.DENY else "passed"] += 1


def _judge(table: PolicyTable, client: Pod, server: Pod, port: int) -> Judgement:
    ends = table.endpoints[client.key], table.endpoints[server.key]
    far = [identify(table.ipcache, pod.addresses[0]) for pod in (server, client)]
    egress, ingress = (
        lookup(table, end, direction, identity, TCP, port)
        for end, direction, identity in zip(ends, (Direction.EGRESS, Direction.INGRESS), far, strict=True)
    )
    return lookup_pair(table, egress, ingress)


def test_the_seeds_meet_what_they_are_for() -> None:
    """Without pairs, audits, denied and passed requests among them the test above would say little."""
    seen: Counter[str] = Counter()
    for seed in range(12):
        rng = random.Random(seed)
        audit = rng.random() < 0.15
        objects = [*PODS, _secret(rng), *(_policy(rng, f"p{index}") for index in range(rng.randint(2, 5)))]
        cluster = Cluster(pod_cidrs=CLUSTER.pod_cidrs, audit=audit).with_objects(objects)
        engine = Engine(Options(node="node1", pod_cidrs=CLUSTER.pod_cidrs, audit=audit), Numbering())
        _compare(cluster, engine.apply(objects, revision=1), seen)
    assert all(seen[what] for what in ("audits", "pairs", "unenforced", "denied", "passed")), seen
