"""The order in which one stream's changes go out, and what it says of its progress."""

from __future__ import annotations

from spliceway.xds.protocol.ledger import Kind, Response
from spliceway.xds.protocol.snapshot import Resource, Snapshot, TypeSet
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.protocol.typeurls import TYPES

BY_SHORT = {info.short: info for info in TYPES.values()}


def snapshot(version: str, **types: str) -> Snapshot:
    """`CDS="a b@1", RDS="r>a"`: clusters a in this version, b in version 1, and routes that send traffic to a."""
    made = {url: TypeSet(version, {}) for url in TYPES}
    for short, text in types.items():
        resources = {}
        for item in text.split():
            what, _, to = item.partition(">")
            name, _, own = what.partition("@")
            resources[name] = Resource(name, own or version, name.encode(), clusters=frozenset({to} if to else ()))
        made[BY_SHORT[short].url] = TypeSet(version, resources)
    return Snapshot(version, made)


def ask(stream: AdsStream, short: str, *names: str, answer: Response | None = None, error: str | None = None) -> Kind:
    url = BY_SHORT[short].url
    version, nonce = (answer.version, answer.nonce) if answer else ("", "")
    return stream.receive(Request(url, names, version, nonce, error))


def sent(responses: list[Response]) -> list[tuple[str, list[str]]]:
    return [(TYPES[r.type_url].short, [resource.name for resource in r.resources]) for r in responses]


def run(stream: AdsStream, state: Snapshot, routes: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Acknowledge everything; what was sent, in order."""
    order: list[tuple[str, list[str]]] = []
    while responses := stream.responses(state):
        order += sent(responses)
        for response in responses:
            short = TYPES[response.type_url].short
            ask(stream, short, *(routes if short == "RDS" else ()), answer=response)
    return order


def envoy(stream: AdsStream, *routes: str) -> None:
    for short in ("CDS", "LDS"):
        ask(stream, short)
    ask(stream, "RDS", *routes)


def test_rule_16_adding_goes_out_as_clusters_listeners_routes_one_after_the_other() -> None:
    stream = AdsStream("s")
    envoy(stream, "r", "q")
    state = snapshot("1", CDS="c", LDS="l", RDS="q r")
    assert run(stream, state, ("r", "q")) == [("CDS", ["c"]), ("LDS", ["l"]), ("RDS", ["q", "r"])]
    assert stream.progress(state).missing == ()


def test_rule_16_what_sends_traffic_to_a_new_cluster_waits_for_its_acknowledgement() -> None:
    stream = AdsStream("s")
    envoy(stream, "r", "q")
    state = snapshot("1", CDS="c d", LDS="l", RDS="q>d r>c")
    first, listeners = stream.responses(state)
    assert sent([first, listeners]) == [("CDS", ["c", "d"]), ("LDS", ["l"])]
    ask(stream, "LDS", answer=listeners)
    assert stream.responses(state) == []
    ask(stream, "CDS", answer=first)
    assert sent(stream.responses(state)) == [("RDS", ["q", "r"])]


def test_rule_16_a_listener_that_goes_straight_to_a_new_cluster_waits_too() -> None:
    stream = AdsStream("s")
    envoy(stream)
    state = snapshot("1", CDS="c", LDS="l m>c")
    [first] = stream.responses(state)
    ask(stream, "CDS", answer=first)
    assert sent(stream.responses(state)) == [("LDS", ["l", "m"])]


def test_rule_16_a_cluster_that_is_there_in_another_version_is_waited_for_by_nobody() -> None:
    stream = AdsStream("s")
    envoy(stream, "r")
    run(stream, snapshot("1", CDS="c d", RDS="r>c"), ("r",))
    state = snapshot("2", CDS="c d", RDS="r>d")
    assert sent(stream.responses(state)) == [("CDS", ["c", "d"]), ("RDS", ["r"])]


def test_rule_16_removal_in_reverse_a_cluster_stays_until_listeners_and_routes_have_let_go() -> None:
    stream = AdsStream("s")
    envoy(stream, "r")
    run(stream, snapshot("1", CDS="old", LDS="l", RDS="r"), ("r",))
    state = snapshot("2", CDS="new", LDS="l@1", RDS="r")
    assert run(stream, state, ("r",)) == [("CDS", ["old", "new"]), ("RDS", ["r"]), ("CDS", ["new"])]
    assert stream.progress(state).missing == ()


def test_a_refused_type_does_not_hold_up_the_next_ones_and_keeps_what_others_need() -> None:
    stream = AdsStream("s")
    envoy(stream, "r")
    run(stream, snapshot("1", CDS="old", LDS="l", RDS="r>old"), ("r",))
    state = snapshot("2", CDS="new", LDS="l", RDS="r>new")
    clusters, listeners = stream.responses(state)
    assert ask(stream, "LDS", answer=listeners, error="bad listener") is Kind.NACK
    assert stream.responses(state) == []
    ask(stream, "CDS", answer=clusters)
    [routes] = stream.responses(state)
    assert ask(stream, "RDS", "r", answer=routes) is Kind.ACK
    assert stream.responses(state) == []  # `old` stays: the listener that needs it may still be the old one
    progress = stream.progress(state)
    assert [(name, error.message) for _, name, error in progress.refused] == [("l", "bad listener")]


def test_a_refused_cluster_stops_what_goes_there_and_nothing_else() -> None:
    stream = AdsStream("s")
    envoy(stream, "r", "q")
    run(stream, snapshot("1", CDS="c", LDS="l", RDS="q>c r>c"), ("q", "r"))
    state = snapshot("2", CDS="c@1 bad", LDS="l@1", RDS="q>c r>bad")
    clusters, routes = stream.responses(state)
    assert sent([clusters, routes]) == [("CDS", ["c", "bad"]), ("RDS", ["q"])]
    ask(stream, "CDS", answer=clusters, error="bad is bad")
    ask(stream, "RDS", "q", "r", answer=routes)
    assert stream.responses(state) == []
    fixed = snapshot("3", CDS="c@1 bad", LDS="l@1", RDS="q@2>c r@2>bad")
    assert run(stream, fixed, ("q", "r")) == [("CDS", ["c", "bad"]), ("RDS", ["r"])]


def test_progress_of_some_names_only() -> None:
    stream = AdsStream("s")
    envoy(stream, "r", "q")
    state = snapshot("1", CDS="c", LDS="l m", RDS="q r")
    run(stream, state, ("q", "r"))
    state = snapshot("2", CDS="c@1", LDS="l@1 m@1", RDS="q@1 r")
    lds, rds = BY_SHORT["LDS"].url, BY_SHORT["RDS"].url
    assert stream.progress(state, {lds: {"l"}, rds: {"q"}}).missing == ()
    assert stream.progress(state, {lds: {"m"}, rds: {"r"}}).missing == ((rds, "r"),)


def test_rule_20_unknown_types_are_counted_and_the_others_go_on() -> None:
    stream = AdsStream("s")
    for url in ("", "type.googleapis.com/envoy.api.v2.Cluster", "type.googleapis.com/x", ""):
        assert stream.receive(Request(url)) is Kind.UNSUPPORTED
    assert stream.unsupported == {"": 2, "type.googleapis.com/envoy.api.v2.Cluster": 1, "type.googleapis.com/x": 1}
    ask(stream, "CDS")
    assert sent(stream.responses(snapshot("1", CDS="c"))) == [("CDS", ["c"])]


def test_rule_21_nonces_belong_to_one_stream_and_one_response() -> None:
    state = snapshot("1", CDS="c", LDS="l", RDS="r")
    nonces: list[str] = []
    for name in ("one", "two"):
        stream = AdsStream(name)
        envoy(stream, "r")
        while responses := stream.responses(state):
            nonces += [response.nonce for response in responses]
            for response in responses:
                ask(stream, TYPES[response.type_url].short, "r", answer=response)
    assert len(set(nonces)) == len(nonces) == 6


def test_rule_22_the_last_listener_goes_and_comes_back() -> None:
    stream = AdsStream("s")
    envoy(stream, "r")
    assert run(stream, snapshot("1", CDS="c", LDS="l", RDS="r"), ("r",))
    assert run(stream, snapshot("2", CDS="c@1"), ()) == [("LDS", [])]
    ask(stream, "RDS", answer=stream.subscriptions[BY_SHORT["RDS"].url].last_sent)
    state = snapshot("3", CDS="c@1", LDS="l", RDS="r")
    assert sent(stream.responses(state)) == [("LDS", ["l"])]
    ask(stream, "LDS", answer=stream.subscriptions[BY_SHORT["LDS"].url].last_sent)
    ask(stream, "RDS", "r", answer=stream.subscriptions[BY_SHORT["RDS"].url].last_sent)
    assert sent(stream.responses(state)) == [("RDS", ["r"])]
