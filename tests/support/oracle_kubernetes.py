"""What NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy say (see `oracle`).

Sources: Kubernetes API reference, NetworkPolicy v1; network-policy-api, apis/v1alpha2 and v1alpha1 (v0.1.7).
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from support.oracle_world import (
    Ask,
    Doc,
    Match,
    Who,
    World,
    labels_of,
    name_of,
    named_ports,
    namespace_of,
    selects,
    title,
)

_PEERS = {"ingress": "from", "egress": "to"}
_ACTIONS = {"Allow": "Accept", "Accept": "Accept", "Deny": "Deny", "Pass": "Pass"}


def network_policies(world: World, ask: Ask) -> list[Match] | None:
    """Rules of NetworkPolicies that allow the connection; None when none isolates the pod in this direction."""
    found: list[Match] | None = None
    for policy in world.of("NetworkPolicy"):
        spec = policy["spec"]
        if namespace_of(policy) != namespace_of(ask.pod) or not selects(spec["podSelector"], labels_of(ask.pod)):
            continue
        # «if not specified, policies that contain an egress section are assumed to affect egress, and all policies
        # are assumed to affect ingress»
        types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
        if ask.direction.capitalize() not in types:
            continue
        found = found if found is not None else []
        for index, rule in enumerate(spec.get(ask.direction) or []):
            peers, ports = rule.get(_PEERS[ask.direction]), rule.get("ports")
            # «If this field is empty or missing, this rule matches all sources», «… all ports»
            if (not peers or any(_peer(world, policy, peer, ask.peer) for peer in peers)) and (
                not ports or any(_port(port, ask) for port in ports)
            ):
                found.append(Match("Accept", f"{title(policy)} spec.{ask.direction}[{index}]"))
    return found


def tier_rules(world: World, ask: Ask, tier: str) -> list[Match] | None:
    """Rules of a tier that match the connection, in the order in which they are asked; None when none is asked."""
    policies: list[Doc] = [p for p in world.of("ClusterNetworkPolicy") if p["spec"]["tier"] == tier]
    policies += world.of("AdminNetworkPolicy" if tier == "Admin" else "BaselineAdminNetworkPolicy")
    asked: list[Doc] = [
        policy
        for policy in policies
        if policy["spec"].get(ask.direction) and _pods(world, policy["spec"]["subject"], ask.pod)
    ]
    if not asked:
        return None
    found = []
    # «Policies with lower priority values have higher precedence»
    for policy in sorted(asked, key=lambda p: (p["spec"].get("priority", 0), p["kind"], name_of(p))):
        for index, rule in enumerate(policy["spec"][ask.direction]):
            action = _ACTIONS[rule["action"]]
            peers = rule[_PEERS[ask.direction]]
            known = all(peer for peer in peers)
            if not known:
                # «For Accept rules … matching no traffic. For Deny and Pass … treat the rule as a 'Deny all' rule»
                if action == "Accept":
                    continue
                action = "Deny"
            ports = rule.get("protocols") or rule.get("ports")
            if (not known or any(_tier_peer(world, peer, ask.peer) for peer in peers)) and (
                not ports or any(_tier_port(port, ask) for port in ports)
            ):
                found.append(Match(action, f"{title(policy)} spec.{ask.direction}[{index}]"))
    return found


def _peer(world: World, policy: Doc, peer: Doc, who: Who) -> bool:
    if "ipBlock" in peer:
        return _in(who.address, [peer["ipBlock"]["cidr"]]) and not _in(who.address, peer["ipBlock"].get("except", []))
    if who.pod is None:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], world.namespace_labels(namespace_of(who.pod))):
            return False
    elif namespace_of(who.pod) != namespace_of(policy):
        return False
    return selects(peer.get("podSelector", {}), labels_of(who.pod))


def _port(port: Doc, ask: Ask) -> bool:
    protocol = port.get("protocol", "TCP")
    if ask.protocol != protocol:
        return False
    number = port.get("port")
    if number is None:
        return True
    if isinstance(number, str):
        return (number, protocol, ask.port) in named_ports(ask.server)
    return bool(number <= ask.port <= (port.get("endPort") or number))


def _pods(world: World, selector: Doc, pod: Doc) -> bool:
    """`namespaces` or `pods` of a subject or a peer."""
    labels = world.namespace_labels(namespace_of(pod))
    if "namespaces" in selector:
        return selects(selector["namespaces"], labels)
    pods = selector["pods"]
    return selects(pods.get("namespaceSelector", {}), labels) and selects(pods["podSelector"], labels_of(pod))


def _tier_peer(world: World, peer: Doc, who: Who) -> bool:
    if "networks" in peer:
        return _in(who.address, peer["networks"])
    if "nodes" in peer:
        return who.node is not None and selects(peer["nodes"], labels_of(who.node))
    return who.pod is not None and _pods(world, peer, who.pod)


def _tier_port(port: Doc, ask: Ask) -> bool:
    for name in ("destinationNamedPort", "namedPort"):
        if name in port:
            return (port[name], ask.protocol, ask.port) in named_ports(ask.server)
    if "portNumber" in port:
        number = port["portNumber"]
        return ask.protocol == number.get("protocol", "TCP") and bool(ask.port == number["port"])
    if "portRange" in port:
        given = port["portRange"]
        return ask.protocol == given.get("protocol", "TCP") and bool(given["start"] <= ask.port <= given["end"])
    ((protocol, match),) = port.items()
    if ask.protocol != protocol.upper():
        return False
    wanted = match["destinationPort"]
    if "number" in wanted:
        return bool(wanted["number"] == ask.port)
    return bool(wanted["range"]["start"] <= ask.port <= wanted["range"]["end"])


def _in(address: Any, blocks: list[str]) -> bool:
    return any(address in ip_network(block) for block in blocks)
