"""One entry of ingress, egress, ingressDeny or egressDeny: its peers and its ports."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from spliceway.policy.entity import UNSUPPORTED_ENTITIES, Entity
from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import Action, CidrPeer, Peers, Rule
from spliceway.policy.parse_objects import parse_address, parse_network
from spliceway.policy.parse_ports import parse_port_rules
from spliceway.policy.parse_selector import parse_selector, scope_peer
from spliceway.policy.table import IPNetwork
from spliceway.policy.verdict import Direction

#: endpoints, CIDRs, CIDR sets, entities: the fields of each direction.
_PEER_FIELDS = MappingProxyType(
    {
        Direction.INGRESS: ("fromEndpoints", "fromCIDR", "fromCIDRSet", "fromEntities"),
        Direction.EGRESS: ("toEndpoints", "toCIDR", "toCIDRSet", "toEntities"),
    }
)
#: Fields of Cilium's API that are not built.
_NOT_BUILT = MappingProxyType(
    {
        Direction.INGRESS: ("fromRequires", "fromNodes", "fromGroups", "icmps", "authentication"),
        Direction.EGRESS: ("toRequires", "toNodes", "toGroups", "toFQDNs", "toServices", "icmps", "authentication"),
    }
)
_ENTITIES = {entity.value: entity for entity in Entity}


def parse_rule(fields: Fields, path: str, direction: Direction, *, deny: bool, namespace: str) -> Rule:
    """A rule. `path` is the field path that names it; `namespace` is the policy's, the scope of its selectors."""
    fields.unsupported(_NOT_BUILT[direction])
    peers = _peers(fields, direction, namespace)
    ports = parse_port_rules(fields, path, direction, deny=deny)
    fields.done()
    action = Action.DENY if deny else Action.ALLOW
    return Rule(path, direction, action, peers, ports, void=peers is None and not ports)


def _peers(fields: Fields, direction: Direction, namespace: str) -> Peers | None:
    names = _PEER_FIELDS[direction]
    lists: dict[str, list[Any] | None] = {name: fields.take(name, list) for name in names}
    filled = [name for name, items in lists.items() if items]
    if len(filled) > 1:
        fields.where.refuse(f"combining {filled[0]} and {filled[1]} is not supported, as in Cilium (write two rules)")
    if all(items is None for items in lists.values()):
        return None
    at = fields.where.at
    by_selector, by_cidr, by_set, by_entity = (
        at(name).items(lists[name] or [], kind) for name, kind in zip(names, (dict, str, dict, str), strict=True)
    )
    endpoints = tuple(scope_peer(parse_selector(item, place), namespace) for place, item in by_selector)
    cidrs = (
        *(CidrPeer(_block(item, place)) for place, item in by_cidr),
        *(_cidr_rule(Fields(item, place)) for place, item in by_set),
    )
    entities = tuple(_entity(item, place) for place, item in by_entity)
    if any(items is not None and not items for items in lists.values()):
        return Peers()  # an empty list selects nobody, whatever stands beside it
    return Peers(endpoints, cidrs, entities)


def _block(text: str, where: Where) -> IPNetwork:
    """A CIDR, or one address (fromCIDR and toCIDR take both)."""
    if "/" in text:
        return parse_network(text, where)
    address = parse_address(text, where)
    return parse_network(f"{address}/{address.max_prefixlen}", where)


def _cidr_rule(fields: Fields) -> CidrPeer:
    fields.unsupported(("cidrGroupRef", "cidrGroupSelector"))
    where = fields.where
    cidr = parse_network(fields.need("cidr", str), where.at("cidr"))
    excepts = []
    for place, text in where.at("except").items(fields.take("except", list, []), str):
        block = parse_network(text, place)
        if block.version != cidr.version or not block.subnet_of(cidr):  # type: ignore[arg-type]
            place.refuse(f"{shown(text)} is not inside {cidr}")
        excepts.append(block)
    fields.done()
    return CidrPeer(cidr, tuple(dict.fromkeys(excepts)))


def _entity(text: str, where: Where) -> Entity:
    if text in UNSUPPORTED_ENTITIES:
        where.refuse(f"entity {text} is not supported yet")
    if text not in _ENTITIES:
        where.refuse(f"{shown(text)} is not an entity ({', '.join(_ENTITIES)})")
    return _ENTITIES[text]
