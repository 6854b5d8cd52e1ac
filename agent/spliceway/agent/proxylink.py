"""The proxy side of reconciliation: rule sets and ports become an xDS snapshot, ACKs become acceptance."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog

from spliceway.agent.control import Acceptance, Answer
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.debug.status import ClientStatus, ResourceStatus, TypeStatus
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.resources.build import build_snapshot, unfit
from spliceway.xds.resources.extra import NO_EXTRA, Extra
from spliceway.xds.resources.names import listener_name, rule_set_of
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.clients import NodeKey
from spliceway.xds.server.events import EventKind, XdsEvent

#: What a proxy (Envoy, or the embedded one) says in a NACK when a listener's port belongs to somebody else.
_PORT_TAKEN = "address already in use"
#: How long one look at all acknowledgements is good for when nothing was heard, in seconds. What is heard ends it at
#: once; what the client no longer asks for is noticed so much later, and opens nothing: the sockets are asked, too.
_LOOK_SECONDS = 1.0
#: What changes what a proxy has acknowledged.
_HEARD = frozenset({EventKind.ACK, EventKind.NACK, EventKind.CONNECTED, EventKind.DISCONNECTED, EventKind.SUBSCRIBE})

_ACCEPTED = Answer(Acceptance.ACCEPTED)
_NOT_THERE = Answer(Acceptance.WAITING, message="no proxy is connected that has asked for it")
#: The worse, the earlier.
_ORDER = (Acceptance.PORT_TAKEN, Acceptance.REFUSED, Acceptance.WAITING, Acceptance.ACCEPTED)

log = structlog.get_logger(__name__)


class SnapshotServer(Protocol):
    """What is used of `XdsServer`."""

    def set_snapshot(self, node: NodeKey, snapshot: Snapshot) -> None:
        """Serve it."""

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """Every open stream."""

    def current(self, node: NodeKey) -> dict[str, TypeStatus]:
        """Short type -> status on the newest stream of that node."""


class ProxyLink:
    """Publishes to one proxy, and knows what that proxy answered."""

    def __init__(
        self, server: SnapshotServer, node: NodeKey, settings: ResourceSettings, extra: Extra = NO_EXTRA
    ) -> None:
        """`node`: how the proxy calls itself and its cluster; `extra`: resources from the configuration."""
        self._server = server
        self.node = node
        self._settings = settings
        self._extra = extra
        self._snapshot: Snapshot | None = None
        # A version must never have been used with other content, also not by an earlier agent.
        self._boot = secrets.token_hex(4)
        self._count = 0
        self._looked = float("-inf")
        self._answers: dict[int, Answer] = {}
        self._others: tuple[Answer, ...] = ()
        self._served: dict[int, RuleSet] = {}
        self._wanted: Mapping[int, RuleSet] = {}
        self._ports: Mapping[int, int] = {}
        self._lenient = False
        self._listeners: dict[int, Answer] = {}
        self._routes: dict[int, Answer] = {}
        self._good: dict[int, RuleSet] = {}  # what the proxy has taken last, rules and all
        self._stood_in: dict[int, tuple[RuleSet, str]] = {}  # what something stands in for, and why
        self._unfit: dict[int, Answer] = {}
        self._on_answer: Callable[[], None] = lambda: None
        self.nacks = 0
        self.last_nack = ""

    def __repr__(self) -> str:
        return f"ProxyLink({self.node}, version={self._snapshot and self._snapshot.version!r}, nacks={self.nacks})"

    def on_answer(self, callback: Callable[[], None]) -> None:
        """Call this after each ACK or NACK."""
        self._on_answer = callback

    def on_event(self, event: XdsEvent) -> None:
        """Take in what happened on a stream; others than this proxy's are no answer."""
        if event.kind not in _HEARD or event.node != self.node.id or event.cluster != self.node.cluster:
            return
        self._looked = float("-inf")
        if event.kind is EventKind.NACK:
            self.nacks += 1
            self.last_nack = f"{event.type}: {event.error}"
            log.error("the proxy refused resources", type=event.type, version=event.version, error=event.error)
        if event.kind in (EventKind.ACK, EventKind.NACK):
            self._on_answer()

    def publish(self, rule_sets: Mapping[int, RuleSet], ports: Mapping[int, int]) -> None:
        """Serve these and no others. Raises XdsError; then the proxy keeps what it has.

        A rule set that the proxy can't be asked for exactly is refused alone (`unfit`): the proxy keeps what it has of
        that one.
        """
        self._stood_in = {key: one for key, one in self._stood_in.items() if rule_sets.get(key) == one[0]}
        reasons = unfit(rule_sets) | {key: why for key, (_, why) in self._stood_in.items()}
        fit = {key: rule_set for key, rule_set in rule_sets.items() if key not in reasons}
        fit |= {key: self._served[key] for key in reasons if key in self._served}
        self._count += 1
        version = f"{self._boot}-{self._count}"
        fit_ports = {key: ports[key] for key in fit}
        asked = {key: lenient(rule_set) for key, rule_set in fit.items()} if self._lenient else fit
        snapshot = build_snapshot(asked, fit_ports, self._settings, version, self._snapshot, self._extra)
        self._server.set_snapshot(self.node, snapshot)
        self._snapshot, self._served, self._wanted, self._ports = snapshot, fit, dict(rule_sets), dict(ports)
        told = {answer.message for answer in self._unfit.values()}
        self._unfit = {key: Answer(Acceptance.REFUSED, message=reason) for key, reason in reasons.items()}
        self._looked = float("-inf")
        for key, reason in reasons.items():
            if reason not in told:
                log.error("the proxy can't be asked for a rule set", rule_set=rule_sets[key].name, reason=reason)

    def set_lenient(self, on: bool) -> None:
        """Let every request pass from now on, or (False) ask the rules again; what was published stays so otherwise.

        It changes routes alone, so that live connections see it at their next request. Raises XdsError.
        """
        if on == self._lenient:
            return
        before, self._lenient = self._lenient, on
        try:
            if self._snapshot is not None:
                self.publish(self._wanted, self._ports)
        except BaseException:
            self._lenient = before
            raise

    @property
    def confirmed(self) -> bool:
        """Whether a proxy is connected that has taken the rules of all that is served now. False before anything is.

        A refusal does not count: live connections go on meeting what it had before. A rule set whose listener it has
        refused, and whose rules it does not ask for, has no connections.
        """
        if self._snapshot is None or not self.clients:
            return False
        self._look()
        return all(self._meets(rule_set) for rule_set in self._served)

    def _meets(self, rule_set: int) -> bool:
        route, listener = self._routes.get(rule_set), self._listeners.get(rule_set, _NOT_THERE)
        if route is not None:
            return route.acceptance is Acceptance.ACCEPTED
        return listener.acceptance in (Acceptance.REFUSED, Acceptance.PORT_TAKEN)

    def stand_in(self) -> None:
        """Where the proxy refuses rules, serve those that it took last, or if it took none, such as nobody passes.

        So long as it has the lenient ones of before, live connections pass by all rules. Until the rule set changes it
        counts as refused. Raises XdsError.
        """
        self._look()
        found = False
        for key, answer in self._routes.items():
            bad = self._served.get(key)
            if bad is None or answer.acceptance is not Acceptance.REFUSED or bad == nobody(bad):
                continue
            good = self._good.pop(key, bad)
            self._served = {**self._served, key: good if good != bad else nobody(bad)}
            self._stood_in[key] = (self._wanted[key], answer.message)
            found = True
        if found:
            self.publish(self._wanted, self._ports)

    @property
    def unfit(self) -> dict[str, str]:
        """Rule sets that the proxy can't be asked for, by name, with the reason."""
        return {self._wanted[key].name: answer.message for key, answer in self._unfit.items()}

    @property
    def served(self) -> Mapping[int, RuleSet]:
        """The rule sets of which the proxy is served listener and routes."""
        return self._served

    @property
    def wanted(self) -> Mapping[int, RuleSet]:
        """The rule sets as they were published, also those that the proxy can't be asked for."""
        return self._wanted

    @property
    def snapshot(self) -> Snapshot | None:
        """What is served; None before the first."""
        return self._snapshot

    def acceptance(self, rule_set: int) -> Acceptance:
        """What the proxy says of listener and routes of this rule set."""
        if rule_set in self._unfit:
            return Acceptance.REFUSED
        return self._look().get(rule_set, _NOT_THERE).acceptance

    def answers(self) -> dict[int, Answer]:
        """The same of all wanted rule sets, with resource and message."""
        answers = self._look()
        return {key: self._unfit.get(key) or answers.get(key, _NOT_THERE) for key in self._wanted}

    def others(self) -> tuple[Answer, ...]:
        """What the proxy has refused that is no rule set's: the cluster that all share, resources of one's own."""
        self._look()
        return self._others

    @property
    def clients(self) -> int:
        """Open streams."""
        return len(self._server.status(resources=False))

    def _look(self) -> dict[int, Answer]:
        now = asyncio.get_running_loop().time()
        if now - self._looked > _LOOK_SECONDS:
            types = self._server.current(self.node)
            listeners, routes = self._answers_of(types.get("LDS")), self._answers_of(types.get("RDS"))
            self._listeners, self._routes = listeners, routes
            if not self._lenient:
                taken = {key for key, answer in routes.items() if answer.acceptance is Acceptance.ACCEPTED}
                kept = {key: one for key, one in self._good.items() if key in self._served}
                self._good = kept | {key: one for key, one in self._served.items() if key in taken}
            self._answers = {
                key: _worst(answer, routes.get(key) or Answer(Acceptance.WAITING, "RDS", listener_name(key)))
                for key, answer in listeners.items()
            }
            self._others = tuple(
                self._answer(status, resource)
                for status in types.values()
                for resource in status.resources
                if resource.state == "NACK" and not rule_set_of(resource.name)
            )
            self._looked = now
        return self._answers

    def _answers_of(self, status: TypeStatus | None) -> dict[int, Answer]:
        if status is None:
            return {}
        return {
            rule_set_of(resource.name): _ACCEPTED if resource.state == "SYNCED" else self._answer(status, resource)
            for resource in status.resources
        }

    def _answer(self, status: TypeStatus, resource: ResourceStatus) -> Answer:
        """Of a resource that is not acknowledged as it is."""
        name = resource.name
        if resource.state != "NACK":
            return Answer(Acceptance.WAITING, status.type, name, "not acknowledged yet")
        taken = status.type == "LDS" and _PORT_TAKEN in resource.error.lower()
        return Answer(Acceptance.PORT_TAKEN if taken else Acceptance.REFUSED, status.type, name, resource.error)


def lenient(rule_set: RuleSet) -> RuleSet:
    """The rule set that enforces nothing, and reports what it would refuse if all of it were enforced."""
    would_ask = rule_set.rules if rule_set.audit is None else rule_set.audit
    also = lenient(rule_set.also) if rule_set.also is not None else None
    return msgspec.structs.replace(rule_set, rules=None, audit=would_ask, also=also)


def nobody(rule_set: RuleSet) -> RuleSet:
    """The rule set that refuses every request: its one rule wants a method that there is not."""
    known = [
        one for end in (rule_set, rule_set.also) if end is not None for one in (*(end.rules or ()), *(end.audit or ()))
    ]
    rule = HttpRule(known[0].rule if known else 1, method="NOBODY")
    return msgspec.structs.replace(rule_set, rules=(rule,), audit=None, also=None)


def _worst(*answers: Answer) -> Answer:
    return min(answers, key=_rank)


def _rank(answer: Answer) -> int:
    return _ORDER.index(answer.acceptance)
