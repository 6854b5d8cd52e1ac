"""What Istio's AuthorizationPolicy says, for the oracle: a say of its own, for TCP, at servers without Istio's proxy.

Source: istio.io/latest/docs/reference/config/security/authorization-policy («Authorization Policy», «Rule», «Source»,
«Operation», «Condition»), and «Implicit enablement»: DENY before ALLOW; without any ALLOW policy everything passes; any
rule, any source, any operation, all conditions; of one of them all that it has. On TCP rules of ALLOW that ask for HTTP
never match, and DENY does without what it asks of HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any, NamedTuple

from support.oracle_world import Ask, Doc, Match, Who, World, labels_of, namespace_of, selects, title

_ROOT, _TRUST_DOMAIN = "istio-system", "cluster.local"
_HTTP = ("hosts", "methods", "paths")
#: What `{*}` stands for in a segment (Envoy, URI template).
_PCHAR = re.compile(r"[A-Za-z0-9._~%!$&'()+,;:@=-]*")


class Request(NamedTuple):
    """A request as the rules see it: its path is normalised, and has a query perhaps."""

    method: str
    path: str
    host: str


class Said(NamedTuple):
    """What the policies say of a connection. `silent`: there are none, or none for TCP.

    `denials`, `allowed`: rules that decide on the connection (`Try`: only told); `asks`, `refuses`: operations that ask
    for HTTP. `closed`: there are ALLOW policies.
    """

    silent: bool
    denials: list[Match]
    allowed: list[Match]
    asks: list[Match]
    refuses: list[Match]
    closed: bool


def says(world: World, ask: Ask) -> Said:
    """Of the policies of a server, by namespace and name."""
    found = Said(True, [], [], [], [], False)
    if ask.direction != "ingress":
        return found
    meshed = _meshed(world, ask.pod)
    for policy, spec in _about(world, ask):
        action = spec.get("action", "ALLOW")
        operations = [one["operation"] for rule in spec.get("rules", []) for one in rule.get("to", [{"operation": {}}])]
        if action == "DENY" and all(meshed and _is_http(one) for one in operations):
            continue  # it says nothing, or it is the proxy's business
        found = found._replace(silent=False)
        if ask.protocol != "TCP":
            continue
        dry = policy["metadata"].get("annotations", {}).get("istio.io/dry-run") == "true"
        if action == "ALLOW" and not dry:
            found = found._replace(closed=True)
        for index, rule in enumerate(spec.get("rules", [])):
            if not any(_comes(one["source"], policy, ask.peer) for one in rule.get("from", [{"source": {}}])):
                continue
            if not all(_is_so(one, policy, ask) for one in rule.get("when", [])):
                continue
            name = f"{title(policy)} spec.rules[{index}]"
            for place, one in enumerate(rule.get("to", [{"operation": {}}])):
                if not _holds(one["operation"], "ports", lambda value: int(value) == ask.port):
                    continue
                if not _is_http(one["operation"]):
                    sort = found.denials if action == "DENY" else found.allowed
                    sort.append(Match("Try" if dry else "Deny" if action == "DENY" else "Accept", name))
                elif not dry and not meshed:
                    sort = found.refuses if action == "DENY" else found.asks
                    sort.append(Match(action, f"{name}.to[{place}].operation", http=True))
    return found


def permits(world: World, ask: Ask, request: Request | None) -> bool:
    """Whether a request passes, or with None a connection that is no HTTP."""
    if ask.direction != "ingress" or ask.protocol != "TCP":
        return True
    found: dict[str, list[bool]] = {"ALLOW": [], "DENY": []}
    for policy, spec in _about(world, ask):
        matches = any(_matches(rule, policy, ask, request) for rule in spec.get("rules", []))
        found[spec.get("action", "ALLOW")].append(matches)
    return not any(found["DENY"]) and (not found["ALLOW"] or any(found["ALLOW"]))


def _about(world: World, ask: Ask) -> Iterator[tuple[Doc, Doc]]:
    """Policies of ALLOW and DENY for a pod, and their specifications. What Spliceway has made itself is for proxies."""
    for policy in world.of("AuthorizationPolicy"):
        spec = policy.get("spec", {})
        own = labels_of(policy).get("app.kubernetes.io/managed-by") == "spliceway"
        here = namespace_of(policy) in (_ROOT, namespace_of(ask.pod))
        if not own and here and spec.get("action", "ALLOW") in ("ALLOW", "DENY"):
            allows = spec.get("action", "ALLOW") == "ALLOW"
            if selects(spec.get("selector", {}), labels_of(ask.pod)) and not (allows and _meshed(world, ask.pod)):
                yield policy, spec


def _meshed(world: World, pod: Doc) -> bool:
    """Whether a proxy of Istio's stands before the pod."""
    asked = labels_of(pod).get("istio.io/dataplane-mode", "")
    namespace = world.namespace_labels(namespace_of(pod)).get("istio.io/dataplane-mode")
    return "sidecar.istio.io/status" in pod["metadata"].get("annotations", {}) or (asked or namespace) == "ambient"


def _matches(rule: Doc, policy: Doc, ask: Ask, request: Request | None) -> bool:
    deny = policy["spec"].get("action", "ALLOW") == "DENY"
    comes = any(_comes(one["source"], policy, ask.peer) for one in rule.get("from", [{"source": {}}]))
    comes = comes and all(_is_so(one, policy, ask) for one in rule.get("when", []))
    http = any(_is_http(one["operation"]) for one in rule.get("to", []))
    if request is None and http and not deny and all(_is_http(one["operation"]) for one in rule["to"]):
        return False
    for one in rule.get("to", [{"operation": {}}]):
        operation = one["operation"]
        if request is None and _is_http(operation) and not deny:
            continue
        goes = _holds(operation, "ports", lambda value: int(value) == ask.port)
        if comes and goes and (request is None or _asks(operation, request)):
            return True
    return False


def _is_http(operation: Doc) -> bool:
    return any(name in operation or f"not{name.title()}" in operation for name in _HTTP)


def _asks(operation: Doc, request: Request) -> bool:
    path = request.path.partition("?")[0]
    ways: dict[str, Callable[[str], bool]] = {
        "methods": lambda value: _like(value, request.method),
        "hosts": lambda value: _like(value.lower(), request.host.lower()),
        "paths": lambda value: _template(value, path) if "{" in value else _like(value, path),
    }
    return all(_holds(operation, name, way) for name, way in ways.items())


def _like(value: str, text: str) -> bool:
    if value == "*":
        return bool(text)
    if value.startswith("*"):
        return text.endswith(value[1:])
    return text.startswith(value[:-1]) if value.endswith("*") else text == value


def _template(value: str, path: str) -> bool:
    """Segment by segment; `{**}` takes any number of them."""
    return _segments(value.split("/"), path.split("/"))


def _segments(wanted: list[str], segments: list[str]) -> bool:
    if not wanted or not segments:
        return not wanted and not segments
    if wanted[0] == "{**}":
        counts = range(1, len(segments) + 1)
        return any(
            all(map(_PCHAR.fullmatch, segments[:count])) and _segments(wanted[1:], segments[count:]) for count in counts
        )
    if wanted[0] == "{*}":
        same = bool(segments[0]) and _PCHAR.fullmatch(segments[0]) is not None
    else:
        same = wanted[0] == segments[0]
    return same and _segments(wanted[1:], segments[1:])


def _comes(source: Doc, policy: Doc, peer: Who) -> bool:
    """All of its fields hold, each by one of its values; of a `not…` by none."""
    namespace = account = None
    if peer.pod is not None:
        namespace = namespace_of(peer.pod)
        account = f"{namespace}/{peer.pod['spec'].get('serviceAccountName', 'default')}"
    principal = f"{_TRUST_DOMAIN}/ns/{account.replace('/', '/sa/')}" if account else None

    def is_account(value: str) -> bool:
        return account == (value if "/" in value else f"{namespace_of(policy)}/{value}")

    def is_in(value: str) -> bool:
        network = ip_network(value)
        return bool(peer.address.version == network.version and peer.address in network)

    ways: dict[str, Any] = {
        "namespaces": lambda value: namespace is not None and _like(value, namespace),
        "principals": lambda value: principal is not None and _like(value, principal),
        "serviceAccounts": is_account,
        "ipBlocks": is_in,
    }
    return all(_holds(source, field, way) for field, way in ways.items())


#: Which field of a source says the same as a condition.
_CONDITIONS = {
    "source.ip": "ipBlocks",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "source.serviceAccount": "serviceAccounts",
}


def _is_so(condition: Doc, policy: Doc, ask: Ask) -> bool:
    """By one of its `values`, where there are any, and by none of its `notValues`."""
    field = _CONDITIONS.get(condition["key"], "ports")
    negation = f"not{field[0].upper()}{field[1:]}"
    names = {"values": field, "notValues": negation}
    part = {names[name]: values for name, values in condition.items() if name != "key"}
    if condition["key"] == "destination.port":
        return _holds(part, "ports", lambda value: int(value) == ask.port)
    return _comes(part, policy, ask.peer)


def _holds(part: Doc, field: str, is_one: Any) -> bool:
    opposite = f"not{field[0].upper()}{field[1:]}"
    wanted = field not in part or any(map(is_one, part[field]))
    return wanted and not any(map(is_one, part.get(opposite, [])))
