"""AuthorizationPolicy (security.istio.io): what of it holds for pods without a proxy of Istio's.

It is a say of its own beside all other policies (Tier.AUTHORIZATION), about TCP alone: a DENY policy that matches
denies; where any ALLOW policy selects a pod, one of them must match. An AUDIT policy changes nothing.
Sources: Istio, AuthorizationPolicy; istio/istio, pilot/pkg/security/authz (what matches), pkg/config/validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.istio.hbone import AMBIENT, AUTHORIZATION, DATAPLANE, HBONE, NONE, PROXY
from spliceway.policy.istio.objects import MANAGED_BY, TRANSLATED_FROM
from spliceway.policy.labels import HBONE_KEY, NAMESPACE_LABELS_PREFIX, Operator, Requirement, Selector
from spliceway.policy.model import Action, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.parse_authorization_http import parse_http
from spliceway.policy.parse_authorization_source import Demand, IstioNames, demands, parse_source, whom
from spliceway.policy.parse_authorization_when import parse_when
from spliceway.policy.parse_metadata import ENFORCEMENT, Metadata
from spliceway.policy.parse_port import LAST_PORT, parse_port_number
from spliceway.policy.parse_selector import in_any_namespace, in_namespace, parse_pod_selector
from spliceway.policy.verdict import Direction, Protocol

#: Annotation by which Istio does not enforce a policy, and only says what it would do.
DRY_RUN = "istio.io/dry-run"
_UNMARKED = Requirement("k8s", HBONE_KEY, Operator.DOES_NOT_EXIST)
_NAMESPACE = NAMESPACE_LABELS_PREFIX + DATAPLANE
#: Pods that no proxy of Istio's stands before: by their own marks, or without any by their namespace's label.
_BARE = (
    (Requirement("k8s", HBONE_KEY, Operator.IN, (NONE,)),),
    (_UNMARKED, Requirement("k8s", _NAMESPACE, Operator.NOT_IN, (AMBIENT,))),
)
#: All others.
_MESHED = (
    (Requirement("k8s", HBONE_KEY, Operator.IN, (AMBIENT, PROXY)),),
    (_UNMARKED, Requirement("k8s", _NAMESPACE, Operator.IN, (AMBIENT,))),
)
_EVERY_PORT = PortRange(Protocol.TCP, 0, LAST_PORT)
_ACTIONS = {"ALLOW": Action.ALLOW, "DENY": Action.DENY, "AUDIT": None}


def parse_authorization_policy(fields: Fields, where: Where, names: IstioNames | None = None) -> NetworkPolicy:
    """An AuthorizationPolicy. Raises PolicyError for what can't be enforced exactly.

    What we have made of other policies ourselves says nothing here: it is for Istio's proxies.
    """
    names = names or IstioNames()
    meta = Metadata(fields, where, AUTHORIZATION)
    where = meta.where
    annotations = Fields(meta.annotations or {}, where.at("metadata.annotations"))
    if MANAGED_BY in meta.labels.items() and TRANSLATED_FROM in (meta.annotations or {}):
        return NetworkPolicy(AUTHORIZATION, meta.namespace, meta.name, (), where.file)
    prefix = f"{where.field}." if where.field else ""
    audit = _audit(annotations)
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    fields.ignore("status")
    fields.done()

    said = spec.take("action", str, "ALLOW")
    if said not in _ACTIONS:
        why = "asks somebody else: not supported" if said == "CUSTOM" else f"is no action ({', '.join(_ACTIONS)})"
        spec.where.at("action").refuse(f"{shown(said)} {why}")
    action = _ACTIONS[said]
    spec.unsupported(("targetRef", "targetRefs", "provider"))
    subject = _subject(spec, meta.namespace, names)
    found = spec.take("rules", list, [])
    spec.done()
    rules: list[Rule] = []
    if action is not None:  # an audit changes nothing, whatever it says
        for place, item in spec.where.at("rules").items(found, dict):
            path = place.field.removeprefix(prefix)
            rules += _rules(Fields(item, place), action, path, meta.namespace, names)
    return NetworkPolicy(
        AUTHORIZATION, meta.namespace, meta.name, tuple(_specs(action, subject, rules)), where.file, audit
    )


def _specs(action: Action | None, subject: Selector, rules: list[Rule]) -> Iterator[Spec]:
    """Where a proxy of Istio's stands, only denials of connections are for us: HBONE and mTLS hide the rest.

    Of those that name ports the port of HBONE is left out there, or it would be denied for what comes by it.
    """
    if action is None or (action is Action.DENY and not rules):
        yield _spec(subject, [])
        return
    plain = [_only(rule, lambda entry: entry.http is None) for rule in rules]
    seen = [rule for rule in plain if rule.to_ports]
    if action is Action.DENY and len(seen) == len(rules) == len([one for one in rules if _is_literal(one)]):
        yield _spec(subject, rules)
        return
    for marks in _BARE:
        yield _spec(_also(subject, marks), rules, closed=action is Action.ALLOW)
    if action is Action.DENY and seen:
        for marks in _MESHED:
            yield _spec(_also(subject, marks), [_without_hbone(rule) for rule in seen])


def _spec(subject: Selector, rules: list[Rule], *, closed: bool = False) -> Spec:
    applies = closed or bool(rules)
    return Spec("spec", subject, tuple(rules), (closed, False), (applies, False), tier=Tier.AUTHORIZATION)


def _also(subject: Selector, marks: tuple[Requirement, ...]) -> Selector:
    return msgspec.structs.replace(subject, requirements=(*subject.requirements, *marks))


def _only(rule: Rule, wanted: Callable[[PortRule], bool]) -> Rule:
    return msgspec.structs.replace(rule, to_ports=tuple(filter(wanted, rule.to_ports)))


def _is_literal(rule: Rule) -> bool:
    """Whether a rule is without HTTP, and has the port of HBONE among others only where it has all ports."""
    return all(
        entry.http is None
        and (_EVERY_PORT in entry.ports or not any(one.first != one.last and _has_hbone(one) for one in entry.ports))
        for entry in rule.to_ports
    )


def _has_hbone(ports: PortRange) -> bool:
    return ports.covers(Protocol.TCP, HBONE)


def _without_hbone(rule: Rule) -> Rule:
    if _is_literal(rule):
        return rule
    entries = (
        msgspec.structs.replace(entry, ports=tuple(part for one in entry.ports for part in _cut(one)))
        for entry in rule.to_ports
    )
    return msgspec.structs.replace(rule, to_ports=tuple(entries))


def _cut(ports: PortRange) -> Iterator[PortRange]:
    """Ports but that of HBONE, which alone is meant so."""
    if ports.first == ports.last or not _has_hbone(ports):
        yield ports
        return
    if ports.first < HBONE:
        yield msgspec.structs.replace(ports, last=HBONE - 1)
    if ports.last > HBONE:
        yield msgspec.structs.replace(ports, first=HBONE + 1)


def _audit(annotations: Fields) -> bool:
    """Whether it is not enforced: by Istio's annotation or by ours."""
    dry = annotations.take(DRY_RUN, str, "false")
    if dry not in ("true", "false"):
        annotations.where.at(DRY_RUN).refuse(f"{shown(dry)} is neither true nor false")
    mode = annotations.take(ENFORCEMENT, str, "enforce")
    if mode not in ("enforce", "audit"):
        annotations.where.at(ENFORCEMENT).refuse(f"{shown(mode)} is not a mode (enforce, audit)")
    return bool(dry == "true" or mode == "audit")


def _subject(spec: Fields, namespace: str, names: IstioNames) -> Selector:
    selector = Fields(spec.take("selector", dict, {}), spec.where.at("selector"))
    labels = selector.take("matchLabels", dict, {})
    selector.done()
    found = parse_pod_selector({"matchLabels": labels}, selector.where)
    return in_any_namespace(found) if namespace == names.root_namespace else in_namespace(found, namespace)


def _rules(fields: Fields, action: Action, path: str, namespace: str, names: IstioNames) -> list[Rule]:
    """What one rule says: any of its sources, any of its operations, all of its conditions."""
    conditions = parse_when(fields)
    sources = [parse_source(one, namespace, names, conditions.sources) for one in _each(fields, "from", "source")]
    if conditions.sources and not sources:
        sources.append(whom(conditions.sources, fields.where.at("when"), namespace, names))
    operations = _each(fields, "to", "operation")
    fields.done()
    ports: list[PortRange] = []
    entries: list[PortRule] = []
    for index, operation in enumerate(operations):
        name = f"{path}.to[{index}].operation"
        http = parse_http(operation, name)
        found = _operation(operation, conditions.ports, any_port=http is not None)
        if http is None:
            ports += found
        elif found:
            entries.append(PortRule(name, tuple(found), (http,)))
    if not operations:
        ports = _ports(conditions.ports)
    if ports:
        entries.insert(0, PortRule(path, tuple(ports)))
    if not entries:
        return []  # all ports, but for all ports
    return [Rule(path, Direction.INGRESS, action, _any_of(sources), tuple(entries))]


def _each(fields: Fields, name: str, inner: str) -> list[Fields]:
    """What is in each item of a list. An empty list is refused: it could mean nobody or everybody."""
    place = fields.where.at(name)
    if not fields.has(name):
        return []
    found = []
    for at, item in place.items(fields.take(name, list), dict):
        one = Fields(item, at)
        content = one.take(inner, dict)
        one.done()
        if content is None:
            at.at(inner).refuse("is missing")
        found.append(Fields(content, at.at(inner)))
    if not found:
        place.refuse("is empty")
    return found


def _any_of(sources: list[Peers]) -> Peers | None:
    if not sources:
        return None
    endpoints = dict.fromkeys(selector for one in sources for selector in one.endpoints)
    return Peers(endpoints=tuple(endpoints), cidrs=tuple(dict.fromkeys(cidr for one in sources for cidr in one.cidrs)))


def _operation(fields: Fields, conditions: list[Demand], *, any_port: bool) -> list[PortRange]:
    said = demands(fields, ("ports",))
    fields.done()
    if not said and not any_port:
        fields.where.refuse("needs something that it means")
    return _ports([*said, *conditions])


def _ports(said: Sequence[Demand]) -> list[PortRange]:
    """Ports that fulfil all of these demands."""
    if not said:
        return [_EVERY_PORT]
    kept: set[int] | None = None
    without: set[int] = set()
    for one in said:
        ports = {_port(text, place) for place, text in one.values}
        if one.negated:
            without |= ports
        else:
            kept = ports if kept is None else kept & ports
    if kept is None:
        return list(_between(sorted(without)))
    found: list[PortRange] = []
    for port in sorted(kept - without):
        # The port of HBONE, where it is named, stays apart from its neighbours (`_is_literal`).
        if found and found[-1].last == port - 1 and HBONE not in (port - 1, port):
            found[-1] = PortRange(Protocol.TCP, found[-1].first, port)
        else:
            found.append(PortRange(Protocol.TCP, port, port))
    return found


def _between(without: list[int]) -> Iterator[PortRange]:
    """All ports but these."""
    first = 0
    for port in (*without, LAST_PORT + 1):
        if first < port:
            yield PortRange(Protocol.TCP, first, port - 1)
        first = port + 1


def _port(text: str, where: Where) -> int:
    found = parse_port_number(text)
    return where.refuse(f"{shown(text)} is not a port") if found is None else found
