"""Policies of the cluster's administrators: ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy.

Sources: network-policy-api, apis/v1alpha2/clusternetworkpolicy_types.go and apis/v1alpha1/*_types.go, with the limits
that those put into the CRDs. Ports are read in `parse_admin_ports`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.labels import Selector
from spliceway.policy.model import Action, CidrPeer, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.parse_address import parse_network
from spliceway.policy.parse_admin_ports import parse_ports, parse_protocols
from spliceway.policy.parse_metadata import Metadata
from spliceway.policy.parse_selector import parse_namespace_selector, parse_plain_selector, parse_pod_selector
from spliceway.policy.verdict import Direction

#: Highest number of `priority`; 0 comes first.
MAX_PRIORITY = 1000
#: Most prefixes in `networks`.
MAX_NETWORKS = 25
MAX_NAME = 100

_POD_PEERS = ("namespaces", "pods")
_EGRESS_PEERS = (*_POD_PEERS, "nodes", "networks", "domainNames")


class _Kind(msgspec.Struct, frozen=True):
    """How the versions of the API differ. `limit`: most rules of a direction, peers and ports of a rule."""

    name: str
    actions: MappingProxyType[str, Action]
    limit: int
    ports: tuple[str, Callable[[Any, Where], PortRange]]
    optional_namespaces: bool = False


_CLUSTER = _Kind(
    "ClusterNetworkPolicy",
    MappingProxyType({"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}),
    25,
    ("protocols", parse_protocols),
    optional_namespaces=True,
)
_ADMIN = _Kind(
    "AdminNetworkPolicy",
    MappingProxyType({"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}),
    100,
    ("ports", parse_ports),
)
_BASELINE = _Kind(
    "BaselineAdminNetworkPolicy",
    MappingProxyType({"Allow": Action.ALLOW, "Deny": Action.DENY}),
    100,
    ("ports", parse_ports),
)
_TIERS = MappingProxyType({"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE})


def parse_cluster_network_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """A ClusterNetworkPolicy: tier Admin or Baseline, with a priority."""
    return _policy(fields, where, _CLUSTER)


def parse_admin_network_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """An AdminNetworkPolicy: tier Admin, with a priority."""
    return _policy(fields, where, _ADMIN)


def parse_baseline_policy(fields: Fields, where: Where) -> NetworkPolicy:
    """A BaselineAdminNetworkPolicy: tier Baseline, and only one, which is called default."""
    return _policy(fields, where, _BASELINE)


def _policy(fields: Fields, where: Where, kind: _Kind) -> NetworkPolicy:
    meta = Metadata(fields, where, kind.name, namespaced=False, policy=True)
    where = meta.where
    if kind is _BASELINE and meta.name != "default":
        where.at("metadata.name").refuse(f"{shown(meta.name)} can't be its name: there is only one, called default")
    spec = Fields(fields.need("spec", dict), where.at("spec"))
    fields.ignore("status")
    fields.done()
    tier, priority = _precedence(spec, kind)
    subject = _subject(Fields(spec.need("subject", dict), spec.where.at("subject")), kind)
    prefix = f"{where.field}." if where.field else ""
    rules: list[Rule] = []
    for direction in Direction:
        entries = spec.take(direction.label, list, [])
        place = spec.where.at(direction.label)
        _at_most(entries, kind.limit, "rules", place)
        for at, item in place.items(entries, dict):
            rules.append(_rule(Fields(item, at), at.field.removeprefix(prefix), direction, kind))
    spec.done()
    applies = tuple(any(rule.direction is direction for rule in rules) for direction in Direction)
    made = Spec("spec", subject, tuple(rules), (False, False), (applies[0], applies[1]), tier=tier, priority=priority)
    return NetworkPolicy(kind.name, "", meta.name, (made,), where.file, meta.audit)


def _precedence(spec: Fields, kind: _Kind) -> tuple[Tier, int]:
    if kind is _BASELINE:
        return Tier.BASELINE, 0
    tier = Tier.ADMIN
    if kind is _CLUSTER:
        name = spec.need("tier", str)
        if name not in _TIERS:
            spec.where.at("tier").refuse(f"{shown(name)} is not a tier ({', '.join(_TIERS)})")
        tier = _TIERS[name]
    priority = spec.need("priority", int)
    if not 0 <= priority <= MAX_PRIORITY:
        spec.where.at("priority").refuse(f"{priority} is not a priority (0 to {MAX_PRIORITY})")
    return tier, priority


def _subject(fields: Fields, kind: _Kind) -> Selector:
    given = fields.one_of(*_POD_PEERS)
    found = _pods(fields, given, kind)
    fields.done()
    return found


def _rule(fields: Fields, path: str, direction: Direction, kind: _Kind) -> Rule:
    where = fields.where
    if len(fields.take("name", str, "")) > MAX_NAME:
        where.at("name").refuse(f"is longer than {MAX_NAME} characters")
    name = fields.need("action", str)
    if name not in kind.actions:
        where.at("action").refuse(f"{shown(name)} is not an action ({', '.join(kind.actions)})")
    action = kind.actions[name]
    side = "from" if direction is Direction.INGRESS else "to"
    listed = fields.need(side, list)
    if not listed:
        where.at(side).refuse("needs at least one peer")
    _at_most(listed, kind.limit, "peers", where.at(side))
    peers = [_peer(Fields(item, place), direction, kind) for place, item in where.at(side).items(listed, dict)]
    ports = _ports(fields, kind)
    fields.done()
    if any(port.name for port in ports) and any(peer and (peer.cidrs or peer.all_nodes) for peer in peers):
        where.refuse("networks and nodes have no named ports (write two rules)")
    whom: Peers | None = Peers(
        tuple(selector for peer in peers if peer for selector in peer.endpoints),
        tuple(cidr for peer in peers if peer for cidr in peer.cidrs),
        all_nodes=tuple(selector for peer in peers if peer for selector in peer.all_nodes),
    )
    if None in peers:
        # A peer that this version does not know makes the whole rule fail closed (ClusterNetworkPolicyIngressPeer):
        # one that accepts matches nothing, any other denies everybody.
        whom, action = (Peers(), action) if action is Action.ALLOW else (None, Action.DENY)
    return Rule(path, direction, action, whom, (PortRule(path, ports),) if ports else ())


def _peer(fields: Fields, direction: Direction, kind: _Kind) -> Peers | None:
    """A peer; None: it has no field that is known."""
    fields.unsupported(("domainNames",))
    if direction is Direction.INGRESS:
        for name in ("nodes", "networks"):
            if fields.has(name):
                fields.where.at(name).refuse("only peers of egress rules have it")
    if not any(fields.has(name) for name in _EGRESS_PEERS):
        return None
    given = fields.one_of(*_EGRESS_PEERS)
    place = fields.where.at(given)
    match given:
        case "nodes":
            found = Peers(all_nodes=(parse_plain_selector(fields.need(given, dict), place),))
        case "networks":
            listed = fields.need(given, list)
            if not listed:
                place.refuse("needs at least one CIDR")
            _at_most(listed, MAX_NETWORKS, "CIDRs", place)
            cidrs = dict.fromkeys(parse_network(text, at) for at, text in place.items(listed, str))
            found = Peers(cidrs=tuple(CidrPeer(cidr, inside=True) for cidr in cidrs))
        case _:
            found = Peers((_pods(fields, given, kind),))
    fields.done()
    return found


def _pods(fields: Fields, given: str, kind: _Kind) -> Selector:
    """Pods by the labels of their namespaces, or by those and their own."""
    place = fields.where.at(given)
    value = fields.need(given, dict)
    if given == "namespaces":
        return parse_namespace_selector(value, place)
    inner = Fields(value, place)
    take = inner.take if kind.optional_namespaces else inner.need
    scope = parse_namespace_selector(take("namespaceSelector", dict) or {}, place.at("namespaceSelector"))
    pods = parse_pod_selector(inner.need("podSelector", dict), place.at("podSelector"))
    inner.done()
    return Selector(pods.requirements + scope.requirements)


def _ports(fields: Fields, kind: _Kind) -> tuple[PortRange, ...]:
    name, read = kind.ports
    listed = fields.take(name, list)
    if listed is None:
        return ()
    where = fields.where.at(name)
    if not listed:
        where.refuse("needs at least one (for every port, leave it out)")
    _at_most(listed, kind.limit, "ports", where)
    return tuple(read(item, place) for place, item in where.items(listed, dict))


def _at_most(listed: list[Any], limit: int, what: str, where: Where) -> None:
    if len(listed) > limit:
        where.refuse(f"{len(listed)} {what} are more than {limit}")
