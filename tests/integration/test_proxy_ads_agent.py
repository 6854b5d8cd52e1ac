"""What the agent publishes, the proxy's reader and its client: which rule sets count as accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from spliceway.agent.control import Acceptance
from spliceway.agent.proxylink import ProxyLink
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.resources.reading import read_cluster, read_listener, read_routes
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.clients import NodeKey
from spliceway.xds.server.server import XdsServer
from support.adsbed import Proxy, running, settings_for
from support.waiting import until_async
from support.xdsclient import NODE

_READ: dict[str, Callable[[bytes], object]] = {CLUSTER: read_cluster, LISTENER: read_listener, ROUTE: read_routes}


def rule_sets(*numbers: int, path: str = "/a") -> dict[int, RuleSet]:
    return {number: RuleSet(number, f"set {number}", (HttpRule(number, "GET", path),)) for number in numbers}


def ports(*numbers: int) -> dict[int, int]:
    return {number: 20_000 + number for number in numbers}


def read(url: str, _name: str, body: bytes) -> str | None:
    """Refuses what the proxy can't enforce."""
    try:
        _READ[url](body)
    except UnenforceableError as error:
        return str(error)
    return None


class Agent:
    """The part of the agent that speaks with its proxy."""

    def __init__(self, socket: Path, settings: ResourceSettings) -> None:
        self.link: ProxyLink
        self.server = XdsServer(socket, on_event=lambda event: self.link.on_event(event))
        self.link = ProxyLink(self.server, NodeKey(NODE, "tests"), settings)

    async def until(self, **wanted: Acceptance) -> None:
        """`rule_7=ACCEPTED`: wait until the rule sets are so."""

        def found() -> dict[str, Acceptance]:
            return {name: self.link.acceptance(int(name[5:])) for name in wanted}

        await until_async(lambda: found() == wanted, told=lambda: dict(found().items() - wanted.items()))


def test_rule_sets_are_accepted_each_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "xds.sock", ResourceSettings())
        await agent.server.start()
        proxy = Proxy(settings_for(tmp_path))
        proxy.applied.refuse = read
        try:
            async with running(proxy):
                agent.link.publish(rule_sets(1, 2, 3), ports(1, 2, 3))
                await agent.until(rule_1=Acceptance.ACCEPTED, rule_2=Acceptance.ACCEPTED, rule_3=Acceptance.ACCEPTED)
                assert agent.link.nacks == 0
                # A port of somebody else's: the others come into force.
                proxy.applied.refuse = lambda url, name, body: (
                    "addresses[0]: 127.0.0.1:20004: Address already in use"
                    if name == "rule-set-4"
                    else read(url, name, body)
                )
                agent.link.publish(rule_sets(1, 2, 4, 5), ports(1, 2, 4, 5))
                await agent.until(rule_1=Acceptance.ACCEPTED, rule_4=Acceptance.PORT_TAKEN, rule_5=Acceptance.ACCEPTED)
                assert proxy.state.accepted[LISTENER].keys() == {"rule-set-1", "rule-set-2", "rule-set-5"}
                assert proxy.state.accepted[ROUTE].keys() == {"rule-set-1", "rule-set-2", "rule-set-5"}
                # Another port.
                agent.link.publish(rule_sets(1, 2, 4, 5), {**ports(1, 2, 5), 4: 30_000})
                proxy.applied.refuse = read
                await agent.until(rule_4=Acceptance.ACCEPTED)
                # Rules of one that are refused, and those of another beside them.
                proxy.applied.refuse = lambda url, name, body: (
                    "virtual_hosts[0]: no" if (url, name) == (ROUTE, "rule-set-2") else read(url, name, body)
                )
                agent.link.publish(rule_sets(1, 2, 4, 5, path="/b"), {**ports(1, 2, 5), 4: 30_000})
                await agent.until(
                    rule_1=Acceptance.ACCEPTED,
                    rule_2=Acceptance.REFUSED,
                    rule_4=Acceptance.ACCEPTED,
                    rule_5=Acceptance.ACCEPTED,
                )
                assert agent.link.answers()[2].message == "virtual_hosts[0]: no"
                proxy.applied.refuse = read
                agent.link.publish(rule_sets(1, 2, 4, 5, path="/c"), {**ports(1, 2, 5), 4: 30_000})
                await agent.until(rule_2=Acceptance.ACCEPTED)
                assert proxy.agrees()
        finally:
            await agent.server.stop()

    asyncio.run(main())


def test_new_rule_sets_of_which_one_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "xds.sock", ResourceSettings())
        await agent.server.start()
        proxy = Proxy(settings_for(tmp_path))
        proxy.applied.refuse = lambda url, name, body: (
            "virtual_hosts[0]: no" if (url, name) == (ROUTE, "rule-set-77") else read(url, name, body)
        )
        numbers = range(1, 201)
        try:
            async with running(proxy):
                agent.link.publish(rule_sets(*numbers), ports(*numbers))
                others = {f"rule_{number}": Acceptance.ACCEPTED for number in numbers if number != 77}
                await agent.until(rule_77=Acceptance.REFUSED, **others)
                # All of them came at once, and were in force at once; each alone is only for the agent to know.
                assert len([text for text in proxy.applied.texts() if text.startswith("RDS")]) == 2
        finally:
            await agent.server.stop()

    asyncio.run(main())
