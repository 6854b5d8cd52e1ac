"""Random policies of every kind that `oracle` knows, for generated cases. HTTP is left to `generated_http`."""

from __future__ import annotations

from random import Random
from typing import Any

from support.oracle_world import Doc

_BLOCKS = (
    ("0.0.0.0/0", ("10.1.0.0/16", "10.240.1.0/24")),
    ("10.1.0.0/16", ("10.1.2.0/24",)),
    ("10.240.1.0/24", ("10.240.1.13/32", "10.240.1.14/31")),
    ("10.240.0.0/12", ("10.240.2.0/24",)),
    ("172.30.0.0/24", ("172.30.0.2/32",)),
    ("fd00::/8", ("fd00:99::/32", "fd00:240:1::/64")),
    ("::/0", ()),
)
#: Ports, protocols and port names that documents and connections have.
NUMBERS = (53, 80, 81, 8000, 8080, 9090, 65535)
PROTOCOLS = ("TCP", "UDP", "SCTP")
NAMES = ("http", "dns")
_ENTITIES = (
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "host",
    "remote-node",
    "cluster",
    "unmanaged",
    "none",
    "health",
)


def policies(random: Random) -> list[Doc]:
    """A few policies, of some of the kinds."""
    kinds = random.choice((("np",), ("np", "tier"), ("tier",), ("cilium",), ("np", "cilium"), ("np", "tier", "cilium")))
    documents: list[Doc] = []
    for index in range(random.randint(1, 4) if "np" in kinds else 0):
        documents.append(_network_policy(random, f"np{index}"))
    if "tier" in kinds:
        documents += [_cluster_policy(random, f"tier{index}", index) for index in range(random.randint(1, 4))]
        if random.random() < 0.3:
            documents.append(_admin_policy(random))
    for index in range(random.randint(1, 4) if "cilium" in kinds else 0):
        documents.append(_cilium_policy(random, f"cilium{index}"))
    return documents


def _selector(random: Random, keys: dict[str, tuple[str, ...]]) -> Doc:
    found: Doc = {}
    if random.random() < 0.5:
        key = random.choice(list(keys))
        found["matchLabels"] = {key: random.choice(keys[key])}
    if random.random() < 0.4:
        key, operator = random.choice(list(keys)), random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        entry: Doc = {"key": key, "operator": operator}
        if operator in ("In", "NotIn"):
            entry["values"] = random.sample(keys[key], random.randint(1, len(keys[key])))
        found["matchExpressions"] = [entry]
    return found


def _pod_selector(random: Random) -> Doc:
    return _selector(random, {"app": ("p", "q", "r"), "tier": ("u", "v")})


def _namespace_selector(random: Random) -> Doc:
    keys = {"team": ("red", "blue"), "level": ("gold",), "kubernetes.io/metadata.name": ("a", "b", "c")}
    return _selector(random, keys)


def _network_policy(random: Random, name: str) -> Doc:
    spec: Doc = {"podSelector": _pod_selector(random)}
    for section, side in (("ingress", "from"), ("egress", "to")):
        if random.random() < 0.6:
            spec[section] = [_network_rule(random, side) for _ in range(random.randint(0, 3))]
    if random.random() < 0.5:
        spec["policyTypes"] = random.sample(("Ingress", "Egress"), random.randint(1, 2))
    metadata = {"name": name, "namespace": random.choice("ab")}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _network_rule(random: Random, side: str) -> Doc:
    rule: Doc = {}
    if random.random() < 0.8:
        rule[side] = [_network_peer(random) for _ in range(random.randint(0, 2))]
    if random.random() < 0.6:
        rule["ports"] = [_network_port(random) for _ in range(random.randint(0, 2))]
    return rule


def _network_peer(random: Random) -> Doc:
    if random.random() < 0.3:
        cidr, excepts = random.choice(_BLOCKS)
        return {"ipBlock": {"cidr": cidr, "except": random.sample(excepts, random.randint(0, len(excepts)))}}
    peer: Doc = {}
    if random.random() < 0.6:
        peer["namespaceSelector"] = _namespace_selector(random)
    if not peer or random.random() < 0.6:
        peer["podSelector"] = _pod_selector(random)
    return peer


def _network_port(random: Random) -> Doc:
    port: Doc = {"protocol": random.choice(PROTOCOLS)} if random.random() < 0.6 else {}
    chosen = random.random()
    if chosen < 0.3:
        port["port"] = random.choice(NAMES)
    elif chosen < 0.9 or not port:
        port["port"] = random.choice(NUMBERS)
        if random.random() < 0.3:
            port["endPort"] = min(port["port"] + random.randint(0, 1000), 65535)
    return port


def _pods_or_namespaces(random: Random) -> Doc:
    if random.random() < 0.4:
        return {"namespaces": _namespace_selector(random)}
    return {"pods": {"namespaceSelector": _namespace_selector(random), "podSelector": _pod_selector(random)}}


def _tier_peers(random: Random, side: str) -> list[Doc]:
    found: list[Doc] = []
    for _ in range(random.randint(1, 2)):
        chosen = random.random()
        if side == "to" and chosen < 0.25:
            found.append({"networks": [cidr for cidr, _ in random.sample(_BLOCKS, random.randint(1, 2))]})
        elif side == "to" and chosen < 0.35:
            found.append({"nodes": _selector(random, {"zone": ("x", "y")})})
        elif chosen > 0.97:
            found.append({})
        else:
            found.append(_pods_or_namespaces(random))
    return found


def _named_allowed(peers: list[Doc]) -> bool:
    """Named ports are refused beside networks and nodes, which have none."""
    return not any("networks" in peer or "nodes" in peer for peer in peers)


def _cluster_policy(random: Random, name: str, priority: int) -> Doc:
    spec: Doc = {"tier": random.choice(("Admin", "Baseline")), "priority": 9 - priority}
    spec["subject"] = _pods_or_namespaces(random)
    for section, side in (("ingress", "from"), ("egress", "to")):
        rules = []
        for _ in range(random.randint(0, 3)):
            peers = _tier_peers(random, side)
            rule: Doc = {"action": random.choice(("Accept", "Deny", "Pass")), side: peers}
            if random.random() < 0.6:
                rule["protocols"] = [_tier_protocol(random, _named_allowed(peers)) for _ in range(random.randint(1, 2))]
            rules.append(rule)
        if rules:
            spec[section] = rules
    api = "policy.networking.k8s.io/v1alpha2"
    return {"apiVersion": api, "kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec}


def _tier_protocol(random: Random, named: bool) -> Doc:
    if named and random.random() < 0.3:
        return {"destinationNamedPort": random.choice(NAMES)}
    number = random.choice(NUMBERS[:-1])
    port: Doc = {"number": number}
    if random.random() < 0.3:
        port = {"range": {"start": number, "end": number + random.randint(1, 1000)}}
    return {random.choice(PROTOCOLS).lower(): {"destinationPort": port}}


def _admin_policy(random: Random) -> Doc:
    spec: Doc = {"priority": 20, "subject": _pods_or_namespaces(random)}
    for section, side in (("ingress", "from"), ("egress", "to")):
        peers = _tier_peers(random, side)
        rule: Doc = {"action": random.choice(("Allow", "Deny", "Pass")), side: peers}
        if random.random() < 0.6:
            number = random.choice(NUMBERS[:-1])
            rule["ports"] = [
                {"portNumber": {"protocol": random.choice(PROTOCOLS), "port": number}},
                {"portRange": {"start": number, "end": number + 10}},
                *([{"namedPort": random.choice(NAMES)}] if _named_allowed(peers) else []),
            ]
        spec[section] = [rule]
    api = "policy.networking.k8s.io/v1alpha1"
    return {"apiVersion": api, "kind": "AdminNetworkPolicy", "metadata": {"name": "admin"}, "spec": spec}


def _cilium_policy(random: Random, name: str) -> Doc:
    clusterwide = random.random() < 0.3
    spec: Doc = {"endpointSelector": _pod_selector(random)}
    sections = ("ingress", "egress", "ingressDeny", "egressDeny")
    for section in random.sample(sections, random.randint(1, 3)):
        side = "from" if section.startswith("ingress") else "to"
        spec[section] = [_cilium_rule(random, side) for _ in range(random.randint(0, 3))]
    if random.random() < 0.3:
        spec["enableDefaultDeny"] = {random.choice(("ingress", "egress")): random.random() < 0.5}
    metadata = {"name": name} if clusterwide else {"name": name, "namespace": random.choice("ab")}
    kind = "CiliumClusterwideNetworkPolicy" if clusterwide else "CiliumNetworkPolicy"
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def _cilium_rule(random: Random, side: str) -> Doc:
    rule: Doc = {}
    chosen = random.choice(("Endpoints", "Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", ""))
    if chosen:
        items: list[Any] = [_cilium_peer(random, chosen) for _ in range(random.choice((0, 1, 1, 1, 2)))]
        rule[side + chosen] = items
    wanted = random.random()
    if wanted < 0.5:
        rule["toPorts"] = [
            {"ports": [_cilium_port(random) for _ in range(random.randint(1, 2))]} for _ in range(random.randint(1, 2))
        ]
    elif wanted < 0.6:
        rule["icmps"] = [{"fields": [{"type": 8}, {"type": "EchoRequest", "family": "IPv6"}]}]
    return rule


def _cilium_peer(random: Random, kind: str) -> Any:
    cidr, excepts = random.choice(_BLOCKS)
    match kind:
        case "Endpoints":
            selector = _pod_selector(random)
            if random.random() < 0.3:
                namespace = {"k8s:io.kubernetes.pod.namespace": random.choice("abc")}
                selector["matchLabels"] = selector.get("matchLabels", {}) | namespace
            return selector
        case "CIDR":
            return cidr
        case "CIDRSet":
            return {"cidr": cidr, "except": random.sample(excepts, random.randint(0, len(excepts)))}
        case "Entities":
            return random.choice(_ENTITIES)
        case _:
            return _selector(random, {"zone": ("x", "y")})


def _cilium_port(random: Random) -> Doc:
    port: Doc = {"protocol": random.choice((*PROTOCOLS, "ANY"))} if random.random() < 0.8 else {}
    chosen = random.random()
    if chosen < 0.25:
        port["port"] = random.choice(NAMES)
    elif chosen < 0.3:
        port["port"] = "0"
    else:
        number = random.choice(NUMBERS)
        port["port"] = str(number)
        if random.random() < 0.3:
            port["endPort"] = min(number + random.randint(0, 1000), 65535)
    return port
