"""Cases made by a generator: random documents and connections, with what the oracle says of them as expectation.

A seed makes the same cases everywhere. The documents keep within what `oracle` knows, without HTTP: hand-made cases
have that.
"""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from random import Random
from typing import Any

from spliceway.policy.documents import Document
from spliceway.policy.verdict import Protocol
from support.cases import NODE, POD_CIDRS, Case, CaseFile, Expect, cluster_of
from support.oracle import decide
from support.oracle_world import Doc, World

_NODES = {"node1": ("172.30.0.1", "fd00:30::1"), "node2": ("172.30.0.2", "fd00:30::2")}
_WORLD = ("10.1.1.1", "10.1.2.1", "10.9.9.9", "198.51.100.1", "2001:db8::1", "fd00:99::1", "10.240.2.99")
_BLOCKS = (
    ("0.0.0.0/0", ("10.1.0.0/16", "10.240.1.0/24")),
    ("10.1.0.0/16", ("10.1.2.0/24",)),
    ("10.240.1.0/24", ("10.240.1.13/32", "10.240.1.14/31")),
    ("10.240.0.0/12", ("10.240.2.0/24",)),
    ("172.30.0.0/24", ("172.30.0.2/32",)),
    ("fd00::/8", ("fd00:99::/32", "fd00:240:1::/64")),
    ("::/0", ()),
)
_NUMBERS = (53, 80, 81, 8000, 8080, 9090, 65535)
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_NAMES = ("http", "dns")
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
_SOURCE = "an oracle written from the specifications (tests/support/oracle.py)"


@cache
def generated_files(count: int, seed: int, connections: int) -> tuple[CaseFile, ...]:
    """So many random clusters, with so many cases each."""
    return tuple(_file(f"generated-{seed}-{index}", Random(f"{seed}/{index}"), connections) for index in range(count))


def _file(name: str, random: Random, connections: int) -> CaseFile:
    documents = [*_cluster(random), *_policies(random)]
    cluster = cluster_of([Document(name, index + 1, 0, content) for index, content in enumerate(documents)])
    world = World(documents, tuple(map(str, POD_CIDRS)))
    cases: dict[tuple[str, str, str, int], Case] = {}
    while len(cases) < connections:
        ends = _ends(random, documents)
        protocol = random.choice((*_PROTOCOLS, "TCP", "TCP", "UDP", "ICMP"))
        number = random.choice(_NUMBERS) + random.choice((0, 0, 0, 1))
        if protocol == "ICMP":
            protocol, number = ("ICMP", 8 << 8) if ":" not in ends[0] else ("ICMPV6", 128 << 8)
        key = (*ends, protocol, min(number, 65535))
        verdict = decide(world, *key)
        if verdict.reason == "no-policy" and random.random() < 0.8:
            continue  # most say little
        paths = ("interpreter", "kernel") if _one_node(world, *ends) else ("interpreter",)
        cases[key] = Case(
            name,
            f"{key[2]} {key[3]} {ends[0]} to {ends[1]}",
            *ends,
            ip_address(ends[0]),
            ip_address(ends[1]),
            int(Protocol[key[2]]),
            key[3],
            Expect(*verdict),
            paths=paths,
            spec=(_SOURCE,),
        )
    return CaseFile(name, tuple(documents), cluster, tuple(cases.values()))


def _one_node(world: World, source: str, destination: str) -> bool:
    """Whether the node under test sees all that decides: every pod in it is its own, and one of the ends is a pod."""
    pods = [who.pod for who in (world.who(source), world.who(destination)) if who.pod is not None]
    return bool(pods) and all(pod["spec"]["nodeName"] == NODE for pod in pods)


def _ends(random: Random, documents: list[Doc]) -> tuple[str, str]:
    family = random.choice((4, 6))
    pods = [entry["ip"] for d in documents if d["kind"] == "Pod" for entry in d["status"]["podIPs"]]
    pods = [text for text in pods if ip_address(text).version == family]
    nodes = [addresses[family == 6] for addresses in _NODES.values()]
    others = [text for text in _WORLD if ip_address(text).version == family]
    pod = random.choice(pods)
    other = random.choice((random.choice([one for one in pods if one != pod]), random.choice([*nodes, *others])))
    return (pod, other) if random.random() < 0.4 else (other, pod)


def _cluster(random: Random) -> list[Doc]:
    documents: list[Doc] = []
    for name, labels in (("a", {"team": "red"}), ("b", {"team": "blue", "level": "gold"}), ("c", {})):
        documents.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    for (name, addresses), zone in zip(_NODES.items(), ("x", "y"), strict=True):
        status = {"addresses": [{"type": "InternalIP", "address": text} for text in addresses]}
        metadata = {"name": name, "labels": {"zone": zone}}
        documents.append({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})
    for index in range(8):
        subnet = 1 if index < 6 else 2
        labels = {"app": random.choice("pqr")} | ({"tier": random.choice("uv")} if random.random() < 0.5 else {})
        ports: list[Doc] = []
        for name in _NAMES:
            if random.random() < 0.6:
                protocol = {} if name == "http" else {"protocol": random.choice(("UDP", "TCP"))}
                ports.append({"name": name, "containerPort": random.choice(_NUMBERS), **protocol})
        spec = {"nodeName": f"node{subnet}", "containers": [{"name": "main", "ports": ports}]}
        addresses = (f"10.240.{subnet}.{11 + index}", f"fd00:240:{subnet}::{11 + index}")
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pod{index}", "namespace": "aaabbcab"[index], "labels": labels},
                "spec": spec,
                "status": {"podIPs": [{"ip": text} for text in addresses]},
            }
        )
    return documents


def _policies(random: Random) -> list[Doc]:
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
    port: Doc = {"protocol": random.choice(_PROTOCOLS)} if random.random() < 0.6 else {}
    chosen = random.random()
    if chosen < 0.3:
        port["port"] = random.choice(_NAMES)
    elif chosen < 0.9 or not port:
        port["port"] = random.choice(_NUMBERS)
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
        return {"destinationNamedPort": random.choice(_NAMES)}
    number = random.choice(_NUMBERS[:-1])
    port: Doc = {"number": number}
    if random.random() < 0.3:
        port = {"range": {"start": number, "end": number + random.randint(1, 1000)}}
    return {random.choice(_PROTOCOLS).lower(): {"destinationPort": port}}


def _admin_policy(random: Random) -> Doc:
    spec: Doc = {"priority": 20, "subject": _pods_or_namespaces(random)}
    for section, side in (("ingress", "from"), ("egress", "to")):
        peers = _tier_peers(random, side)
        rule: Doc = {"action": random.choice(("Allow", "Deny", "Pass")), side: peers}
        if random.random() < 0.6:
            number = random.choice(_NUMBERS[:-1])
            rule["ports"] = [
                {"portNumber": {"protocol": random.choice(_PROTOCOLS), "port": number}},
                {"portRange": {"start": number, "end": number + 10}},
                *([{"namedPort": random.choice(_NAMES)}] if _named_allowed(peers) else []),
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
    port: Doc = {"protocol": random.choice((*_PROTOCOLS, "ANY"))} if random.random() < 0.8 else {}
    chosen = random.random()
    if chosen < 0.25:
        port["port"] = random.choice(_NAMES)
    elif chosen < 0.3:
        port["port"] = "0"
    else:
        number = random.choice(_NUMBERS)
        port["port"] = str(number)
        if random.random() < 0.3:
            port["endPort"] = min(number + random.randint(0, 1000), 65535)
    return port
