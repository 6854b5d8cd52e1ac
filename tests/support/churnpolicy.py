"""Policy files of a node that change at random, and what traffic between its pods may see of it. Pure.

The reference interpreter says what is right. A connection may break where it denies, and where the connection would
meet another rule set than the one it began under: another verdict, or other policies that contribute, or the same in
another mode (ARCHITECTURE.md, «Conntrack»). An edit of HTTP rules alone breaks nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any

import msgspec

from spliceway.policy.evaluate import Connection, Decision
from spliceway.policy.evaluator import Evaluator
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster, IPAddress
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Verdict
from support.churnjudge import BROKEN_KINDS, Timeline
from support.churnload import REFUSED, Record

CLIENTS, SERVERS = ("client", "guest"), ("api", "shop")
#: The server of wrk: only the HTTP rules of its policy are edited, and always let `/open` pass.
STEADY = "steady"
REQUESTS = tuple(
    HttpRequest.of(method, path, (("host", "api"), *headers))
    for method, path, headers in (
        ("GET", "/a", ()),
        ("GET", "/b/1", (("x-team", "red"),)),
        ("GET", "/b/2?x=1", ()),
        ("POST", "/a", (("x-team", "blue"),)),
        ("GET", "/c", (("x-team", "red"), ("x-role", "admin"))),
        ("GET", "/a;x", ()),
    )
)
_PATHS = ("/a", "/b/[0-9]+", "/[ab].*", "/c", ".*")
_HEADERS = ("X-Team: red", "X-Team", "X-Role: admin")


class Policy(msgspec.Struct, frozen=True):
    """A policy of one pod in one direction. `peers`: other pods; `http` None: every request of theirs passes."""

    subject: str
    direction: str
    peers: tuple[str, ...]
    http: tuple[Mapping[str, Any], ...] | None
    audit: bool = False

    def document(self, name: str) -> str:
        """As a file."""
        ports: dict[str, Any] = {"ports": [{"port": "80", "protocol": "TCP"}]}
        if self.http is not None:
            ports["rules"] = {"http": list(self.http)}
        peers = "fromEndpoints" if self.direction == "ingress" else "toEndpoints"
        rule = {peers: [{"matchLabels": {"role": peer}} for peer in self.peers], "toPorts": [ports]}
        metadata: dict[str, Any] = {"name": name, "namespace": "default"}
        if self.audit:
            metadata["annotations"] = {"spliceway.io/enforcement": "audit"}
        spec = {"endpointSelector": {"matchLabels": {"role": self.subject}}, self.direction: [rule]}
        return json.dumps(
            {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
        )


#: Name of the file → subject and direction.
_FILES = {
    "api-1": ("api", "ingress"),
    "api-2": ("api", "ingress"),
    "shop": ("shop", "ingress"),
    "client": ("client", "egress"),
    "guest": ("guest", "egress"),
    STEADY: (STEADY, "ingress"),
}


class State:
    """One moment: the policies by the name of their file, on a node with these pods."""

    def __init__(self, pods: Cluster, policies: Mapping[str, Policy]) -> None:
        self.pods, self.policies = pods, policies

    @cached_property
    def evaluator(self) -> Evaluator:
        """The interpreter's answers."""
        documents = "\n---\n".join(policy.document(name) for name, policy in self.policies.items())
        parsed = parse_text(documents, "policies.yaml")
        assert not parsed.errors, parsed.errors
        return Evaluator(self.pods.with_objects(parsed.objects))


def first_state(random: Random, pods: Cluster) -> State:
    """Where it begins."""
    return State(pods, {name: _policy(random, name) for name in ("api-1", "shop", "client", STEADY)})


def changed(random: Random, state: State, done: Counter[str]) -> tuple[str, State]:
    """The next moment, by one edit, counted in `done`: the file's name, and the state. It always differs."""
    name = random.choice(list(_FILES))
    old = state.policies.get(name)
    what, new = ("added", _policy(random, name)) if old is None else _edited(random, name, old)
    if new == old:
        return changed(random, state, done)
    done[what] += 1
    policies = {key: value for key, value in state.policies.items() if key != name}
    return name, State(state.pods, policies | ({name: new} if new is not None else {}))


def _edited(random: Random, name: str, old: Policy) -> tuple[str, Policy | None]:
    fresh = _policy(random, name)
    if name == STEADY:
        return "HTTP rules", fresh
    what = random.choice((*["HTTP rules"] * 8, "audit", "audit", "removed", "removed", "peers", "HTTP or not"))
    change = msgspec.structs.replace
    if what == "HTTP rules" and old.http is not None:
        return what, change(old, http=_rules(random, name))
    if what == "removed":
        return what, None
    if what == "peers":
        return what, change(old, peers=fresh.peers)
    if what == "HTTP or not":
        return what, change(old, http=None if old.http is not None else _rules(random, name))
    return "audit", change(old, audit=not old.audit)


def _policy(random: Random, name: str) -> Policy:
    subject, direction = _FILES[name]
    if name == STEADY:
        return Policy(subject, direction, ("wrk",), _rules(random, name))
    others = CLIENTS if direction == "ingress" else SERVERS
    peers = others if random.random() < 0.8 else (random.choice(others),)
    http = _rules(random, name) if random.random() < 0.85 else None
    return Policy(subject, direction, tuple(peers), http, random.random() < 0.2)


def _rules(random: Random, name: str) -> tuple[Mapping[str, Any], ...]:
    rules: list[Mapping[str, Any]] = [{"path": "/open"}] if name == STEADY else []
    for _ in range(random.randint(1, 3)):
        rule: dict[str, Any] = {"path": random.choice(_PATHS)}
        if random.random() < 0.5:
            rule["method"] = random.choice(("GET", "POST", "GET|POST"))
        if random.random() < 0.3:
            rule["headers"] = [random.choice(_HEADERS)]
        rules.append(rule)
    return tuple(rules)


class Judge:
    """Judges records whose target is `client server`, by the interpreter.

    `counts`: what they were; `wrong`: those that no state explains; `late`: seconds after which answers of an earlier
    state still came when the new one was in force.
    """

    def __init__(
        self, timeline: Timeline[State], addresses: Mapping[str, Sequence[IPAddress]], tolerance: float
    ) -> None:
        """`addresses`: of the pods by name. `tolerance`: so many seconds late is not wrong, but in `late`."""
        self._timeline, self._addresses, self._tolerance = timeline, addresses, tolerance
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.late: list[float] = []

    def judge(self, record: Record) -> None:
        """Take one in."""
        kind = BROKEN_KINDS.get(record.status, str(record.status))
        if record.status <= 0:
            life = self._decisions(record, record.opened, record.end)
            if any(decision.verdict is Verdict.DENY for decision in life):
                self.counts[f"{kind}, denied"] += 1
            elif (record.request >= 0 or record.status == REFUSED) and len(set(map(_met, life))) > 1:
                # While it is being made it is either ended for all to see, or gets through at its next attempt.
                self.counts[f"{kind}, other rules"] += 1
            else:
                self._note(record, kind)
        elif self._fits(record, 0.0):
            self.counts[kind] += 1
        elif self._fits(record, self._tolerance):
            self.counts[f"{kind}, late"] += 1
            self.late.append(self._timeline.age(record.begin))
        else:
            self._note(record, kind)

    def _decisions(self, record: Record, begin: float, end: float) -> list[Decision]:
        client, server = record.target.split()
        request = REQUESTS[max(record.request, 0)]
        (source, *_), (destination, *_) = self._addresses[client], self._addresses[server]
        connection = Connection(source, destination, 6, 80)
        window = self._timeline.window(begin, end)
        return [self._timeline.states[index].evaluator.evaluate(connection, request) for index in window]

    def _fits(self, record: Record, tolerance: float) -> bool:
        found = self._decisions(record, record.begin - tolerance, record.end)
        return any(_answer(decision) == record.status for decision in found) and _says(record)

    def _note(self, record: Record, kind: str) -> None:
        states = self._timeline.window(record.opened, record.end)
        self.counts[f"{kind}, WRONG"] += 1
        self.wrong.append(f"{record}, states {states.start} to {states.stop - 1}")


def _says(record: Record) -> bool:
    """Whether the answer's body is right for its status."""
    if record.status != 200:
        return record.body == b"Access denied"
    request = REQUESTS[record.request]
    _, server = record.target.split()
    return record.body == b"%b %b %b\n" % (server.encode(), request.method, request.path)


def _answer(decision: Decision) -> int | None:
    """Status; None: there is none."""
    if decision.verdict is Verdict.DENY:
        return None
    return decision.http.status if decision.http is not None else 200


def _met(decision: Decision) -> object:
    """What a connection is bound to: the rule set is named by who contributes, enforced or in audit."""
    halves = (decision.egress, decision.ingress)
    return decision.verdict, tuple((half.contributors, half.audit) if half is not None else None for half in halves)
