"""What the admin API answers about xDS: clients, resources with the policies in them, events, and what Envoy has.

Each view takes what it needs in the event loop, as values, and leaves the slow part (decoding) to a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from spliceway.agent.configsections import XdsConfig
from spliceway.agent.provenance import FileOf, provenance
from spliceway.agent.proxylink import ProxyLink
from spliceway.agent.xdsjson import clients_refused, clients_shown
from spliceway.agent.xdstypes import short_type
from spliceway.policy.table import RuleRef
from spliceway.xds.debug.diff import Difference, compare
from spliceway.xds.debug.dump import dump_held
from spliceway.xds.debug.status import ClientStatus, TypeStatus
from spliceway.xds.debug.view import STAGES, DebugView, Stage
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import ROUTE, TYPES
from spliceway.xds.server.events import XdsEvent
from spliceway.xds.server.server import XdsServer

Query = dict[str, str]


class XdsViews:
    """The answers below /v1/xds/. `rules`: rule id → where it is written, as it is now."""

    def __init__(
        self,
        view: DebugView,
        proxy: ProxyLink,
        *,
        rules: Callable[[], Mapping[int, RuleRef]],
        file_of: FileOf,
        config_dump: Callable[[], Awaitable[bytes]],
        rejections: Callable[[], Iterable[XdsEvent]],
    ) -> None:
        """`config_dump` asks the agent's own proxy for its configuration; it raises XdsError.

        `rejections`: the latest streams that were not served.
        """
        self._view = view
        self._proxy = proxy
        self._rules = rules
        self._file_of = file_of
        self._config_dump = config_dump
        self._rejections = rejections

    def asks(self) -> dict[str, Callable[[Query], Awaitable[Any]]]:
        """Path below /v1/ → what answers it."""
        return {
            "xds": self.everything,
            "xds/status": self.status,
            "xds/refused": self.refused,
            "xds/resources": self.resources,
            "xds/diff": self.diff,
        }

    async def status(self, query: Query) -> list[dict[str, Any]]:
        """Every open stream."""
        _only(query)
        return await asyncio.to_thread(clients_shown, self._view.status())

    async def refused(self, query: Query) -> list[dict[str, Any]]:
        """Clients that were not served in the last minute."""
        _only(query)
        return clients_refused(self._rejections(), time.time())

    async def everything(self, query: Query) -> dict[str, Any]:
        """Clients and the own proxy's resources in one; `type` and `name` narrow the resources."""
        _only(query, "type", "name")
        return {"clients": await self.status({}), "resources": await self.resources(query)}

    async def resources(self, query: Query) -> list[dict[str, Any]]:
        """Resources of the own proxy or of `node` at a `stage`, each with where it comes from.

        Narrowed by `type` and `name`; with `contents=0` without what is in them, which is most of the work.
        Raises ValueError and LookupError.
        """
        _only(query, "node", "type", "name", "stage", "contents")
        node, stage = self._node(query), _stage(query.get("stage", "desired"))
        types = [short_type(query["type"])] if "type" in query else []
        names = [query["name"]] if "name" in query else []
        whole = query.get("contents", "1") not in ("0", "false")
        held, status, secrets = self._view.held(node, stage), self._view.current(node), self._view.secrets(node)
        served, rules = self._proxy.served, self._rules()
        if names and not any(query["name"] in of for of in held.values()):
            raise LookupError(f"{node} has no resource {query['name']!r} at the stage {stage}")

        def decode() -> list[dict[str, Any]]:
            found = []
            dump = dump_held(held, status, secrets, types, names, contents=whole)
            for item in dump:
                made = provenance(item["name"], served, rules, self._file_of)
                body = {"resource": item.pop("resource")} if whole else {}
                policies = {"origin": made.origin, "ruleSet": made.rule_set, "policies": made.policies}
                found.append({"node": node, "stage": stage, **item, **policies, **body})
            return found

        return await asyncio.to_thread(decode)

    async def diff(self, query: Query, body: bytes | None = None) -> dict[str, Any]:
        """What `node` shall have against what that proxy says it has: `body`, or what the own proxy answers when asked.

        Raises ValueError, LookupError and XdsError.
        """
        _only(query, "node")
        node = self._node(query)
        if body is None:
            if node != self._proxy.node.id:
                raise ValueError(f"{node} is not this agent's own proxy: name that proxy's admin interface (--admin)")
            body = await self._config_dump()
        held, status, secrets = self._view.held(node, "desired"), self._view.current(node), self._view.secrets(node)
        unknown = self._unknown(node)

        def look() -> list[Difference]:
            try:
                said = msgspec.json.decode(body, type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ValueError(f"that is no configuration of a proxy: {error}") from None
            return compare(held, said, secrets, status, unknown)

        return {"node": node, "resources": await asyncio.to_thread(look)}

    def _unknown(self, node: str) -> frozenset[str]:
        """Route configurations of the node whose content isn't from this agent, but from the one before it.

        Policy's Secrets are in these, and which they were is not known any more.
        """
        acked = self._view.held(node, "acked").get(ROUTE, {})
        return frozenset(name for name, held in acked.items() if held.resource is None)

    def _node(self, query: Query) -> str:
        node = query.get("node", self._proxy.node.id)
        known = self._view.nodes() | {self._proxy.node.id}
        if node not in known:
            raise LookupError(f"no node {node!r} (there are {', '.join(sorted(known))})")
        return node


def xds_counts(
    clients: Iterable[ClientStatus], own: Mapping[str, TypeStatus], desired: Snapshot | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Open streams by protocol variant, and by short type the resources of the `own` proxy that are not in sync.

    Of a type that it has not asked for, or when it is not connected, those are all that it shall have (`desired`).
    Other clients may claim to have any number of resources: they are not looked at one by one.
    """
    streams = {"sotw": 0, "delta": 0}
    for client in clients:
        streams[client.protocol] += 1
    late = {info.short: len(desired.types[url].resources) if desired else 0 for url, info in TYPES.items()}
    late |= {short: sum(one.state != "SYNCED" for one in status.resources) for short, status in own.items()}
    return streams, late


def xds_warnings(config: XdsConfig, server: XdsServer, now: float) -> list[str]:
    """What should be known of the server and its clients, one sentence each. `now`: as for `clients_refused`."""
    found = []
    clients, refused = server.status(resources=False), clients_refused(server.rejections(), now)
    if config.listen and config.insecure:
        found.append(f"xDS is served in plain TCP on {config.listen}: whoever can connect reads every policy")
    found += [f"xDS client {one.client.node}: {one.client.warning}" for one in clients if one.client.warning]
    found += [f"xDS client {one['name'] or '(without node id)'} is not served: {one['reason']}" for one in refused]
    return list(dict.fromkeys(found))


def _stage(text: str) -> Stage:
    for stage in STAGES:
        if stage == text:
            return stage
    raise ValueError(f"no stage {text!r} (there are {', '.join(STAGES)})")


def _only(query: Query, *known: str) -> None:
    if unknown := query.keys() - set(known):
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}")
