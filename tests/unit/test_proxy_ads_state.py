"""The protocol of a delta client as a table: what comes, what is asked and answered."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spliceway.proxy.ads.refusal import LONGEST, LONGEST_REASON, refusal_text
from spliceway.proxy.ads.state import AdsState, Outcome
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch, Request, ResourceValue, Response
from spliceway.xds.protocol.refusal import LOOKED_AT, mentions, names_all
from support.adsbed import listener

_URLS = {"CDS": CLUSTER, "LDS": LISTENER, "RDS": ROUTE}


def value(url: str, item: str) -> tuple[str, ResourceValue]:
    """`a:2>x`: name a, revision 2, and for a listener the name of its routes."""
    what, _, to = item.partition(">")
    name, _, revision = what.partition(":")
    body = listener(name, revision, to or None) if url == LISTENER else f"{name} {revision}".encode()
    return name, ResourceValue(f"#{revision}", body)


class Client:
    """Takes in responses in short: `LDS a:1 b -c`, where `!a` is a resource that is refused, `?a` an unusable one."""

    def __init__(self) -> None:
        self.state = AdsState()
        self.nonces = 0
        self.batch = Batch("", {})
        self.outcome = Outcome(())

    def take(self, text: str, refused: Mapping[str, str] | None = None) -> list[str]:
        """Take in a response; the requests that it leads to."""
        short, *items = text.split()
        url = _URLS.get(short, short)
        self.nonces += 1
        given = [item.lstrip("!") for item in items if item[0] not in "-?"]
        bad = {item[1:].partition(":")[0]: "no" for item in items if item[0] == "!"}
        response = Response(
            url,
            f"n{self.nonces}",
            dict(value(url, item) for item in given),
            {item[1:]: "has no content" for item in items if item[0] == "?"},
            tuple(item[1:] for item in items if item[0] == "-"),
        )
        self.batch = self.state.incoming(response)
        self.outcome = self.state.settle(response, self.batch, bad if refused is None else refused)
        return [said(request) for request in self.outcome.requests]

    def has(self) -> str:
        """`CDS c LDS a:1`: what is in force."""
        words = []
        for short, url in _URLS.items():
            held = self.state.accepted[url]
            words += [short, *(f"{name}{v.version.replace('#', ':').rstrip(':')}" for name, v in sorted(held.items()))]
        return " ".join(words)


def said(request: Request) -> str:
    """`RDS +a -b have a#1 n3 error`."""
    short = next((short for short, url in _URLS.items() if url == request.type_url), request.type_url)
    words = [short, *(f"+{name}" for name in request.subscribe), *(f"-{name}" for name in request.unsubscribe)]
    words += ["have", *(name + version for name, version in request.initial.items())] if request.initial else []
    words += [request.nonce] if request.nonce else []
    return " ".join([*words, *([f"({request.error})"] if request.error is not None else [])])


def connected(*responses: str) -> Client:
    client = Client()
    client.state.connect()
    for text in responses:
        client.take(text)
    return client


def test_the_first_requests_ask_for_all_clusters_and_listeners() -> None:
    assert [said(request) for request in AdsState().connect()] == ["CDS +*", "LDS +*"]


def test_accepted_listeners_have_their_routes_asked_for() -> None:
    client = connected()
    assert client.take("CDS c:1") == ["CDS n1"]
    assert client.take("LDS a:1 b:1") == ["LDS n2", "RDS +a +b"]
    assert client.take("RDS a:1 b:1") == ["RDS n3"]
    assert client.take("LDS c:1 -a") == ["LDS n4", "RDS +c -a"]
    assert client.outcome.unwanted == ("a",)
    assert client.has() == "CDS c:1 LDS b:1 c:1 RDS b:1"


def test_what_is_refused_stays_as_it_was_and_holds_back_nothing() -> None:
    client = connected("LDS a:1 b:1")
    assert client.take("LDS !a:2 b:2 !c:1 -d") == [
        "LDS n2 (Error adding/updating listener(s) a: no\nc: no)",
    ]
    assert client.has() == "CDS LDS a:1 b:2 RDS"
    assert client.take("RDS !a:1 b:1") == ["RDS n3 (a: no)"]
    assert client.take("RDS !a:1 !b:2") == ["RDS n4 (a: no\nb: no)"]
    assert client.take("RDS !a:2") == ["RDS n5 (no)"]
    assert client.has() == "CDS LDS a:1 b:2 RDS b:1"


def test_routes_of_a_refused_listener_are_not_asked_for() -> None:
    client = connected()
    assert client.take("LDS !a:1 b:1>x") == ["LDS n1 (Error adding/updating listener(s) a: no)", "RDS +x"]


def test_a_listener_may_change_its_routes() -> None:
    client = connected("LDS a:1>x b:1>x", "RDS x:1")
    assert client.take("LDS a:2>y") == ["LDS n3", "RDS +y"]
    assert client.take("LDS b:2>y") == ["LDS n4", "RDS -x"]
    assert (client.outcome.unwanted, client.has()) == (("x",), "CDS LDS a:2 b:2 RDS")
    assert client.take("LDS b:3>") == ["LDS n5", "RDS +b"]


def test_what_is_in_force_is_not_applied_again() -> None:
    client = connected("LDS a:1 b:1")
    assert client.take("LDS a:1 b:2") == ["LDS n2"]
    assert list(client.batch.changed) == ["b"]
    assert client.take("LDS a:1 b:2") == ["LDS n3"]
    assert client.batch == Batch(LISTENER, {})


def test_what_was_refused_is_tried_again_when_it_comes_again() -> None:
    client = connected("LDS a:1", "LDS !a:2")
    assert client.take("LDS a:2") == ["LDS n3"]
    assert client.has() == "CDS LDS a:2 RDS"


@pytest.mark.parametrize("removed", ["LDS -x", "LDS -x -x", "RDS -x", "CDS -c -x"])
def test_removing_what_is_not_there_is_nothing(removed: str) -> None:
    client = connected("LDS a:1", "RDS a:1")
    assert client.take(removed) == [f"{removed[:3]} n3"]
    assert (client.batch.changed, client.batch.removed, client.has()) == ({}, (), "CDS LDS a:1 RDS a:1")


def test_given_and_removed_at_once_is_given() -> None:
    client = connected("LDS a:1")
    assert client.take("LDS a:2 -a -a") == ["LDS n2"]
    assert client.has() == "CDS LDS a:2 RDS"


def test_what_can_not_be_used_is_refused_and_the_rest_applied() -> None:
    client = connected("LDS a:1 b:1")
    assert client.take("LDS ?a b:2 -a") == ["LDS n2 (Error adding/updating listener(s) a: has no content)"]
    assert client.has() == "CDS LDS a:1 b:2 RDS"


def test_routes_that_were_on_their_way_when_they_were_unsubscribed_from_are_let_go() -> None:
    client = connected("LDS a:1 b:1", "LDS -a")
    assert client.take("RDS a:1 b:1 ?x") == ["RDS n3"]
    assert client.has() == "CDS LDS b:1 RDS b:1"


@pytest.mark.parametrize("url", ["type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "x"])
def test_a_type_that_nobody_asked_for_is_refused(url: str) -> None:
    client = connected()
    assert client.take(f"{url} a:1 -b") == [f"{url} n1 ({url} was not asked for)"]
    assert client.batch == Batch(url, {})


def test_routes_before_any_listener_are_refused() -> None:
    client = connected()
    assert client.take("RDS a:1") == [f"RDS n1 ({ROUTE} was not asked for)"]


def test_after_a_reconnect_only_what_was_accepted_is_told() -> None:
    client = connected("CDS c:1", "LDS a:1 !b:1 c:1", "RDS a:1", "LDS !a:2")
    assert [said(request) for request in client.state.connect()] == [
        "CDS +* have c#1",
        "LDS +* have a#1 c#1",
        "RDS +a +c have a#1",
    ]
    assert client.take("LDS -c") == ["LDS n5", "RDS -c"]


def test_a_first_request_for_routes_in_the_middle_of_a_stream_tells_what_is_there() -> None:
    client = connected("LDS a:1", "RDS a:1", "LDS -a")
    assert client.take("LDS a:1") == ["LDS n4", "RDS +a"]
    client.take("RDS a:1")
    client.take("LDS -a")
    client.state.connect()
    assert client.take("LDS a:1") == ["LDS n7", "RDS +a"]


def test_what_an_earlier_proxy_had_is_taken_without_routes_that_no_listener_names() -> None:
    old = connected("CDS c:1", "LDS a:1 b:1", "RDS a:1 b:1").state.accepted
    state = AdsState()
    state.take(state.restorable(CLUSTER, old), {})
    state.take(state.restorable(LISTENER, old), {"b": "the port is taken"})
    routes = state.restorable(ROUTE, old)
    assert list(routes.changed) == ["a"]
    state.take(routes, {})
    assert [said(request) for request in state.connect()] == [
        "CDS +* have c#1",
        "LDS +* have a#1",
        "RDS +a have a#1",
    ]


@pytest.mark.parametrize("garbage", [b"\xff", listener("a")[:-1]])
def test_a_listener_that_is_none_names_no_routes(garbage: bytes) -> None:
    state = AdsState()
    state.connect()
    response = Response(LISTENER, "n", {"a": ResourceValue("1", garbage)})
    assert len(state.settle(response, state.incoming(response), {}).requests) == 1


def test_repr_shows_no_content() -> None:
    assert "secret" not in repr(Batch(ROUTE, {"a": ResourceValue("1", b"secret")}))


# What a NACK says, and what the agent's server makes of it.


def test_a_refusal_names_each_and_no_more() -> None:
    text = refusal_text(LISTENER, {"rule-set-3": "cannot bind\n '127.0.0.1:4': address already in use", "b": "no"})
    assert text.splitlines() == [
        "Error adding/updating listener(s) rule-set-3: cannot bind '127.0.0.1:4': address already in use",
        "b: no",
    ]
    assert names_all(text)
    assert [name for name in ("rule-set-3", "rule-set-33", "rule-set", "b") if mentions(text, name)] == [
        "rule-set-3",
        "b",
    ]


def test_a_refusal_of_very_many_is_cut_between_two_and_can_be_searched() -> None:
    refused = {f"rule-set-{number}": "x" * 99_999 for number in range(10_000)}
    text = refusal_text(LISTENER, refused)
    assert len(text) < LONGEST + 200
    assert len(text) * len(refused) <= LOOKED_AT
    named = [name for name in refused if mentions(text, name)]
    assert named == list(refused)[: len(text.splitlines())]
    assert names_all(text)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    assert len(refusal_text(ROUTE, {"a": "b\n" * 100_000}, alone=True)) == LONGEST_REASON
    assert refusal_text(CLUSTER, {"a": "b\n c"}) == "Error adding/updating cluster(s) a: b c"
