"""Holding back is never wider than both generations: whatever is judged, one of them judges the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.agent.staging import Overlay, difference, hold_back, same_rows, steered, waiting_units
from spliceway.policy.compile import compile_table
from spliceway.policy.lookup import lookup
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction
from support.agent import NODE, cluster_of, pod, policy

NAMES = ("a", "b", "c", "d")
PORTS = (80, 81, 443)


def _policy(number: int, subject: str, peer: str, ports: list[int], http: bool, deny: bool, egress: bool) -> str:
    text = policy(f"p{number}", subject, *ports, peer=peer, http=["/x"] if http and not deny else [])
    text = text.replace("ingress:", "egress:").replace("fromEndpoints", "toEndpoints") if egress else text
    return text.replace("gress:", "gressDeny:") if deny else text


_POLICIES = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(PORTS), min_size=1, max_size=2, unique=True),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
).map(lambda drawn: [_policy(number, *one) for number, one in enumerate(drawn)])
_PODS = st.sets(st.sampled_from(NAMES), min_size=2).map(
    lambda names: [pod(name, f"10.240.1.{NAMES.index(name) + 10}") for name in sorted(names)]
)


def _judged(table: PolicyTable, name: str, direction: Direction, identity: int, port: int) -> tuple[object, ...]:
    found = lookup(table, table.endpoints[name], direction, identity, 6, port)
    return found.verdict, found.reason, found.rule, found.rule_set


@given(_PODS, _POLICIES, _PODS, _POLICIES, st.data())
@settings(max_examples=150)
def test_every_verdict_is_that_of_one_generation(
    old_pods: list[str], old: list[str], new_pods: list[str], new: list[str], data: st.DataObject
) -> None:
    numbering = Numbering()
    before = compile_table(cluster_of(*old_pods, *old), node=NODE, numbering=numbering, revision=1)
    after = compile_table(cluster_of(*new_pods, *new), node=NODE, numbering=numbering, revision=2)
    pending = data.draw(st.sets(st.sampled_from(sorted(after.rule_sets)))) if after.rule_sets else set()
    target, left = hold_back(before, after, pending, difference(before, after))
    assert (left is None) == (target is after)
    assert set(target.endpoints) == set(after.endpoints)
    held = waiting_units(after, pending) - waiting_units(target, pending)
    # Old classes would take a new identity for any other peer, whatever a deny rule says of it.
    assert not held or set(after.identities) <= set(before.identities)
    for name, endpoint in target.endpoints.items():
        for direction in Direction:
            for identity in after.identities:
                for port in (*PORTS, 22):
                    judged = _judged(target, name, direction, identity, port)
                    fresh = _judged(after, name, direction, identity, port)
                    if (endpoint.policy_id, direction) not in held:
                        assert judged == fresh
                        continue
                    # The same labels under the old policies, as a pod that was there had them.
                    twin = next(
                        other for other, known in before.endpoints.items() if known.policy_id == endpoint.policy_id
                    )
                    assert judged == _judged(before, twin, direction, identity, port)
    assert steered(target) >= {row.rule_set for row in target.rows.values() if row.rule_set}
    assert {row.rule for row in target.rows.values()} - {0} <= set(target.rules)
    if left is not None:
        # What is left out is all that still differs, and once it is ready, it comes.
        for name in ("rows", "classes", "endpoints"):
            old, new = dict(getattr(target, name)), dict(getattr(after, name))
            assert {key for key in old.keys() | new if old.get(key) != new.get(key)} <= getattr(left, name)
        assert not same_rows(target, after, left)
        assert hold_back(target, after, (), left) == (after, None)
        # Held once more, it is the same table.
        again, still = hold_back(target, after, pending, left)
        assert still is not None
        assert same_rows(target, again, difference(target, again))


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 5)), st.dictionaries(st.integers(0, 9), st.none() | st.just(7))
)
def test_an_overlay_is_the_changed_copy(base: dict[int, int], changed: dict[int, int | None]) -> None:
    copy: dict[int, int] = {key: value for key, value in {**base, **changed}.items() if value is not None}
    overlay = Overlay(base, changed)
    assert dict(overlay) == copy
    assert len(overlay) == len(copy)
    assert all((key in overlay, overlay.get(key)) == (key in copy, copy.get(key)) for key in range(11))
