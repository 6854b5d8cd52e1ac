"""NetworkPolicy (networking.k8s.io/v1).

Sources: Kubernetes, API reference «NetworkPolicy v1», pkg/apis/networking/v1/defaults.go and
pkg/apis/networking/validation/validation.go.
"""

from __future__ import annotations

from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.labels import Selector
from spliceway.policy.model import Action, CidrPeer, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec
from spliceway.policy.parse_address import parse_excepts, parse_network
from spliceway.policy.parse_metadata import Metadata
from spliceway.policy.parse_port import LAST_PORT, check_port_name, check_port_number, kubernetes_protocol, named_port
from spliceway.policy.parse_selector import in_namespace, parse_namespace_selector, parse_pod_selector
from spliceway.policy.verdict import Direction

_KIND = "NetworkPolicy"
_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
#: Name of each direction's rules, and of the peers in them.
_SECTIONS = ((Direction.INGRESS, "ingress", "from"), (Direction.EGRESS, "egress", "to"))


def parse_network_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """A NetworkPolicy: it isolates the pods it selects in each of its directions, but for what its rules allow."""
    meta = Metadata(fields, where, _KIND, policy=True)
    where = meta.where
    # Rules are named by their place in the object, wherever in a List the object stands.
    prefix = f"{where.field}." if where.field else ""
    spec = Fields(fields.need("spec", dict), where.at("spec"))
    fields.ignore("status")
    fields.done()

    subject = parse_pod_selector(spec.take("podSelector", dict, {}), spec.where.at("podSelector"))
    rules: dict[Direction, list[Rule]] = {}
    for direction, section, peers in _SECTIONS:
        entries = spec.where.at(section).items(spec.take(section, list, []), dict)
        rules[direction] = [
            _rule(Fields(item, place), place.field.removeprefix(prefix), direction, peers, meta.namespace)
            for place, item in entries
        ]
    directions = _policy_types(spec, has_egress=bool(rules[Direction.EGRESS]))
    spec.done()
    applies = Direction.INGRESS in directions, Direction.EGRESS in directions
    # Rules of a direction that policyTypes leaves out mean nothing, as in Kubernetes.
    kept = tuple(rule for direction in sorted(directions) for rule in rules[direction])
    made = Spec("spec", in_namespace(subject, meta.namespace), kept, applies, applies)
    return NetworkPolicy(_KIND, meta.namespace, meta.name, (made,), where.file, meta.audit)


def _policy_types(spec: Fields, *, has_egress: bool) -> set[Direction]:
    """Directions that the policy is about. Without policyTypes: ingress, and egress if there are rules for it."""
    place = spec.where.at("policyTypes")
    listed = list(place.items(spec.take("policyTypes", list, []), str))
    if len(listed) > len(_TYPES):
        place.refuse(f"{len(listed)} types are more than {len(_TYPES)}")
    for at, text in listed:
        if text not in _TYPES:
            at.refuse(f"{shown(text)} is not a policy type ({', '.join(_TYPES)})")
    if not listed:
        return {Direction.INGRESS, Direction.EGRESS} if has_egress else {Direction.INGRESS}
    return {_TYPES[text] for _, text in listed}


def _rule(fields: Fields, path: str, direction: Direction, peers: str, namespace: str) -> Rule:
    """A rule. Absent or empty lists mean every peer and every port, unlike in Cilium's policies."""
    listed = fields.where.at(peers).items(fields.take(peers, list, []), dict)
    found = [_peer(Fields(item, place), namespace) for place, item in listed]
    ports = fields.where.at("ports").items(fields.take("ports", list, []), dict)
    ranges = tuple(_port(Fields(item, place)) for place, item in ports)
    fields.done()
    whom = None
    if found:
        whom = Peers(
            tuple(peer for peer in found if isinstance(peer, Selector)),
            tuple(peer for peer in found if isinstance(peer, CidrPeer)),
        )
    return Rule(path, direction, Action.ALLOW, whom, (PortRule(path, ranges),) if ranges else ())


def _peer(fields: Fields, namespace: str) -> Selector | CidrPeer:
    where = fields.where
    block = fields.take("ipBlock", dict)
    pods = fields.take("podSelector", dict)
    namespaces = fields.take("namespaceSelector", dict)
    fields.done()
    if block is not None:
        if pods is not None or namespaces is not None:
            where.refuse("ipBlock can't stand beside podSelector or namespaceSelector (write two peers)")
        return _block(Fields(block, where.at("ipBlock")))
    if pods is None and namespaces is None:
        where.refuse("needs one of podSelector, namespaceSelector, ipBlock (for every peer, leave the list out)")
    selected = parse_pod_selector(pods or {}, where.at("podSelector"))
    if namespaces is None:
        return in_namespace(selected, namespace)
    scope = parse_namespace_selector(namespaces, where.at("namespaceSelector"))
    return Selector(selected.requirements + scope.requirements)


def _block(fields: Fields) -> CidrPeer:
    cidr = parse_network(fields.need("cidr", str), fields.where.at("cidr"))
    excepts = parse_excepts(fields.take("except", list, []), cidr, fields.where.at("except"), strict=True)
    fields.done()
    return CidrPeer(cidr, excepts, inside=True)


def _port(fields: Fields) -> PortRange:
    """A port, a range, a name, or every port of a protocol."""
    where = fields.where
    protocol = kubernetes_protocol(fields)
    port: Any = fields.raw("port")
    last = fields.take("endPort", int)
    fields.done()
    if port is None:
        if last is not None:
            where.at("endPort").refuse("needs port")
        return PortRange(protocol, 0, LAST_PORT)
    if type(port) is not int:
        name = check_port_name(where.at("port").typed(port, str), where.at("port"))
        if last is not None:
            where.at("endPort").refuse("a named port has no range")
        return named_port(protocol, name)
    first = check_port_number(port, where.at("port"))
    if last is not None and not first <= last <= LAST_PORT:
        where.at("endPort").refuse(f"{last} is not a port from {first} to {LAST_PORT}")
    return PortRange(protocol, first, first if last is None else last)
