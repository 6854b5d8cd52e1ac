"""The state-of-the-world machine, one test for each rule of docs/xds.md that concerns it; the name has the number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import pytest

from spliceway.xds.protocol.ledger import WILDCARD, Kind, Ledger, Response
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.subscription import KINDS, Request, Subscription
from spliceway.xds.protocol.typeurls import TYPES

BY_SHORT = {info.short: info for info in TYPES.values()}


def held(version: str, *items: str) -> TypeSet:
    """`a@1` is resource a in version 1; without `@` it has the set's version."""
    pairs = [item.split("@") if "@" in item else [item, version] for item in items]
    return TypeSet(version, {name: Resource(name, own, f"{name} {own}".encode()) for name, own in pairs})


def subscription(short: str) -> Subscription:
    numbers = count(1)
    return Subscription(BY_SHORT[short], lambda: f"n{next(numbers)}")


def names(response: Response | None) -> list[str]:
    assert response is not None
    return [resource.name for resource in response.resources]


def acked(state: Ledger) -> dict[str, str]:
    """Name -> acknowledged version."""
    return {name: resource.version for name, resource in state.acked.items()}


class Client:
    """Speaks as Envoy does: the nonce of the last response, the version it last accepted."""

    def __init__(self, short: str, *wanted: str) -> None:
        self.state = subscription(short)
        self.url = self.state.info.url
        self.wanted = wanted
        self.version = self.nonce = ""
        self.last = self.say(*wanted)

    def say(self, *wanted: str, error: str | None = None, nonce: str | None = None) -> Kind:
        self.wanted = wanted
        return self.state.receive(
            Request(self.url, wanted, self.version, self.nonce if nonce is None else nonce, error)
        )

    def take(self, sent: Response | None) -> Response:
        assert sent is not None
        self.nonce = sent.nonce
        return sent

    def ack(self, sent: Response | None) -> Kind:
        self.version = self.take(sent).version
        return self.say(*self.wanted)

    def nack(self, sent: Response | None, message: str = "no") -> Kind:
        self.take(sent)
        return self.say(*self.wanted, error=message)

    def settle(self, state: TypeSet) -> list[list[str]]:
        """Acknowledge everything that is due; the names of each response."""
        found = []
        while (response := self.state.due(state)) is not None:
            found.append(names(response))
            assert self.ack(response) is Kind.ACK
        return found


def test_the_table_of_meanings_is_complete() -> None:
    nonces = {nonce for nonce, _ in KINDS}
    assert len(nonces) == 4
    assert set(KINDS) == {(nonce, error) for nonce in nonces for error in (False, True)}


def test_rule_1_a_nack_is_error_detail_only_whatever_the_version() -> None:
    client = Client("RDS", "a")
    client.settle(held("1", "a"))
    client.say("a", "b")
    response = client.state.due(held("1", "a", "b"))
    assert names(response) == ["b"]
    assert client.version == "1" == response.version  # type: ignore[union-attr]
    assert client.nack(response, "b is bad") is Kind.NACK
    assert client.state.last_error is not None
    assert client.state.last_error.resources == ("b",)
    assert client.state.last_error.message == "b is bad"
    assert client.state.refused(held("1", "a", "b")) == ("b",)
    assert acked(client.state) == {"a": "1"}


def test_rule_1_an_empty_message_is_a_nack_all_the_same() -> None:
    client = Client("CDS")
    assert client.nack(client.state.due(held("1", "a")), "") is Kind.NACK
    assert client.state.refused(held("1", "a")) == ("a",)


def test_rule_2_a_stale_nonce_gets_no_response() -> None:
    client = Client("RDS", "a")
    client.settle(held("1", "a"))
    old = client.nonce
    client.take(client.state.due(held("2", "a")))
    assert client.say("a", "b", nonce=old) is Kind.STALE
    assert client.state.names == {"a"}
    assert client.state.due(held("2", "a", "b@2")) is None
    # The ACK that follows has all names again, as Envoy sends it.
    assert client.say("a", "b") is Kind.ACK
    assert names(client.state.due(held("2", "a", "b"))) == ["b"]


@pytest.mark.parametrize(("version", "nonce"), [("77", ""), ("", "foreign-9"), ("77", "foreign-9")])
@pytest.mark.parametrize("error", [None, "left over from the stream before"])
def test_rule_3_a_first_request_is_initial_whatever_it_says(version: str, nonce: str, error: str | None) -> None:
    state = subscription("CDS")
    assert state.receive(Request(state.info.url, (), version, nonce, error)) is Kind.INITIAL
    assert names(state.due(held("77", "a", "b"))) == ["a", "b"]
    assert state.last_error is None


def test_rule_3_a_foreign_nonce_is_not_stale_while_nothing_was_sent() -> None:
    state = subscription("RDS")
    for names in (("gone",), ("gone", "a")):
        state.receive(Request(state.info.url, names, "77", "foreign-9"))
        assert state.due(held("1", "a")) is None or names == ("gone", "a")
    assert state.names == {"gone", "a"}


@pytest.mark.parametrize("short", ["CDS", "LDS", "RDS"])
def test_rule_4_neither_an_ack_nor_an_identical_update_causes_a_response(short: str) -> None:
    client = Client(short, *(["a", "b"] if short == "RDS" else []))
    client.settle(held("1", "a", "b"))
    assert client.state.due(held("1", "a", "b")) is None
    assert client.state.due(held("2", "a@1", "b@1")) is None


@pytest.mark.parametrize("short", ["LDS", "RDS"])
def test_rule_5_nothing_is_resent_after_a_nack_until_the_content_changes(short: str) -> None:
    client = Client(short, *(["a"] if short == "RDS" else []))
    client.settle(held("1", "a"))
    bad = held("2", "a")
    client.nack(client.state.due(bad))
    assert client.state.due(bad) is None
    assert client.say(*client.wanted) is Kind.SUBSCRIBE  # the same nonce again is no ACK of what was refused
    assert client.state.due(bad) is None
    assert (client.state.acked_version, client.state.last_sent.version) == ("1", "2")  # type: ignore[union-attr]
    assert client.state.refused(bad) == ("a",)
    assert client.state.missing(bad) == ("a",)
    fixed = held("3", "a")
    assert client.settle(fixed) == [["a"]]
    assert client.state.refused(fixed) == ()
    assert client.state.missing(fixed) == ()
    assert client.state.last_error is not None  # what was last wrong stays on record
    assert client.state.last_error.version == "2"


def test_rule_6_of_a_full_set_the_good_ones_apply_and_the_message_names_the_bad() -> None:
    client = Client("LDS")
    client.settle(held("1", "old"))
    state = held("2", "old@1", "rule-1", "rule-12")
    client.nack(client.state.due(state), "Error adding/updating listener(s) rule-12: cannot bind")
    assert client.state.refused(state) == ("rule-12",)
    assert acked(client.state) == {"old": "1", "rule-1": "2"}
    assert client.state.acked_version == "1"
    assert client.state.missing(state) == ("rule-12",)


def test_rule_6_a_message_that_names_nobody_means_all_that_were_new() -> None:
    client = Client("LDS")
    client.settle(held("1", "old"))
    state = held("2", "old@1", "good", "bad")
    client.nack(client.state.due(state), "something is wrong with x-good and bad-x")
    assert client.state.refused(state) == ("bad", "good")
    assert acked(client.state) == {"old": "1"}
    later = held("3", "old@1", "good@2")
    assert client.state.refused(later) == ()  # it will be tried again without the other
    assert [sorted(names) for names in client.settle(later)] == [["good", "old"]]
    assert client.state.missing(later) == ()


def test_rule_8_an_empty_list_is_everything_until_something_was_named() -> None:
    client = Client("CDS")
    state = held("1", "a", "b")
    assert client.settle(state) == [["a", "b"]]
    client.say(WILDCARD, "a")
    assert client.state.wildcard
    assert client.settle(state) == []
    client.say("a")
    assert not client.state.wildcard
    assert client.settle(held("2", "a", "b")) == [["a"]]
    client.say()
    assert not client.state.active
    assert client.settle(held("3", "a", "b")) == []


def test_rule_8_an_empty_list_is_nothing_for_routes() -> None:
    client = Client("RDS")
    assert client.settle(held("1", "a")) == []


def test_rule_9_full_sets_are_sent_whole_and_removal_is_absence() -> None:
    client = Client("LDS")
    assert client.settle(held("1", "a", "b")) == [["a", "b"]]
    assert client.settle(held("2", "a", "b@1")) == [["a", "b"]]
    gone = held("3", "a@2")
    assert client.state.missing(gone) == ("b",)
    assert client.settle(gone) == [["a"]]
    assert client.state.missing(gone) == ()
    assert client.settle(held("4")) == [[]]


def test_rule_9_routes_are_partial_and_removal_says_nothing() -> None:
    client = Client("RDS", "a", "b")
    assert client.settle(held("1", "a", "b")) == [["a", "b"]]
    assert client.settle(held("2", "a", "b@1")) == [["a"]]
    assert client.settle(held("2b", "a", "b")) == [["a"], ["b"]]
    assert client.settle(held("2", "a", "b@1")) == [["a"], ["b"]]
    assert client.settle(held("3", "a@2")) == []
    assert client.settle(held("4", "a@2", "b@1")) == [["b"]]


def test_new_routes_come_together_and_one_by_one_when_that_is_refused() -> None:
    client = Client("RDS", "a", "b", "c")
    state = held("1", "a", "b", "c")
    together = client.state.due(state)
    assert names(together) == ["a", "b", "c"]
    client.nack(together, "b is bad")
    assert client.state.refused(state) == ()  # whose fault it was shows when they come alone
    assert client.state.missing(state) == ("a", "b", "c")
    client.ack(client.state.due(state))
    client.nack(client.state.due(state), "bad")
    client.ack(client.state.due(state))
    assert client.state.due(state) is None
    assert client.state.refused(state) == client.state.missing(state) == ("b",)
    assert acked(client.state) == {"a": "1", "c": "1"}
    assert client.settle(held("2", "a@1", "b", "c@1")) == [["b"]]


def test_what_a_client_has_and_lives_by_comes_before_what_is_new() -> None:
    client = Client("RDS", "a", "b", "c")
    client.settle(held("1", "a"))
    state = held("2", "a", "b", "c")
    edited = client.state.due(state)
    assert names(edited) == ["a"]
    client.nack(edited)
    together = client.state.due(state)
    assert names(together) == ["b", "c"]
    client.nack(together)
    assert client.settle(state) == [["b"], ["c"]]
    assert client.state.refused(state) == ("a",)


@pytest.mark.parametrize("short", ["CDS", "RDS"])
def test_rule_10_a_name_that_does_not_exist_yet_is_pushed_when_it_appears(short: str) -> None:
    client = Client(short, "a", "later")
    client.settle(held("1", "a"))
    assert client.settle(held("2", "a@1", "later")) == ([["a", "later"]] if short == "CDS" else [["later"]])


def test_a_name_that_was_dropped_and_asked_for_again_is_sent_again() -> None:
    client = Client("RDS", "a", "b")
    state = held("1", "a", "b")
    client.settle(state)
    client.say("a")
    client.say("a", "b")
    assert client.settle(state) == [["b"]]


@pytest.mark.parametrize("asked", [("a", "a"), ("a", WILDCARD, "a")])
def test_rule_14_no_name_twice(asked: tuple[str, ...]) -> None:
    client = Client("CDS", *asked)
    found = client.settle(held("1", "a", "b"))
    assert all(len(set(each)) == len(each) for each in found)


def test_rule_17_one_response_is_outstanding_and_versions_coalesce() -> None:
    client = Client("RDS", "a")
    first = client.state.due(held("1", "a"))
    for version in range(2, 50):
        assert client.state.due(held(str(version), "a")) is None
    client.ack(first)
    response = client.state.due(held("50", "a"))
    assert response is not None
    assert response.version == "50"


def test_rule_21_versions_belong_to_one_type_and_nonces_are_never_used_twice() -> None:
    client = Client("RDS", "a", "b")
    seen = []
    for state in (held("1", "a", "b"), held("2", "a", "b")):
        while (response := client.state.due(state)) is not None:
            seen.append(response.nonce)
            client.ack(response)
    assert len(set(seen)) == len(seen) == 3


def test_requests_before_the_first_response_change_what_is_wanted() -> None:
    client = Client("RDS", "a")
    assert client.last is Kind.INITIAL
    assert client.say("a", "b") is Kind.SUBSCRIBE
    assert client.settle(held("1", "a", "b")) == [["a", "b"]]


def test_before_the_first_answer_a_full_set_counts_as_missing() -> None:
    client = Client("LDS")
    empty = held("1")
    assert client.state.missing(empty) == (WILDCARD,)
    assert client.settle(empty) == [[]]
    assert client.state.missing(empty) == ()


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS", "RDS"])
def test_whatever_a_client_sends_the_machine_ends_settled(short: str) -> None:
    """Every sequence of four messages out of the possible ones, then honest ACKs: all resources arrive."""
    state = held("1", "a", "b")

    def go(steps: Iterable[Callable[[Client], object]]) -> None:
        client = Client(short, "a", "b")
        for step in steps:
            step(client)
            pending = client.state.due(state)
            if pending is not None:
                client.take(pending)
        if client.state.pending is not None:
            client.ack(client.state.pending)
        client.say("a", "b")
        client.settle(state)
        later = held("2", "a", "b")
        client.settle(later)
        assert client.state.missing(later) == ()
        assert client.state.refused(later) == ()

    moves: list[Callable[[Client], object]] = [
        lambda c: c.say("a", "b"),
        lambda c: c.say("a", error="no"),
        lambda c: c.say("b", nonce="foreign"),
        lambda c: c.say(WILDCARD),
        lambda c: c.say(),
    ]
    for first in moves:
        for second in moves:
            for third in moves:
                for fourth in moves:
                    go((first, second, third, fourth))
