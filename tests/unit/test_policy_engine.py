"""The incremental engine: after any changes its table is what a compile from scratch gives, and what it costs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy.compile import compile_table
from spliceway.policy.engine import Engine, Options
from spliceway.policy.evaluate import Connection, evaluate, evaluate_half
from spliceway.policy.lookup import Judgement, identify, lookup, lookup_pair
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import HttpRule, PolicyTable, RuleSet
from spliceway.policy.verdict import Direction, Protocol
from support.worlds import POD_CIDRS, PORTS, World

EXAMPLES = int(os.environ.get("SPLICEWAY_ENGINE_EXAMPLES", "60"))
PROTOCOLS = (Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, 47)


def contents(table: PolicyTable) -> dict[int, Any]:
    """What each rule set asks, without numbers."""

    def rules_of(found: tuple[Any, ...] | None) -> Any:
        return (
            None
            if found is None
            else [(table.rules[rule.rule], rule.method, rule.path, rule.headers, tests_of(rule)) for rule in found]
        )

    def tests_of(rule: HttpRule) -> Any:
        return [
            [(table.rules[test.rule], test.negated, test.wanted, test.unless) for test in group] for group in rule.tests
        ]

    def content(rule_set: RuleSet) -> Any:
        also = content(rule_set.also) if rule_set.also is not None else None
        return rule_set.name, rules_of(rule_set.rules), rules_of(rule_set.audit), also

    return {number: content(rule_set) for number, rule_set in table.rule_sets.items()}


def meaning(table: PolicyTable) -> dict[str, Any]:
    """A table without numbers: what each stands for in its place."""
    subjects = {policy.policy_id: table.identities[policy.identity] for policy in table.endpoints.values()}
    sets = contents(table)
    rows: dict[Any, set[Any]] = {}
    for key, row in table.rows.items():
        told = (key[3:], row.verdict, row.reason, table.rules.get(row.rule), sets.get(row.rule_set))
        assert (row.rule in table.rules) == bool(row.rule)
        assert (row.rule_set in table.rule_sets) == bool(row.rule_set)
        rows.setdefault(key[:3], set()).add(repr(told))
    halves: dict[Any, Any] = {}
    for class_key, class_id in table.classes.items():
        policy_id, direction, identity = class_key
        assert class_id
        halves[subjects[policy_id], direction, table.identities[identity]] = sorted(
            rows.get((policy_id, direction, class_id), ())
        )
    for (policy_id, direction, class_id), found in rows.items():
        if not class_id:
            halves[subjects[policy_id], direction, "others"] = sorted(found)
        else:
            assert class_id in {c for k, c in table.classes.items() if k[:2] == (policy_id, direction)}, "nobody's rows"
    return {
        "identities": sorted(table.identities.values()),
        "ipcache": {prefix: table.identities[number] for prefix, number in table.ipcache.items()},
        "endpoints": {
            key: (table.identities[policy.identity], policy.ingress, policy.egress)
            for key, policy in table.endpoints.items()
        },
        "halves": halves,
        "rules": sorted(map(str, table.rules.values())),
        "rule sets": sorted(map(repr, sets.values())),
        "pairs": sorted(repr((sets[a], sets[b], sets[both])) for (a, b), both in table.pairs.items()),
        "sizes": (len(table.classes), len(table.rows), len(table.rule_sets), len(table.pairs)),
    }


def check_delta(old: PolicyTable, new: PolicyTable) -> None:
    """What the delta does not name is as it was."""
    assert new.delta is not None
    assert new.delta.base == old.revision
    for name in ("identities", "ipcache", "endpoints", "classes", "rows", "rule_sets", "pairs"):
        before: Mapping[Any, Any] = getattr(old, name)
        after: Mapping[Any, Any] = getattr(new, name)
        different = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        assert different <= getattr(new.delta, name), name


def check_verdicts(world: World, table: PolicyTable, asked: int) -> None:
    """The table gives what the interpreter says, for halves and for whole connections."""
    cluster = world.cluster
    addresses = world.addresses()
    pods = [pod for pod in cluster.pods.values() if pod.node == "node1" and not pod.host_network and pod.addresses]
    for _ in range(asked if pods else 0):
        pod = world.random.choice(pods)
        own = world.random.choice(pod.addresses)
        peer = world.random.choice([address for address in addresses if address.version == own.version])
        if _claims(cluster.pods.values(), own) != 1 or any(own in node.addresses for node in cluster.nodes.values()):
            continue  # whose connection it is would be a guess
        direction = world.random.choice(list(Direction))
        protocol, port = world.random.choice(PROTOCOLS), world.random.choice(PORTS)
        port = port if protocol in (6, 17, 132) else world.random.choice((0, 8 << 8, 8 << 8 | 1, 3 << 8))
        ends = (peer, own) if direction is Direction.INGRESS else (own, peer)
        connection = Connection(*ends, int(protocol), port)
        half = evaluate_half(cluster, pod, direction, connection)
        found = lookup(table, table.endpoints[pod.key], direction, identify(table.ipcache, peer), int(protocol), port)
        told = (found.verdict, found.reason, table.rules.get(found.rule))
        assert told == (half.verdict, half.reason, half.rule), (pod.key, direction, connection, half)
        other = next((other for other in pods if peer in other.addresses), None)
        if other is None or _claims(cluster.pods.values(), peer) != 1 or peer == own:
            continue
        if any(peer in node.addresses for node in cluster.nodes.values()):
            continue
        decision = evaluate(cluster, connection)
        client, server = (other, pod) if direction is Direction.INGRESS else (pod, other)
        halves: list[Judgement] = []
        for one, way, at in ((client, Direction.EGRESS, ends[1]), (server, Direction.INGRESS, ends[0])):
            identity = identify(table.ipcache, at)
            halves.append(lookup(table, table.endpoints[one.key], way, identity, int(protocol), port))
        both = lookup_pair(table, *halves)
        assert (both.verdict, both.reason, table.rules.get(both.rule)) == (
            decision.verdict,
            decision.reason,
            decision.rule,
        )
        assert (both.rule_set in table.rule_sets) == bool(both.rule_set)


def check_numbers(numbering: Numbering, table: PolicyTable) -> None:
    """Exactly what a settled table uses has numbers."""
    saved = numbering.to_dict()
    numbers = {name: set(pool["numbers"].values()) for name, pool in saved.items() if isinstance(pool, dict)}
    assert numbers["identities"] | numbers["cidrs"] | numbers["hosts"] == {n for n in table.identities if n > 10}
    assert numbers["policies"] == {policy.policy_id for policy in table.endpoints.values()}
    assert numbers["rules"] == {*table.rules}
    assert numbers["rule_sets"] == {*table.rule_sets}
    classes = {
        (policy_id, direction, number)
        for policy_id, direction, pool in saved["classes"]
        for number in pool["numbers"].values()
    }
    assert classes == {(key.policy_id, key.direction, number) for key, number in table.classes.items()}


def _claims(pods: Any, address: Any) -> int:
    found: list[Pod] = [pod for pod in pods if address in pod.addresses]
    return len(found)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(st.integers(0, 1 << 40), st.booleans(), st.sampled_from((False, False, False, True)))
def test_what_changes_gives_what_a_compile_from_scratch_gives(seed: int, http: bool, audit: bool) -> None:
    world = World(seed, audit=audit, http=http)
    numbering = Numbering()
    engine = Engine(Options(node="node1", pod_cidrs=POD_CIDRS, audit=world.audit), numbering)
    table = engine.apply(world.objects.values(), revision=1)
    assert table.delta is None
    for revision in range(2, 9):
        check_verdicts(world, table, 12)
        scratch = compile_table(world.cluster, node="node1", numbering=Numbering(), revision=revision)
        assert meaning(table) == meaning(scratch)
        changed, removed = world.change()
        new = engine.apply(changed, removed, revision=revision)
        check_delta(table, new)
        if revision % 2:
            engine.settle(revision)
            again = compile_table(
                world.cluster, node="node1", numbering=Numbering.from_dict(numbering.to_dict()), revision=0
            )
            assert {**again.identities} == {**new.identities}, "numbers that are in use were released"
            assert {**again.endpoints} == {**new.endpoints}
            assert {**again.rules} == {**new.rules}
            check_numbers(numbering, new)
        table = new
    # When everything is gone nothing is left, and no number is taken.
    empty = engine.apply((), list(world.objects), revision=100)
    check_delta(table, empty)
    engine.settle(100)
    assert meaning(empty) == meaning(
        compile_table(Cluster(pod_cidrs=POD_CIDRS), node="node1", numbering=Numbering(), revision=0)
    )
    saved = numbering.to_dict()
    left = {name: pool["numbers"] for name, pool in saved.items() if isinstance(pool, dict)}
    assert not any(left.values())
    assert saved["classes"] == []
