"""AuthorizationPolicy (security.istio.io): what of it holds for pods without a proxy of Istio's.

A DENY policy without HTTP is a rule in front of all others, for TCP; an AUDIT policy changes nothing. An ALLOW policy
is a second say beside NetworkPolicies, and those of one workload add up: neither is a rule here, so that it is
refused. Certificates are service accounts, `cluster.local/ns/…/sa/…`.
Sources: Istio, AuthorizationPolicy; istio/istio, pilot/pkg/security/authz (what matches), pkg/config/validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

from spliceway.policy.fields import DNS_LABEL, Fields, Where, shown
from spliceway.policy.labels import NAMESPACE_KEY, SERVICE_ACCOUNT_KEY, Operator, Requirement, Selector
from spliceway.policy.model import Action, CidrPeer, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.parse_address import parse_block
from spliceway.policy.parse_metadata import ENFORCEMENT, Metadata
from spliceway.policy.parse_port import LAST_PORT
from spliceway.policy.parse_selector import in_any_namespace, in_namespace, parse_pod_selector
from spliceway.policy.table import IPNetwork
from spliceway.policy.verdict import Direction, Protocol

_KIND = "AuthorizationPolicy"
#: Where policies are about every namespace.
ROOT_NAMESPACE = "istio-system"
TRUST_DOMAIN = "cluster.local"
#: Before the administrators' policies, whose priorities begin with 0: an additional denial is no matter of tiers.
PRIORITY = -1
#: Annotation by which Istio does not enforce a policy, and only says what it would do.
DRY_RUN = "istio.io/dry-run"
#: Most selectors that the peers of one source become.
MAX_SELECTORS = 64
_DEFAULT_ACCOUNT = "default"
_HTTP = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_NO_SOURCE = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks", "trustDomains")
_EVERY_BLOCK = ("0.0.0.0/0", "::/0")

#: Requirements that hold together.
_All = tuple[Requirement, ...]


def parse_authorization_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """An AuthorizationPolicy. Raises PolicyError for what can't be enforced exactly."""
    meta = Metadata(fields, where, _KIND)
    where = meta.where
    prefix = f"{where.field}." if where.field else ""
    audit = _audit(Fields(meta.annotations or {}, where.at("metadata.annotations")))
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    fields.ignore("status")
    fields.done()

    action = spec.take("action", str, "ALLOW")
    if action not in ("DENY", "AUDIT"):
        why = "is no action (DENY, AUDIT)"
        if action == "ALLOW":
            why = "ALLOW is a second say beside NetworkPolicies and adds up with others: no rule here does both"
        elif action == "CUSTOM":
            why = "CUSTOM asks somebody else: not supported"
        spec.where.at("action").refuse(why if action in ("ALLOW", "CUSTOM") else f"{shown(action)} {why}")
    spec.unsupported(("targetRef", "targetRefs", "provider"))
    subject = _subject(spec, meta.namespace)
    rules: list[Rule] = []
    listed = spec.take("rules", list, [])
    if action == "AUDIT":
        listed = []  # whatever it says, it changes nothing
    for place, item in spec.where.at("rules").items(listed, dict):
        rules += _rules(Fields(item, place), place.field.removeprefix(prefix), meta.namespace)
    spec.done()
    ingress, egress = (bool(rules) and direction is Direction.INGRESS for direction in Direction)
    made = Spec("spec", subject, tuple(rules), (False, False), (ingress, egress), tier=Tier.ADMIN, priority=PRIORITY)
    return NetworkPolicy(_KIND, meta.namespace, meta.name, (made,), where.file, audit)


def _audit(annotations: Fields) -> bool:
    """Whether it is not enforced: by Istio's annotation or by ours."""
    dry = annotations.take(DRY_RUN, str, "false")
    if dry not in ("true", "false"):
        annotations.where.at(DRY_RUN).refuse(f"{shown(dry)} is neither true nor false")
    mode = annotations.take(ENFORCEMENT, str, "enforce")
    if mode not in ("enforce", "audit"):
        annotations.where.at(ENFORCEMENT).refuse(f"{shown(mode)} is not a mode (enforce, audit)")
    return bool(dry == "true" or mode == "audit")


def _subject(spec: Fields, namespace: str) -> Selector:
    selector = Fields(spec.take("selector", dict, {}), spec.where.at("selector"))
    labels = selector.take("matchLabels", dict, {})
    selector.done()
    found = parse_pod_selector({"matchLabels": labels}, selector.where)
    return in_any_namespace(found) if namespace == ROOT_NAMESPACE else in_namespace(found, namespace)


def _rules(fields: Fields, path: str, namespace: str) -> list[Rule]:
    """One rule for each source: any of them, any of the operations."""
    if fields.has("when"):
        fields.where.at("when").refuse("conditions are not supported")
    fields.ignore("when")
    ports: list[PortRange] = []
    operations = list(fields.where.at("to").items(fields.take("to", list, []), dict))
    for place, item in operations:
        to = Fields(item, place)
        ports += _operation(Fields(to.need("operation", dict), place.at("operation")))
        to.done()
    if not operations:
        ports = [PortRange(Protocol.TCP, 0, LAST_PORT)]
    peers: list[Peers | None] = []
    sources = list(fields.where.at("from").items(fields.take("from", list, []), dict))
    for place, item in sources:
        one = Fields(item, place)
        peers.append(_source(Fields(one.need("source", dict), place.at("source")), namespace))
        one.done()
    fields.done()
    if not ports:
        return []  # all ports, but for all ports
    to_ports = (PortRule(path, tuple(ports)),)
    return [Rule(path, Direction.INGRESS, Action.DENY, one, to_ports) for one in (peers if sources else [None])]


def _operation(fields: Fields) -> list[PortRange]:
    for name in _HTTP:
        if fields.has(name):
            fields.where.at(name).refuse("a denial by HTTP has no counterpart")
    ports, without = _ports(fields, "ports"), _ports(fields, "notPorts")
    if ports is None and without is None:
        fields.where.refuse("needs one of ports, notPorts")
    fields.done()
    kept = sorted(set(range(LAST_PORT + 1) if ports is None else ports) - (without or set()))
    found: list[PortRange] = []
    for port in kept:
        if found and found[-1].last == port - 1:
            found[-1] = PortRange(Protocol.TCP, found[-1].first, port)
        else:
            found.append(PortRange(Protocol.TCP, port, port))
    return found


def _ports(fields: Fields, name: str) -> set[int] | None:
    if not fields.has(name):
        return None
    found = set()
    for place, text in _listed(fields, name):
        if not (text.isascii() and text.isdigit()) or int(text) > LAST_PORT:
            place.refuse(f"{shown(text)} is not a port")
        found.add(int(text))
    return found


def _source(fields: Fields, namespace: str) -> Peers:
    """Whom a source means; all that it says must hold."""
    fields.unsupported((*_NO_SOURCE, "notTrustDomains"))
    alternatives: list[list[_All]] = []
    for name, read in (("principals", _principal), ("namespaces", _namespace), ("serviceAccounts", _account)):
        for key, negated in ((name, False), (f"not{name[0].upper()}{name[1:]}", True)):
            if not fields.has(key):
                continue
            meant = [part for place, text in _listed(fields, key) for part in read(text, place, namespace)]
            alternatives.append(_negated(meant, fields.where.at(key)) if negated else meant)
    blocks = [(place, parse_block(text, place)) for place, text in _listed(fields, "ipBlocks")]
    without = [parse_block(text, place) for place, text in _listed(fields, "notIpBlocks")]
    fields.done()
    if alternatives and (blocks or without):
        fields.where.refuse("identities and addresses can't be asked together")
    if alternatives:
        found = [_joined(parts) for parts in _product(alternatives, fields.where)]
        return Peers(endpoints=tuple(dict.fromkeys(Selector(one) for one in found)))
    if not blocks and not without:
        fields.where.refuse("needs something that it means")
    every = [parse_block(text, fields.where) for text in _EVERY_BLOCK]
    return Peers(cidrs=tuple(_cidrs([block for _, block in blocks] or every, without)))


def _cidrs(blocks: Iterable[IPNetwork], without: Iterable[IPNetwork]) -> Iterable[CidrPeer]:
    for block in blocks:
        cut = [one for one in without if one.version == block.version and one.overlaps(block)]
        if any(block.subnet_of(one) for one in cut):  # type: ignore[arg-type]
            continue
        yield CidrPeer(block, tuple(dict.fromkeys(cut)), inside=True)


def _listed(fields: Fields, name: str) -> Iterable[tuple[Where, str]]:
    place = fields.where.at(name)
    values: Any = fields.take(name, list)
    if values is None:
        return ()
    if not values:
        place.refuse("is empty")
    found = list(place.items(values, str))
    for at, text in found:
        if not text:
            at.refuse("is empty")
    return found


def _principal(text: str, where: Where, _namespace: str) -> list[_All]:
    """Who has such a name in a certificate."""
    if text == "*":
        return [_in_any()]
    domain, slash, rest = text.partition("/")
    parts = rest.split("/")
    if domain == TRUST_DOMAIN or (domain == "*" and slash):
        match parts:
            case ["ns", namespace, "sa", name] if _is_name(namespace) and _is_name(name):
                return _pair(namespace, name)
            case ["ns", namespace, "*"] | ["ns", namespace, "sa", "*"] if domain != "*" and _is_name(namespace):
                return [_in_namespace(namespace)]
            case ["sa", name] if domain == "*" and _is_name(name):
                return [(*_in_any(), *_of_account(name)), *_unnamed(name, _in_any())]
            case ["*"] | ["ns", "*"] if domain != "*":
                return [_in_any()]
    return where.refuse(
        f"{shown(text)}: only {TRUST_DOMAIN}/ns/NAMESPACE/sa/NAME, {TRUST_DOMAIN}/ns/NAMESPACE/*, "
        "*/ns/NAMESPACE/sa/NAME, */sa/NAME and *"
    )


def _namespace(text: str, where: Where, _namespace_of_policy: str) -> list[_All]:
    if text == "*":
        return [_in_any()]
    if not _is_name(text):
        where.refuse(f"{shown(text)} is not a namespace (a part of a name with «*» is not supported)")
    return [_in_namespace(text)]


def _account(text: str, where: Where, namespace: str) -> list[_All]:
    of, slash, name = text.partition("/")
    if not slash:
        of, name = namespace, text
    if not _is_name(of) or not _is_name(name):
        where.refuse(f"{shown(text)} is not a service account (NAME or NAMESPACE/NAME)")
    return _pair(of, name)


def _is_name(text: str) -> bool:
    return all(DNS_LABEL.fullmatch(part) is not None for part in text.split("."))


def _pair(namespace: str, name: str) -> list[_All]:
    own = _in_namespace(namespace)
    return [(*own, *_of_account(name)), *_unnamed(name, own)]


def _unnamed(name: str, scope: _All) -> list[_All]:
    """Pods without a service account in their manifest have the default one."""
    if name != _DEFAULT_ACCOUNT:
        return []
    return [(*scope, Requirement("k8s", SERVICE_ACCOUNT_KEY, Operator.DOES_NOT_EXIST))]


def _in_any() -> _All:
    return (Requirement("k8s", NAMESPACE_KEY, Operator.EXISTS),)


def _in_namespace(namespace: str) -> _All:
    return (Requirement("k8s", NAMESPACE_KEY, Operator.IN, (namespace,)),)


def _of_account(name: str) -> _All:
    return (Requirement("k8s", SERVICE_ACCOUNT_KEY, Operator.IN, (name,)),)


_OPPOSITE = {
    Operator.IN: Operator.NOT_IN,
    Operator.EXISTS: Operator.DOES_NOT_EXIST,
    Operator.DOES_NOT_EXIST: Operator.EXISTS,
}


def _negated(meant: list[_All], where: Where) -> list[_All]:
    """Who is none of these: for each of them one of its requirements does not hold. Who is no pod is none of them."""
    choices: list[list[_All]] = [
        [(Requirement(one.source, one.key, _OPPOSITE[one.operator], one.values),) for one in parts] for parts in meant
    ]
    return [_joined(parts) for parts in _product(choices, where)]


def _product(choices: list[list[_All]], where: Where) -> list[tuple[_All, ...]]:
    size = 1
    for one in choices:
        size *= len(one)
    if size > MAX_SELECTORS:
        where.refuse(f"becomes more than {MAX_SELECTORS} selectors")
    return list(product(*choices))


def _joined(parts: tuple[_All, ...]) -> _All:
    return tuple(dict.fromkeys(one for part in parts for one in part))
