"""What the proxy can't be asked for is refused alone, and what it has of that stays; what it answers, in its words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from spliceway.agent.control import Acceptance, Answer
from spliceway.agent.proxylink import ProxyLink, lenient, nobody
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.policy.verdict import Verdict
from spliceway.xds.debug.dump import dump_snapshot
from spliceway.xds.debug.status import ClientStatus, ResourceStatus, TypeStatus
from spliceway.xds.protocol.ledger import Refusal
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import URLS
from spliceway.xds.resources.build import unfit
from spliceway.xds.resources.names import listener_name
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.clients import NodeKey
from spliceway.xds.server.events import EventKind, XdsEvent

NODE = NodeKey("node1", "spliceway")
GOOD = RuleSet(1, "default/good", (HttpRule(1, path="/a"),))
OTHER = RuleSet(2, "default/other", (HttpRule(2, path="/b"),))
#: Envoy itself writes this header, so what the client said can't be asked.
UNFIT = msgspec.structs.replace(GOOD, rules=(HttpRule(1, headers=(HeaderMatch("x-forwarded-proto", "https"),)),))


class Server:
    """Remembers what it serves, and says what a test wants of the proxy; counts how often it is asked."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.types: dict[str, TypeStatus] = {}
        self.asked = 0

    def set_snapshot(self, node: NodeKey, snapshot: Snapshot) -> None:
        assert node == NODE
        self.snapshot = snapshot

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        return ()

    def current(self, node: NodeKey) -> dict[str, TypeStatus]:
        assert node == NODE
        self.asked += 1
        return self.types


def linked(body: Callable[[ProxyLink, Server], None]) -> None:
    async def start() -> None:
        server = Server()
        body(ProxyLink(server, NODE, ResourceSettings()), server)

    asyncio.run(start())


def served(link: ProxyLink) -> dict[str, str]:
    """Routes by name, as text."""
    assert link.snapshot is not None
    return {one["name"]: str(one) for one in dump_snapshot(link.snapshot, ["RDS"])}


def states(short: str, *errors: str, **resources: str) -> TypeStatus:
    """Status of a type: resources by name, with `_` for `-`; `errors` of the refused ones, in order."""
    refused = [name for name, state in resources.items() if state == "NACK"]
    said = dict(zip(refused, errors if len(errors) > 1 else errors * len(refused), strict=True))
    found = tuple(
        ResourceStatus(name.replace("_", "-"), state, "2", "2", "1", error=said.get(name, ""))
        for name, state in resources.items()
    )
    refusal = Refusal("2", "n-2", (), errors[-1]) if errors else None
    return TypeStatus(short, URLS[short], "", False, (), "2", "n-2", "2", "n-2", False, refusal, found)


def event(kind: EventKind, *, node: str = "node1", error: str = "", names: tuple[str, ...] = ()) -> XdsEvent:
    return XdsEvent(
        time=0.0, kind=kind, node=node, cluster="spliceway", stream="s", protocol="delta", type="RDS", version="2",
        resources=names, count=len(names), error=error,
    )  # fmt: skip


def test_lenient_asks_nothing_and_changes_routes_alone() -> None:
    """So that connections stay: a changed listener drains them. Off again, all is as it was."""

    def body(link: ProxyLink, server: Server) -> None:
        both = msgspec.structs.replace(GOOD, also=OTHER)
        link.publish({1: both, 2: OTHER}, {1: 23000, 2: 23001})

        def dumped(short: str) -> dict[str, object]:
            assert server.snapshot is not None
            return {one["name"]: one["resource"] for one in dump_snapshot(server.snapshot, [short])}

        listeners, routes = dumped("LDS"), dumped("RDS")
        link.set_lenient(True)
        assert dumped("LDS") == listeners
        assert all(dumped("RDS")[name] != route for name, route in routes.items())
        assert (link.served, link.wanted) == ({1: both, 2: OTHER},) * 2
        link.publish({1: both, 2: OTHER}, {1: 23000, 2: 23001})
        assert all(dumped("RDS")[name] != route for name, route in routes.items())
        link.set_lenient(False)
        assert dumped("RDS") == routes

    linked(body)


def test_what_is_lenient_would_ask_what_all_of_it_asks() -> None:
    rules = (HttpRule(1, path="/a"), HttpRule(3, path="/c"))
    mixed = msgspec.structs.replace(GOOD, audit=rules, also=OTHER)
    found = lenient(mixed)
    assert (found.id, found.name, found.rules, found.audit) == (1, GOOD.name, None, rules)
    assert found.also is not None
    assert (found.also.rules, found.also.audit) == (None, OTHER.rules)
    assert lenient(found) == found


def test_an_unfit_rule_set_keeps_nobody_else_from_coming() -> None:
    def body(link: ProxyLink, _server: Server) -> None:
        link.publish({1: UNFIT, 2: OTHER}, {1: 23000, 2: 23001})
        assert len(served(link)) == 1
        assert "/b" in next(iter(served(link).values()))
        assert list(link.unfit) == ["default/good"]
        assert "x-forwarded-proto" in link.unfit["default/good"].lower()
        assert (link.acceptance(1), link.acceptance(2)) == (Acceptance.REFUSED, Acceptance.WAITING)
        answers = link.answers()
        assert (answers[1].type, answers[1].message) == ("", link.unfit["default/good"])
        assert answers[2].message == "no proxy is connected that has asked for it"

    linked(body)


def test_what_was_served_of_it_stays_until_it_is_fit_again() -> None:
    def body(link: ProxyLink, _server: Server) -> None:
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        before = served(link)
        later = msgspec.structs.replace(OTHER, rules=(HttpRule(2, path="/c"),))
        link.publish({1: UNFIT, 2: later}, {1: 23000, 2: 23001})
        after = served(link)
        assert before.keys() == after.keys()
        assert sum(before[name] != after[name] for name in before) == 1
        assert any("/c" in text for text in after.values())
        assert link.acceptance(1) is Acceptance.REFUSED
        assert (link.served[1], link.wanted[1]) == (GOOD, UNFIT)
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        assert (link.unfit, link.acceptance(1)) == ({}, Acceptance.WAITING)
        link.publish({2: OTHER}, {2: 23001})
        link.publish({1: UNFIT, 2: OTHER}, {1: 23000, 2: 23001})
        assert len(served(link)) == 1

    linked(body)


def test_answers_have_resource_and_message_of_each_refusal() -> None:
    def body(link: ProxyLink, server: Server) -> None:
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        listeners = {"rule_set_1": "SYNCED", "rule_set_2": "SYNCED"}
        server.types = {"LDS": states("LDS", **listeners), "RDS": states("RDS", rule_set_1="STALE")}
        assert link.answers() == {
            1: Answer(Acceptance.WAITING, "RDS", "rule-set-1", "not acknowledged yet"),
            2: Answer(Acceptance.WAITING, "RDS", "rule-set-2"),
        }
        link.on_event(event(EventKind.NACK, error="bad one", names=("rule-set-1",)))
        link.on_event(event(EventKind.NACK, error="bad two", names=("rule-set-2",)))
        server.types["RDS"] = states("RDS", "bad one", "bad two", rule_set_1="NACK", rule_set_2="NACK")
        assert link.answers() == {
            1: Answer(Acceptance.REFUSED, "RDS", "rule-set-1", "bad one"),
            2: Answer(Acceptance.REFUSED, "RDS", "rule-set-2", "bad two"),
        }
        link.on_event(event(EventKind.ACK))
        server.types["RDS"] = states("RDS", rule_set_1="SYNCED", rule_set_2="SYNCED")
        assert {answer.acceptance for answer in link.answers().values()} == {Acceptance.ACCEPTED}
        assert (link.nacks, link.last_nack) == (2, "RDS: bad two")

    linked(body)


def test_a_taken_port_is_that_of_the_listener_that_is_named() -> None:
    sets = {1: GOOD, 12: msgspec.structs.replace(OTHER, id=12)}

    def body(link: ProxyLink, server: Server) -> None:
        link.publish(sets, {1: 23000, 12: 23001})
        errors = ("listener(s) rule-set-1: no such filter", "rule-set-12: Address already in use")
        server.types = {"LDS": states("LDS", *errors, rule_set_1="NACK", rule_set_12="NACK")}
        assert (link.acceptance(1), link.acceptance(12)) == (Acceptance.REFUSED, Acceptance.PORT_TAKEN)

    linked(body)


def test_it_is_looked_once_for_all_rule_sets_until_something_is_heard() -> None:
    def body(link: ProxyLink, server: Server) -> None:
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        for _ in range(10):
            link.acceptance(1)
            link.acceptance(2)
            link.answers()
        assert server.asked == 1
        link.on_event(event(EventKind.PUSH))
        link.on_event(event(EventKind.ACK, node="node2"))
        link.acceptance(1)
        assert server.asked == 1
        for kind in (EventKind.ACK, EventKind.NACK, EventKind.CONNECTED, EventKind.DISCONNECTED, EventKind.SUBSCRIBE):
            before = server.asked
            link.on_event(event(kind))
            link.acceptance(1)
            assert server.asked == before + 1

    linked(body)


def test_only_answers_of_the_own_proxy_wake_the_agent() -> None:
    woken = []

    def body(link: ProxyLink, _server: Server) -> None:
        link.on_answer(lambda: woken.append(1))
        link.on_event(event(EventKind.NACK, node="stranger", error="no"))
        link.on_event(msgspec.structs.replace(event(EventKind.ACK), cluster="other"))
        link.on_event(event(EventKind.CONNECTED))
        assert (woken, link.nacks) == ([], 0)
        link.on_event(event(EventKind.ACK))
        assert woken == [1]

    linked(body)


class Connected(Server):
    """With a proxy that is there."""

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        return (object(),)  # type: ignore[return-value]  # they are counted


def test_what_is_refused_is_not_confirmed_and_something_stands_in_for_it() -> None:
    """Otherwise live connections met what was served before, which under the kill switch lets everything pass."""
    edited = msgspec.structs.replace(GOOD, rules=(HttpRule(1, path="/edited"),))
    first, second = listener_name(1).replace("-", "_"), listener_name(2).replace("-", "_")

    async def start() -> None:
        server = Connected()
        link = ProxyLink(server, NODE, ResourceSettings())

        def says(*errors: str, **routes: str) -> None:
            server.types = {
                "LDS": states("LDS", **dict.fromkeys(routes, "SYNCED")),
                "RDS": states("RDS", *errors, **routes),
            }
            link.on_event(event(EventKind.ACK))

        says(**{first: "SYNCED", second: "SYNCED"})
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        assert link.acceptance(1) is Acceptance.ACCEPTED
        assert link.confirmed
        link.set_lenient(True)
        assert link.confirmed
        link.publish({1: edited, 2: OTHER}, {1: 23000, 2: 23001})
        link.set_lenient(False)
        says("too odd", **{first: "NACK", second: "SYNCED"})
        assert not link.confirmed

        link.stand_in()  # by what the proxy took last
        assert link.served[1] == GOOD
        assert "/edited" not in str(served(link))
        assert not link.confirmed
        assert link.unfit == {"default/good": "too odd"}

        says("too odd, too", **{first: "NACK", second: "SYNCED"})
        link.stand_in()  # by nobody's
        assert link.served[1] == nobody(edited)
        assert (link.served[2], link.wanted) == (OTHER, {1: edited, 2: OTHER})
        before = link.snapshot
        link.stand_in()
        assert link.snapshot is before, "again and again would not help"

        says(**{first: "SYNCED", second: "SYNCED"})
        assert link.confirmed
        assert link.acceptance(1) is Acceptance.REFUSED
        link.publish({1: edited, 2: OTHER}, {1: 23000, 2: 23001})
        assert link.served[1] == nobody(edited), "it is what was refused"
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        assert link.served[1] == GOOD
        assert link.acceptance(1) is Acceptance.ACCEPTED

    asyncio.run(start())


def test_rules_that_wait_are_not_confirmed_and_a_refused_listener_has_none() -> None:
    name = listener_name(1).replace("-", "_")

    async def start() -> None:
        server = Connected()
        link = ProxyLink(server, NODE, ResourceSettings())
        link.publish({1: GOOD}, {1: 23000})
        for listener, route, holds in (
            ("SYNCED", "STALE", False),
            ("STALE", None, False),
            ("SYNCED", None, False),
            ("NACK", None, True),
            ("NACK", "SYNCED", True),
            ("NACK", "STALE", False),
        ):
            server.types = {"LDS": states("LDS", "address already in use", **{name: listener})}
            server.types |= {"RDS": states("RDS", **{name: route})} if route else {}
            link.on_event(event(EventKind.ACK))
            assert link.confirmed is holds, (listener, route)

    asyncio.run(start())


def test_nobody_passes_what_stands_in() -> None:
    for rule_set in (GOOD, msgspec.structs.replace(GOOD, rules=None, audit=(), also=OTHER)):
        assert all(
            decide(HttpRequest.of(method, "/a"), nobody(rule_set)).verdict is Verdict.DENY for method in ("GET", "PUT")
        )
        assert not unfit({1: nobody(rule_set)})
