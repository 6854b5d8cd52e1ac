"""Queries of `policy evaluate`: one JSON line in, one JSON line out. Pure; the interpreter answers.

Every answer repeats the query as it came and adds to it; a query that can't be asked gets `error` instead.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

import msgspec

from spliceway.agent.cli.servicequeries import AnswerBackend, Frontends
from spliceway.policy.evaluate import Connection, Decision, Half
from spliceway.policy.evaluator import Evaluator
from spliceway.policy.http import HttpRequest
from spliceway.policy.istio.hbone import closed_cluster
from spliceway.policy.istio.left import cluster_on_the_wire
from spliceway.policy.model import Cluster, IPAddress
from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Protocol, Reason, Verdict

_RULE = re.compile(r"\.(ingress|egress|ingressDeny|egressDeny)\[([0-9]+)\]")
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.+)`")
#: How msgspec writes the place of a header.
_SOME_HEADER = "http.headers[...]"
_ICMP = (int(Protocol.ICMP), int(Protocol.ICMPV6))
_WITH_PORTS = (int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP))
#: Answers whose text is kept; equal decisions of the evaluator are mostly one object.
_KEPT = 100_000
_SHOWN = 200


class QueryHttp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request of a query. A header may have several values."""

    method: str = "GET"
    path: str = "/"
    headers: dict[str, str | list[str]] = {}


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "destination": "to"}):
    """One question. `source` and `destination`: «namespace/pod» or an IP address; `type` and `code` are of ICMP."""

    source: str
    destination: str
    protocol: str | int = "TCP"
    port: int | None = None
    http: QueryHttp | None = None
    type: int | None = None
    code: int | None = None


class AnswerRule(msgspec.Struct, frozen=True):
    """A rule by kind, namespace (empty: clusterwide), name, its place in `ingress`, `egress` …, and its field path."""

    kind: str
    namespace: str
    name: str
    index: int | None
    path: str


class AnswerChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a mismatch action does to a header. The value of a Secret is left out."""

    action: str
    name: str
    value: str | None = None


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What is added to a query. `ingress` and `egress` are null where no pod stands (and for a pod to itself).

    `service`: whose address it is; then the answer is that of its `backends`, `depends` where these differ.
    """

    verdict: str
    ingress: str | None
    egress: str | None
    reason: str
    rules: tuple[AnswerRule, ...]
    audit: bool | msgspec.UnsetType = msgspec.UNSET
    nearest_miss: str | msgspec.UnsetType = msgspec.UNSET
    changes: tuple[AnswerChange, ...] | msgspec.UnsetType = msgspec.UNSET
    service: str | msgspec.UnsetType = msgspec.UNSET
    backends: tuple[AnswerBackend, ...] | msgspec.UnsetType = msgspec.UNSET


class QueryError(Exception):
    """A query that can't be asked: field and reason."""


class Asker:
    """Answers queries about one cluster. `asked` and `wrong` count; `first_error` says what the first wrong one was."""

    def __init__(self, cluster: Cluster) -> None:
        self._evaluator = Evaluator(cluster_on_the_wire(closed_cluster(cluster)))
        self._frontends = Frontends(cluster)
        self._pods = {pod.key: {} for pod in cluster.pods.values()}  # type: dict[str, dict[int, IPAddress]]
        for pod in cluster.pods.values():
            for address in pod.addresses:
                self._pods[pod.key].setdefault(address.version, address)
        self._decoder = msgspec.json.Decoder(Query)
        self._encoder = msgspec.json.Encoder()
        self._texts: dict[int, tuple[Decision, bytes]] = {}
        self.asked = 0
        self.wrong = 0
        self.first_error = ""

    def __repr__(self) -> str:
        return f"Asker(asked={self.asked}, wrong={self.wrong})"

    def line(self, text: bytes) -> bytes:
        """The answer to one line, as a line of JSON without its end."""
        self.asked += 1
        text = text.strip()
        try:
            query = self._decoder.decode(text)
            decision = self.decide(query)
            if isinstance(decision, Answer):
                return b"%b,%b" % (text[:-1].rstrip(), self._encoder.encode(decision)[1:])
        except (QueryError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return self._error(text, error)
        kept = self._texts.get(id(decision))
        if kept is None:
            if len(self._texts) >= _KEPT:
                self._texts.clear()
            # The decision is kept with its text, so that its id stays its own.
            kept = self._texts[id(decision)] = (decision, self._encoder.encode(answer(decision))[1:])
        return b"%b,%b" % (text[:-1].rstrip(), kept[1])

    def decide(self, query: Query) -> Decision | Answer:
        """Ask the interpreter; the answer itself where a Service is dialled. Raises QueryError."""
        source, destination = self._ends(query)
        protocol = _protocol(query.protocol, source.version)
        port = _port(query, protocol)
        request = None
        if query.http is not None:
            if protocol != Protocol.TCP:
                raise QueryError("http: only with protocol TCP")
            request = _request(query.http, destination, port)
        led = self._frontends.of(source, destination, protocol, port)
        if led is None:
            return self._evaluator.evaluate(Connection(source, destination, protocol, port), request)
        asked = [Connection(source, one.address, protocol, one.port) for one in led.backends]
        answers = [answer(self._evaluator.evaluate(one, request)) for one in asked]
        one = answers[0] if len(set(answers)) == 1 else Answer("depends", None, None, Reason.SERVICE.label, ())
        backends = tuple(
            AnswerBackend(str(to.address), to.port, said.verdict, said.reason)
            for to, said in zip(led.backends, answers, strict=True)
        )
        return msgspec.structs.replace(one, service=led.service, backends=backends)

    def _ends(self, query: Query) -> tuple[IPAddress, IPAddress]:
        """Addresses of one family: the first of `from` for which `to` has one too."""
        sources, destinations = self._end("from", query.source), self._end("to", query.destination)
        for version, address in sources.items():
            if version in destinations:
                return address, destinations[version]
        raise QueryError(f"from, to: {query.source} and {query.destination} have no addresses of one family")

    def _end(self, field: str, name: str) -> dict[int, IPAddress]:
        found = self._pods.get(name)
        if found:
            return found
        if found is not None:
            raise QueryError(f"{field}: pod {name} has no address (status.podIP)")
        if "/" in name:
            raise QueryError(f"{field}: the inventory has no pod {_shown(name)}")
        address = _address(name)
        if address is None:
            raise QueryError(f"{field}: {_shown(name)} is neither NAMESPACE/POD nor an IP address")
        return {address.version: address}

    def _error(self, text: bytes, error: Exception) -> bytes:
        self.wrong += 1
        try:
            repeated = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            repeated = None
        if not isinstance(repeated, dict):
            repeated = {"query": _shown(text.decode(errors="replace"))}
        reason = _reason(error).replace(_SOME_HEADER, f"http.headers[{_odd_header(repeated)}]")
        self.first_error = self.first_error or f"query {self.asked}: {reason}"
        return self._encoder.encode({**repeated, "error": reason})


def answer(decision: Decision) -> Answer:
    """What is told of a decision."""
    http = decision.http
    passes = decision.verdict is not Verdict.DENY and (http is None or http.verdict is Verdict.ALLOW)
    reason = decision.reason
    if http is not None and not (passes and reason.denies):
        reason = http.reason
    unset = msgspec.UNSET
    return Answer(
        verdict="allow" if passes else "deny",
        ingress=_half(decision, decision.ingress),
        egress=_half(decision, decision.egress),
        reason=reason.label,
        rules=tuple(map(_rule, _rules(decision))),
        audit=True if passes and reason.denies else unset,
        nearest_miss=decision.nearest_miss or unset,
        changes=tuple(
            AnswerChange(change.action.value, change.name, None if change.secret else change.value)
            for change in http.changes
        )
        if passes and http is not None and http.changes
        else unset,
    )


def _half(decision: Decision, half: Half | None) -> str | None:
    """Verdict of one end. Where its HTTP rules were asked it is theirs."""
    if half is None:
        return None
    if half.verdict is not Verdict.REDIRECT or decision.http is None:
        return half.verdict.label
    return "deny" if decision.http.verdict is Verdict.DENY and half is _asked_last(decision) else "allow"


def _asked_last(decision: Decision) -> Half | None:
    """The end whose HTTP rules decided."""
    ends = [
        half for half in (decision.egress, decision.ingress) if half is not None and half.verdict is Verdict.REDIRECT
    ]
    return ends[-1 if decision.http is not None and decision.http.also else 0] if ends else None


def _rules(decision: Decision) -> list[RuleRef]:
    """The rule that denies; else those that let pass, of egress, ingress and HTTP in this order."""
    if decision.verdict is Verdict.DENY:
        return [decision.rule] if decision.rule is not None else []
    if decision.http is not None and decision.http.verdict is Verdict.DENY:
        end = _asked_last(decision)
        if end is None or decision.http.reason is not Reason.HTTP_DENIED:
            return []
        return [*end.contributors, *end.allows, *end.denies]
    halves = [half.rule for half in (decision.egress, decision.ingress) if half is not None]
    return [rule for rule in dict.fromkeys((*halves, decision.http_rule)) if rule is not None]


def _rule(ref: RuleRef) -> AnswerRule:
    kind, _, key = ref.policy.partition(" ")
    namespace, slash, name = key.partition("/")
    found = _RULE.search(ref.path)
    index = int(found[2]) if found else None
    return AnswerRule(kind, namespace if slash else "", name if slash else key, index, ref.path)


def _protocol(value: str | int, version: int) -> int:
    if isinstance(value, str):
        found = Protocol.__members__.get(value.upper())
        if found is None or found is Protocol.ANY:
            raise QueryError(f"protocol: {_shown(value)} is none of TCP, UDP, SCTP, ICMP, ICMPv6 and no number")
        value = int(found)
    if not 0 < value < 256:
        raise QueryError(f"protocol: {value} is not an IP protocol (1 to 255)")
    if value in _ICMP and value != _ICMP[version == 6]:
        raise QueryError(f"protocol: {Protocol(value).name} does not go with an IPv{version} address")
    return value


def _port(query: Query, protocol: int) -> int:
    if protocol in _ICMP:
        if query.port is not None:
            raise QueryError("port: ICMP has none (there are type and code)")
        kind, code = query.type, query.code or 0
        if kind is None or not (0 <= kind < 256 and 0 <= code < 256):
            raise QueryError("type: ICMP needs a type from 0 to 255 (and has a code from 0 to 255)")
        return kind << 8 | code
    if query.type is not None or query.code is not None:
        raise QueryError("type, code: only with ICMP")
    if protocol not in _WITH_PORTS:
        if query.port:
            raise QueryError(f"port: IP protocol {protocol} has none")
        return 0
    if query.port is None or not 0 < query.port < 65536:
        raise QueryError(f"port: {'is missing' if query.port is None else query.port} (1 to 65535)")
    return query.port


def _request(http: QueryHttp, server: IPAddress, port: int) -> HttpRequest:
    """The request; without a Host that of a client which was told the server's address and port."""
    headers = [
        (name, value)
        for name, values in http.headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    if not any(name.lower() == "host" for name, _ in headers):
        host = f"[{server}]" if server.version == 6 else str(server)
        headers.insert(0, ("Host", host if port == 80 else f"{host}:{port}"))
    try:
        return HttpRequest.of(http.method, http.path, headers)
    except UnicodeEncodeError as error:
        raise QueryError(f"http: {_shown(str(error.object))} has characters beyond Latin-1") from None


@lru_cache(maxsize=65_536)
def _address(text: str) -> IPAddress | None:
    """An address of packets."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and (found.ipv4_mapped is not None or found.scope_id is not None):
        return None
    return found


def _reason(error: Exception) -> str:
    """A sentence without msgspec's `$`: «port: Expected `int`, got `str`»."""
    text = str(error)
    if isinstance(error, msgspec.DecodeError):
        reason, _, place = text.partition(" - at ")
        field = place.strip("`").removeprefix("$").removeprefix(".")
        if match := _FIELD.fullmatch(reason):
            told = "unknown field" if match[1] == "contains unknown" else "is required"
            return f"{field}.{match[2]}: {told}" if field else f"{match[2]}: {told}"
        return f"{field}: {reason}" if field else reason
    return text


def _odd_header(query: dict[str, Any]) -> str:
    """The first header of a query whose value is neither text nor a list of texts; msgspec does not name it."""
    http = query.get("http")
    headers = http.get("headers") if isinstance(http, dict) else None
    for name, value in headers.items() if isinstance(headers, dict) else ():
        if not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])):
            return _shown(name)
    return "…"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
