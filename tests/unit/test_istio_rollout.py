"""The order in which AuthorizationPolicies come and go, against what Istio makes of them at each moment."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.istio.rollout import Name, Shape, Step, bridge, rollout
from spliceway.policy.model import Pod

ROOT = "istio-system"
REQUESTS = range(4)
#: Pods of two namespaces, with every combination of two labels or without.
PODS = [
    Pod(namespace, f"{app}-{tier}", {key: value for key, value in (("app", app), ("tier", tier)) if value})
    for namespace, app, tier in product(("a", "b"), ("x", "y", ""), ("p", "q", ""))
]
#: What a policy means: whom, and which requests.
Meaning = tuple[Shape, frozenset[int]]
Policies = Mapping[Name, Meaning]

_labels = st.sampled_from([(), (("app", "x"),), (("app", "y"),), (("tier", "p"),), (("app", "x"), ("tier", "p"))])
_requests = st.frozensets(st.sampled_from(REQUESTS))


@st.composite
def policies(draw: st.DrawFn, prefix: str, *, narrow: bool = False) -> dict[Name, Meaning]:
    found: dict[Name, Meaning] = {}
    for number in range(draw(st.integers(0, 4))):
        namespace = "a" if narrow else draw(st.sampled_from(["a", "a", "b", ROOT]))
        labels = () if narrow else draw(_labels)
        shape = Shape(namespace, f"{prefix}{number}", draw(st.sampled_from(["ALLOW", "ALLOW", "DENY"])), labels)
        found[shape.key] = (shape, draw(_requests))
    return found


def passes(found: Policies, pod: Pod, request: int) -> bool:
    """Istio, «AuthorizationPolicy»: DENY first; then, if there is any ALLOW policy, one of them must mean it."""
    about = [(shape, meant) for shape, meant in found.values() if shape.covers(pod, ROOT)]
    if any(shape.action == "DENY" and request in meant for shape, meant in about):
        return False
    allowing = [meant for shape, meant in about if shape.action == "ALLOW"]
    return not allowing or any(request in meant for meant in allowing)


def states(before: Policies, after: Policies) -> list[Policies]:
    """Everything that there is, one write after the other, in the worst order within each step."""
    there = dict(before)
    unwanted = [key for key in before if key not in after]
    shapes = {key: shape for key, (shape, _) in before.items()}
    found: list[Policies] = [dict(there)]
    for step in rollout(shapes, {key: shape for key, (shape, _) in after.items()}, unwanted, ROOT):
        for shape in step.shapes:
            if step.verb == "delete":
                del there[shape.key]
            else:
                there[shape.key] = (shape, frozenset(REQUESTS)) if shape.bridge else after[shape.key]
            found.append(dict(there))
    assert there == after
    return found


@settings(max_examples=300, deadline=None)
@given(policies("old"), policies("new"), policies("same"))
def test_nothing_passes_that_neither_the_old_policies_nor_the_new_ones_let_pass(
    old: dict[Name, Meaning], new: dict[Name, Meaning], same: dict[Name, Meaning]
) -> None:
    before, after = {**old, **same}, {**new, **same}
    for state in states(before, after):
        for pod, request in product(PODS, REQUESTS):
            if passes(state, pod, request):
                assert passes(before, pod, request) or passes(after, pod, request), (pod.key, request, state)


@settings(max_examples=300, deadline=None)
@given(policies("old", narrow=True), policies("new", narrow=True), policies("same", narrow=True))
def test_at_one_workload_nothing_is_denied_either_that_both_let_pass(
    old: dict[Name, Meaning], new: dict[Name, Meaning], same: dict[Name, Meaning]
) -> None:
    before, after = {**old, **same}, {**new, **same}
    pod = PODS[0]
    for state in states(before, after):
        for request in REQUESTS:
            told = (passes(before, pod, request), passes(after, pod, request))
            assert passes(state, pod, request) in told, (request, state)


def test_several_policies_where_there_were_none_come_over_a_bridge() -> None:
    first, second = Shape("a", "one", "ALLOW"), Shape("a", "two", "ALLOW", (("app", "x"),))
    wanted = {one.key: one for one in (first, second)}
    over = (bridge(first), bridge(second))
    assert rollout({}, wanted, (), ROOT) == (
        Step("create", over),
        Step("create", (first, second)),
        Step("delete", over),
    )
    # One alone, or beside one that may be about the same workloads, needs none.
    assert rollout({}, {first.key: first}, (), ROOT) == (Step("create", (first,)),)
    there = Shape(ROOT, "all", "ALLOW", (("tier", "p"),))
    assert [step.verb for step in rollout({there.key: there}, wanted, (), ROOT)] == ["create"]


def test_a_bridge_that_was_left_goes_when_all_is_there() -> None:
    first, second = Shape("a", "one", "ALLOW"), Shape("a", "two", "ALLOW")
    left = bridge(first)
    there = {one.key: one for one in (left, first)}
    steps = rollout(there, {one.key: one for one in (first, second)}, [left.key], ROOT)
    assert steps == (Step("create", (second,)), Step("delete", (left,)))


def test_with_everything_there_nothing_is_to_be_done() -> None:
    one = Shape("a", "one", "DENY")
    assert rollout({one.key: one}, {one.key: one}, (), ROOT) == ()


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        (Shape("a", "o", "ALLOW", (("app", "y"),)), False),
        (Shape("a", "o", "ALLOW", (("tier", "p"),)), True),
        (Shape("b", "o", "ALLOW", (("app", "x"),)), False),
        (Shape(ROOT, "o", "ALLOW", (("tier", "p"),)), True),
        (Shape("a", "o", "ALLOW", (), ("web",)), False),
    ],
)
def test_which_policies_may_be_about_one_workload(other: Shape, overlaps: bool) -> None:
    shape = Shape("a", "x", "ALLOW", (("app", "x"),))
    assert shape.overlaps(other, ROOT) is other.overlaps(shape, ROOT) is overlaps


def test_at_waypoints_policies_of_one_service_overlap() -> None:
    web = Shape("a", "x", "ALLOW", (), ("web", "api"))
    assert web.overlaps(Shape("a", "y", "ALLOW", (), ("api",)), ROOT)
    assert not web.overlaps(Shape("a", "y", "ALLOW", (), ("db",)), ROOT)


def test_names_of_bridges_are_names() -> None:
    long = bridge(Shape("a", "n" * 253, "ALLOW"))
    assert len(long.name) == 253
    assert long.name.endswith("n-bridge")
