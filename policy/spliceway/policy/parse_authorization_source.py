"""Whom an AuthorizationPolicy means (`from[].source`), as peers.

Certificates are service accounts, `cluster.local/ns/…/sa/…`; who is no pod has none.
Sources: Istio, AuthorizationPolicy «Source»; istio/istio, pilot/pkg/security/authz; «Trust Domain Migration».
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

import msgspec

from spliceway.policy.fields import DNS_LABEL, Fields, Where, shown
from spliceway.policy.labels import NAMESPACE_KEY, SERVICE_ACCOUNT_KEY, Operator, Requirement, Selector
from spliceway.policy.model import CidrPeer, Peers
from spliceway.policy.parse_address import parse_block
from spliceway.policy.table import IPNetwork

#: What stands for the mesh's own trust domain in policies, whatever its name.
TRUST_DOMAIN = "cluster.local"
#: Most selectors that the peers of one source become, where they are more than it lists.
MAX_SELECTORS = 64
_DEFAULT_ACCOUNT = "default"
_NO_SOURCE = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks", "trustDomains")
_BLOCKS = "ipBlocks"
_EVERY_BLOCK = ("0.0.0.0/0", "::/0")

#: Requirements that hold together.
_All = tuple[Requirement, ...]


class IstioNames(msgspec.Struct, frozen=True):
    """What the mesh calls itself (meshConfig): its trust domain, and where policies are about every namespace."""

    trust_domain: str = TRUST_DOMAIN
    root_namespace: str = "istio-system"


class Demand(NamedTuple):
    """One of these values of a field must hold, or with `negated` none. Each has its place; `where` is that of all."""

    field: str
    where: Where
    values: list[tuple[Where, str]]
    negated: bool


class _About(NamedTuple):
    """The policy's namespace, and the mesh that it is in."""

    namespace: str
    names: IstioNames


def parse_source(fields: Fields, namespace: str, names: IstioNames, conditions: Iterable[Demand] = ()) -> Peers:
    """Whom a source means; all that it says must hold, and these conditions too."""
    fields.unsupported((*_NO_SOURCE, "notTrustDomains"))
    said = demands(fields, (*_IDENTITIES, _BLOCKS))
    fields.done()
    if not said:
        fields.where.refuse("needs something that it means")
    return whom([*said, *conditions], fields.where, namespace, names)


def demands(fields: Fields, names: Iterable[str]) -> list[Demand]:
    """What these fields demand, and those with `not` before their names."""
    found = []
    for name in names:
        for key, negated in ((name, False), (f"not{name[0].upper()}{name[1:]}", True)):
            if fields.has(key):
                found.append(Demand(name, fields.where.at(key), list(listed(fields, key)), negated))
    return found


def whom(said: Iterable[Demand], where: Where, namespace: str, names: IstioNames) -> Peers:
    """Who fulfils all of these demands."""
    about = _About(namespace, names)
    alternatives: list[list[_All]] = []
    blocks, without, by_address = [parse_block(text, where) for text in _EVERY_BLOCK], list[IPNetwork](), False
    for one in said:
        if one.field == _BLOCKS:
            found = [parse_block(text, place) for place, text in one.values]
            by_address = True
            if one.negated:
                without += found
            else:
                blocks = _common(blocks, found)
        else:
            meant = [part for place, text in one.values for part in _IDENTITIES[one.field](text, place, about)]
            alternatives.append(_negated(meant, one.where) if one.negated else meant)
    if not alternatives:
        return Peers(cidrs=tuple(_cidrs(blocks, without)))
    if by_address:
        where.refuse("identities and addresses can't be asked together")
    selectors = (Selector(_joined(parts)) for parts in _product(alternatives, where))
    return Peers(endpoints=tuple(dict.fromkeys(selectors)))


def _common(blocks: Iterable[IPNetwork], others: Iterable[IPNetwork]) -> list[IPNetwork]:
    """What is in both: of two prefixes that overlap one is in the other."""
    pairs = ((one, other) for one in blocks for other in others if one.version == other.version and one.overlaps(other))
    return list(dict.fromkeys(max(pair, key=lambda block: block.prefixlen) for pair in pairs))


def _cidrs(blocks: Iterable[IPNetwork], without: Iterable[IPNetwork]) -> Iterable[CidrPeer]:
    for block in blocks:
        cut = [one for one in without if one.version == block.version and one.overlaps(block)]
        if any(block.subnet_of(one) for one in cut):  # type: ignore[arg-type]
            continue
        yield CidrPeer(block, tuple(dict.fromkeys(cut)), inside=True)


def listed(fields: Fields, name: str) -> Iterable[tuple[Where, str]]:
    """Strings of a list, each with its place. An empty one is refused: it could mean nobody or everybody."""
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


def _principal(text: str, where: Where, about: _About) -> list[_All]:
    """Who has such a name in a certificate."""
    if text == "*":
        return [_in_any()]
    domain, slash, rest = text.partition("/")
    parts = rest.split("/")
    if domain in (about.names.trust_domain, TRUST_DOMAIN) or (domain == "*" and slash):
        match parts:
            case ["ns", namespace, "sa", name] if _is_name(namespace) and _is_name(name):
                return _pair(namespace, name)
            case ["ns", namespace, "*"] | ["ns", namespace, "sa", "*"] if domain != "*" and _is_name(namespace):
                return [_in_namespace(namespace)]
            case ["sa", name] if domain == "*" and _is_name(name):
                return [(*_in_any(), *_of_account(name)), *_unnamed(name, _in_any())]
            case ["*"] | ["ns", "*"] if domain != "*":
                return [_in_any()]
    trust = about.names.trust_domain
    return where.refuse(
        f"{shown(text)}: only {trust}/ns/NAMESPACE/sa/NAME, {trust}/ns/NAMESPACE/*, "
        "*/ns/NAMESPACE/sa/NAME, */sa/NAME and *"
    )


def _namespace(text: str, where: Where, _about: _About) -> list[_All]:
    if text == "*":
        return [_in_any()]
    if not _is_name(text):
        where.refuse(f"{shown(text)} is not a namespace (a part of a name with «*» is not supported)")
    return [_in_namespace(text)]


def _account(text: str, where: Where, about: _About) -> list[_All]:
    of, slash, name = text.partition("/")
    if not slash:
        of, name = about.namespace, text
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


_IDENTITIES = {"principals": _principal, "namespaces": _namespace, "serviceAccounts": _account}


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
    if size > max([MAX_SELECTORS, *map(len, choices)]):
        where.refuse(f"becomes more than {MAX_SELECTORS} selectors")
    return list(product(*choices))


def _joined(parts: tuple[_All, ...]) -> _All:
    return tuple(dict.fromkeys(one for part in parts for one in part))
