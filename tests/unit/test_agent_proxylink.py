"""What the proxy can't be asked for is refused alone, and what it has of that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from spliceway.agent.control import Acceptance
from spliceway.agent.proxylink import ProxyLink
from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.clients import ClientStatus

GOOD = RuleSet(1, "default/good", (HttpRule(1, path="/a"),))
OTHER = RuleSet(2, "default/other", (HttpRule(2, path="/b"),))
#: Envoy itself writes this header, so what the client said can't be asked.
UNFIT = msgspec.structs.replace(GOOD, rules=(HttpRule(1, headers=(HeaderMatch("x-forwarded-proto", "https"),)),))


class Server:
    """Remembers what it serves."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def set_snapshot(self, node: str, snapshot: Snapshot) -> None:
        assert node == "node1"
        self.snapshot = snapshot

    def status(self) -> tuple[ClientStatus, ...]:
        return ()


def linked(body: Callable[[ProxyLink, Server], None]) -> None:
    async def start() -> None:
        server = Server()
        body(ProxyLink(server, "node1", ResourceSettings()), server)

    asyncio.run(start())


def served(link: ProxyLink) -> dict[str, str]:
    """Routes by name, as text."""
    return {one["name"]: str(one) for one in link.dump(["RDS"])}


def test_an_unfit_rule_set_keeps_nobody_else_from_coming() -> None:
    def body(link: ProxyLink, _server: Server) -> None:
        link.publish({1: UNFIT, 2: OTHER}, {1: 23000, 2: 23001})
        assert len(served(link)) == 1
        assert "/b" in next(iter(served(link).values()))
        assert list(link.unfit) == ["default/good"]
        assert "x-forwarded-proto" in link.unfit["default/good"].lower()
        assert (link.acceptance(1), link.acceptance(2)) == (Acceptance.REFUSED, Acceptance.WAITING)

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
        link.publish({1: GOOD, 2: OTHER}, {1: 23000, 2: 23001})
        assert (link.unfit, link.acceptance(1)) == ({}, Acceptance.WAITING)
        link.publish({2: OTHER}, {2: 23001})
        link.publish({1: UNFIT, 2: OTHER}, {1: 23000, 2: 23001})
        assert len(served(link)) == 1

    linked(body)
