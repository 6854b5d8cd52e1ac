"""What is kept of a client's message about what it refuses: bounded, of each resource its own lines, no secrets."""

from __future__ import annotations

from itertools import count

import pytest

from spliceway.xds.protocol.refusal import HIDDEN, LONGEST_ABOUT, LONGEST_MESSAGE, about, mentions, shown_message
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.subscription import Request, Subscription
from spliceway.xds.protocol.typeurls import CLUSTER, TYPES


def refused(message: str, *names: str) -> Subscription:
    """A subscription of which the client has refused these clusters with the message."""
    numbers = count(1)
    state = Subscription(TYPES[CLUSTER], lambda: f"n{next(numbers)}")
    state.receive(Request(type_url=CLUSTER))
    response = state.due(TypeSet("1", {name: Resource(name, "1", name.encode()) for name in names}))
    assert response is not None
    state.receive(Request(type_url=CLUSTER, nonce=response.nonce, error=message))
    return state


def test_about_a_resource() -> None:
    said = "Error: rule-set-1: first\nrule-set-12: second\nx-rule-set-1: third"
    assert about(said, "rule-set-1") == "Error: rule-set-1: first"
    assert about(said, "rule-set-12") == "rule-set-12: second"
    assert about(said, "rule-set-2") == said
    assert about("x" * 5000, "y") == "x" * LONGEST_ABOUT + "… (5000 characters)"


def test_secrets_are_hidden_before_a_message_is_cut() -> None:
    assert shown_message("ab abc a", {"ab", "abc"}) == f"{HIDDEN} {HIDDEN} a"
    at_the_end = "x" * (LONGEST_MESSAGE - 3) + "password"
    assert "pas" not in shown_message(at_the_end, {"password"})


def test_each_resource_has_the_lines_that_are_about_it() -> None:
    first = "Error adding/updating cluster(s) a: no"
    state = refused(f"{first}\nb: neither", "a", "b", "c")
    assert {name: rejected.message for name, rejected in state.rejected.items()} == {"a": first, "b": "b: neither"}
    assert state.acked.keys() == {"c"}


@pytest.mark.parametrize(
    "message", ["name: a: Proto constraint validation failed", "Error adding/updating a...(truncated)"]
)
def test_nobody_knows_what_else_was_applied_where_not_all_is_named(message: str) -> None:
    state = refused(message, "a", "b")
    assert state.rejected.keys() == {"a", "b"}
    assert state.acked == {}


def test_a_name_that_is_cut_off_is_no_name() -> None:
    assert not mentions("rule-set-2: taken, rule-set-1...(truncated)", "rule-set-1")
    assert mentions("rule-set-1... is bad", "rule-set-1")


def test_of_a_message_of_any_size_little_is_kept() -> None:
    names = [f"cluster-{number}" for number in range(300)]
    state = refused("no" * (4 << 20), *names)
    assert state.last_error is not None
    assert len(state.last_error.message) < LONGEST_MESSAGE + 100
    assert state.rejected.keys() == set(names)
    assert all(len(rejected.message) < LONGEST_ABOUT + 100 for rejected in state.rejected.values())


def left_out(message: str) -> set[str]:
    """What a client that had a and b still has, after it has refused a set of b and c with this message."""
    names = count(1)
    state = Subscription(TYPES[CLUSTER], lambda: f"n{next(names)}")
    state.receive(Request(type_url=CLUSTER))
    for version, held in (("1", ("a", "b")), ("2", ("b", "c"))):
        resources = {name: Resource(name, "1", b"") for name in held}
        response = state.due(TypeSet(version, resources))
        assert response is not None
        state.receive(Request(type_url=CLUSTER, nonce=response.nonce, error=message if version == "2" else None))
    return set(state.acked)


def test_what_a_refused_set_leaves_out_is_gone_if_the_rest_was_applied() -> None:
    assert left_out("Error adding/updating cluster(s) c: no") == {"b"}
    assert left_out("c: Proto constraint validation failed") == {"a", "b"}
