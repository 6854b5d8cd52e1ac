"""The proxy side of reconciliation: rule sets and ports become an xDS snapshot, ACKs become acceptance."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import structlog

from spliceway.agent.control import Acceptance
from spliceway.policy.table import RuleSet
from spliceway.xds.debug.status import ClientStatus, TypeStatus, dump_resources
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.resources.build import build_snapshot, unfit
from spliceway.xds.resources.names import listener_name, rule_set_of
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.events import EventKind, XdsEvent

#: What Envoy says in a NACK when a listener's port belongs to somebody else.
_PORT_TAKEN = "address already in use"
#: How long one look at all acknowledgements is good for when nothing was heard, in seconds. An answer ends it at once;
#: a stream that closes is noticed so much later, which opens nothing: the sockets themselves are asked, too.
_LOOK_SECONDS = 0.05

log = structlog.get_logger(__name__)


class SnapshotServer(Protocol):
    """What is used of `XdsServer`."""

    def set_snapshot(self, node: str, snapshot: Snapshot) -> None:
        """Serve it."""

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream."""

    def current(self, node: str) -> dict[str, TypeStatus]:
        """Short type -> status on the newest stream of that node."""


class ProxyLink:
    """Publishes to one proxy, which calls itself by the node's name, and knows what that proxy answered."""

    def __init__(self, server: SnapshotServer, node: str, settings: ResourceSettings) -> None:
        self._server = server
        self._node = node
        self._settings = settings
        self._snapshot: Snapshot | None = None
        # A version must never have been used with other content, also not by an earlier agent.
        self._boot = secrets.token_hex(4)
        self._count = 0
        self._looked = -1.0
        self._acceptance: dict[int, Acceptance] = {}
        self._served: dict[int, RuleSet] = {}
        self._refused: frozenset[int] = frozenset()
        self.unfit: dict[str, str] = {}
        self._on_answer: Callable[[], None] = lambda: None
        self.nacks = 0
        self.last_nack = ""

    def __repr__(self) -> str:
        return f"ProxyLink({self._node!r}, version={self._snapshot and self._snapshot.version!r}, nacks={self.nacks})"

    def on_answer(self, callback: Callable[[], None]) -> None:
        """Call this after each ACK or NACK."""
        self._on_answer = callback

    def on_event(self, event: XdsEvent) -> None:
        """Take in what happened; the callback of `XdsServer`."""
        if event.kind not in (EventKind.ACK, EventKind.NACK):
            return
        self._looked = -1.0
        if event.kind is EventKind.NACK:
            self.nacks += 1
            self.last_nack = f"{event.type}: {event.error}"
            log.error("the proxy refused resources", type=event.type, version=event.version, error=event.error)
        self._on_answer()

    def publish(self, rule_sets: Mapping[int, RuleSet], ports: Mapping[int, int]) -> None:
        """Serve these and no others. Raises XdsError; then the proxy keeps what it has.

        A rule set that the proxy can't be asked for exactly is refused alone (`unfit`: name → reason): the proxy keeps
        what it has of that one.
        """
        reasons = unfit(rule_sets)
        fit = {key: rule_set for key, rule_set in rule_sets.items() if key not in reasons}
        fit |= {key: self._served[key] for key in reasons if key in self._served}
        self._count += 1
        version = f"{self._boot}-{self._count}"
        fit_ports = {key: ports[key] for key in fit}
        snapshot = build_snapshot(fit, fit_ports, self._settings, version, self._snapshot)
        self._server.set_snapshot(self._node, snapshot)
        self._snapshot, self._served = snapshot, fit
        told, self.unfit = self.unfit, {rule_sets[key].name: reason for key, reason in reasons.items()}
        self._refused = frozenset(reasons)
        self._looked = -1.0
        for name, reason in self.unfit.items():
            if told.get(name) != reason:
                log.error("the proxy can't be asked for a rule set", rule_set=name, reason=reason)

    def acceptance(self, rule_set: int) -> Acceptance:
        """What the proxy's newest stream says of listener and routes of this rule set."""
        if rule_set in self._refused:
            return Acceptance.REFUSED
        now = asyncio.get_running_loop().time()
        if now - self._looked > _LOOK_SECONDS:
            self._acceptance = self._look()
            self._looked = asyncio.get_running_loop().time()
        return self._acceptance.get(rule_set, Acceptance.WAITING)

    @property
    def clients(self) -> int:
        """Open streams."""
        return len(self._server.status())

    def status(self) -> list[ClientStatus]:
        """Every open stream."""
        return list(self._server.status())

    def dump(self, types: Collection[str] = (), names: Collection[str] = ()) -> list[dict[str, Any]]:
        """Resources as they are served now."""
        return list(dump_resources(self._snapshot, types, names)) if self._snapshot else []

    def _look(self) -> dict[int, Acceptance]:
        types = self._server.current(self._node)
        listeners, routes = _states(types.get("LDS")), _states(types.get("RDS"))
        return {
            rule_set: _worst(listeners[rule_set], routes.get(rule_set, Acceptance.WAITING)) for rule_set in listeners
        }


def _states(status: TypeStatus | None) -> dict[int, Acceptance]:
    found: dict[int, Acceptance] = {}
    if status is None:
        return found
    error = status.last_error.message.lower() if status.last_error else ""
    for resource in status.resources:
        rule_set = rule_set_of(resource.name)
        if resource.state == "SYNCED":
            found[rule_set] = Acceptance.ACCEPTED
        elif resource.state == "NACK":
            taken = listener_name(rule_set) in error and _PORT_TAKEN in error
            found[rule_set] = Acceptance.PORT_TAKEN if taken else Acceptance.REFUSED
        else:
            found[rule_set] = Acceptance.WAITING
    return found


def _worst(*states: Acceptance) -> Acceptance:
    order = (Acceptance.PORT_TAKEN, Acceptance.REFUSED, Acceptance.WAITING, Acceptance.ACCEPTED)
    return min(states, key=order.index)
