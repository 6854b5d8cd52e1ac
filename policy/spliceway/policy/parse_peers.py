"""Peers of Cilium's rules: the fields `from…` and `to…`.

Sources: Cilium pkg/policy/api/{ingress,egress,cidr,service,rule_validation_helpers}.go, pkg/policy/k8s/service.go.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from spliceway.policy.entity import Entity
from spliceway.policy.fields import DNS_LABEL, Fields, Where, shown
from spliceway.policy.model import CidrPeer, Peers, ServicePeer
from spliceway.policy.parse_address import parse_block, parse_excepts, parse_network
from spliceway.policy.parse_selector import parse_plain_selector, parse_selector, scope_peer
from spliceway.policy.verdict import Direction

_ENTITIES = {entity.value: entity for entity in Entity}


def parse_peers(fields: Fields, direction: Direction, namespace: str) -> Peers | None:
    """Whom a rule is about: None for everybody. `namespace` is the scope of its selectors, empty when clusterwide."""
    readers = _READERS[direction]
    lists: dict[str, list[Any] | None] = {name: fields.take(name, list) for name in readers}
    filled = [name for name, items in lists.items() if items]
    if len(filled) > 1:
        fields.where.refuse(f"combining {filled[0]} and {filled[1]} is not supported, as in Cilium (write two rules)")
    if all(items is None for items in lists.values()):
        return None
    found = Peers()
    for name in filled:
        kind, read = readers[name]
        found = read(fields.where.at(name).items(lists[name], kind), namespace)
    if any(items is not None and not items for items in lists.values()):
        return Peers()  # an empty list selects nobody, whatever stands beside it
    return found


def _endpoints(items: Any, namespace: str) -> Peers:
    return Peers(endpoints=tuple(scope_peer(parse_selector(item, place), namespace) for place, item in items))


def _cidrs(items: Any, _namespace: str) -> Peers:
    return Peers(cidrs=tuple(CidrPeer(parse_block(text, place)) for place, text in items))


def _cidr_sets(items: Any, _namespace: str) -> Peers:
    return Peers(cidrs=tuple(_cidr_rule(Fields(item, place)) for place, item in items))


def _entities(items: Any, _namespace: str) -> Peers:
    return Peers(entities=tuple(_entity(text, place) for place, text in items))


def _nodes(items: Any, _namespace: str) -> Peers:
    return Peers(nodes=tuple(parse_plain_selector(item, place) for place, item in items))


def _services(items: Any, _namespace: str) -> Peers:
    return Peers(services=tuple(_service(Fields(item, place)) for place, item in items))


#: The fields of each direction: kind of their items, and what reads those.
_READERS: MappingProxyType[Direction, dict[str, tuple[type[Any], Callable[[Any, str], Peers]]]] = MappingProxyType(
    {
        Direction.INGRESS: {
            "fromEndpoints": (dict, _endpoints),
            "fromCIDR": (str, _cidrs),
            "fromCIDRSet": (dict, _cidr_sets),
            "fromEntities": (str, _entities),
            "fromNodes": (dict, _nodes),
        },
        Direction.EGRESS: {
            "toEndpoints": (dict, _endpoints),
            "toCIDR": (str, _cidrs),
            "toCIDRSet": (dict, _cidr_sets),
            "toEntities": (str, _entities),
            "toNodes": (dict, _nodes),
            "toServices": (dict, _services),
        },
    }
)


def _cidr_rule(fields: Fields) -> CidrPeer:
    """An entry of fromCIDRSet or toCIDRSet: a prefix, or the prefixes of CIDR groups, without the exceptions."""
    where = fields.where
    given = fields.one_of("cidr", "cidrGroupRef", "cidrGroupSelector")
    excepts = fields.take("except", list, [])
    at_excepts = where.at("except")
    match given:
        case "cidr":
            cidr = parse_network(fields.need("cidr", str), where.at("cidr"))
            found = CidrPeer(cidr, parse_excepts(excepts, cidr, at_excepts, strict=False))
        case kind:
            blocks = tuple(dict.fromkeys(parse_network(text, place) for place, text in at_excepts.items(excepts, str)))
            group, groups = "", None
            if kind == "cidrGroupRef":
                group = fields.need_name(kind)
            else:
                groups = parse_plain_selector(fields.need(kind, dict), where.at(kind))
            found = CidrPeer(excepts=blocks, group=group, groups=groups)
    fields.done()
    return found


def _service(fields: Fields) -> ServicePeer:
    """An entry of toServices. Without a namespace it means Services in every namespace, as in Cilium."""
    given = fields.one_of("k8sService", "k8sServiceSelector")
    inner = Fields(fields.need(given, dict), fields.where.at(given))
    fields.done()
    namespace = inner.need_name("namespace", DNS_LABEL) if inner.has("namespace") else ""
    name, selector = "", None
    if given == "k8sService":
        name = inner.need_name("serviceName")
    else:
        selector = parse_plain_selector(inner.need("selector", dict), inner.where.at("selector"))
    inner.done()
    return ServicePeer(namespace, name, selector)


def _entity(text: str, where: Where) -> Entity:
    if text not in _ENTITIES:
        where.refuse(f"{shown(text)} is not an entity ({', '.join(_ENTITIES)})")
    return _ENTITIES[text]
