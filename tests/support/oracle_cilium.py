"""What CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy say about layers 3 and 4 (see `oracle`).

Sources: Cilium 1.20 documentation, «Layer 3 Policies», «Layer 4 Policies», «Deny Policies», «Policy Enforcement Modes»,
«Network Policy» (namespaces); issue list 1, 4, 5, 6, 7, 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
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

_NAMESPACE = "io.kubernetes.pod.namespace"
_NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
_SIDE = {"ingress": "from", "egress": "to"}
#: IANA «ICMP Parameters», «ICMPv6 Parameters».
_ICMP_TYPES = {
    ("ICMP", "EchoRequest"): 8,
    ("ICMP", "Timestamp"): 13,
    ("ICMP", "TimestampReply"): 14,
    ("ICMPV6", "EchoRequest"): 128,
}
_PEERS = ("Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", "Services")


@dataclass
class Said:
    """What all policies that select the pod say: rules that match, and whether any asks for default deny."""

    matches: list[Match] = field(default_factory=list)
    default_deny: bool = False


def policies(world: World, ask: Ask) -> Said | None:
    """None: no policy is about the pod in this direction."""
    said = Said()
    about = False
    for kind in ("CiliumClusterwideNetworkPolicy", "CiliumNetworkPolicy"):
        for policy in world.of(kind):
            specs = [("spec", policy["spec"])] if "spec" in policy else []
            specs += [(f"specs[{index}]", spec) for index, spec in enumerate(policy.get("specs", []))]
            for path, spec in specs:
                if _subject(world, policy, spec, ask.pod):
                    about = _spec(world, policy, path, spec, ask, said) or about
    return said if about else None


def _subject(world: World, policy: Doc, spec: Doc, pod: Doc) -> bool:
    if policy["kind"] == "CiliumNetworkPolicy" and namespace_of(policy) != namespace_of(pod):
        return False
    return selects(_plain(spec["endpointSelector"]), _labels(world, pod))


def _spec(world: World, policy: Doc, path: str, spec: Doc, ask: Ask, said: Said) -> bool:
    allow, deny = spec.get(ask.direction) or [], spec.get(f"{ask.direction}Deny") or []
    wanted = spec.get("enableDefaultDeny", {}).get(ask.direction)
    default_deny = bool(allow or deny) if wanted is None else bool(wanted)
    said.default_deny = said.default_deny or default_deny
    for section, action, rules in ((ask.direction, "Accept", allow), (f"{ask.direction}Deny", "Deny", deny)):
        for index, rule in enumerate(rules):
            where = f"{title(policy)} {path}.{section}[{index}]"
            said.matches += _rule(world, policy, rule, ask, action, where)
    return default_deny or bool(allow or deny)


def _rule(world: World, policy: Doc, rule: Doc, ask: Ask, action: str, where: str) -> list[Match]:
    names = [f"{_SIDE[ask.direction]}{peer}" for peer in _PEERS]
    given = {name: rule[name] for name in names if rule.get(name) is not None}
    to_ports, icmps = rule.get("toPorts") or [], rule.get("icmps") or []
    if not given and not to_ports and not icmps:
        return []  # «{}» matches nothing
    if given and not all(given.values()):
        return []  # an empty list selects nobody
    if given and not any(_peer(world, policy, name, item, ask) for name, items in given.items() for item in items):
        return []
    if not to_ports and not icmps:
        return [Match(action, where)]
    found = []
    for index, entry in enumerate(to_ports):
        if any(_port(port, ask) for port in entry["ports"]):
            found.append(Match(action, f"{where}.toPorts[{index}]", "http" in entry.get("rules", {})))
    for index, entry in enumerate(icmps):
        if any(_icmp(item, ask) for item in entry["fields"]):
            found.append(Match(action, f"{where}.icmps[{index}]"))
    return found


def _peer(world: World, policy: Doc, name: str, item: Any, ask: Ask) -> bool:
    who = ask.peer
    match name.removeprefix(_SIDE[ask.direction]):
        case "Endpoints":
            return _endpoint(world, policy, item, who, str(ask.pod["spec"]["nodeName"]))
        case "CIDR":
            return who.world and who.address in ip_network(item, strict=False)
        case "CIDRSet":
            inside = who.world and any(who.address in ip_network(block) for block in _blocks(world, item))
            return inside and not any(who.address in ip_network(block) for block in item.get("except", []))
        case "Entities":
            if item == "kube-apiserver":
                return who.address in _behind(world, "default", "kubernetes")
            return _entity(item, who, str(ask.pod["spec"]["nodeName"]))
        case "Services":
            return any(_serves(world, service, who) for service in world.of("Service") if _meant(item, service))
        case _:
            remote = who.node is not None and name_of(who.node) != ask.pod["spec"]["nodeName"]
            return remote and who.node is not None and selects(item, labels_of(who.node))


def _endpoint(world: World, policy: Doc, selector: Doc, who: Who, own_node: str) -> bool:
    """Pods of the policy's namespace, unless the selector names a namespace; clusterwide pods of every namespace."""
    plain = _plain(selector)
    if who.node is not None and any(key.startswith("reserved:") for key in plain["matchLabels"]):
        own = name_of(who.node) == own_node
        return selects(plain, {"reserved:host" if own else "reserved:remote-node": ""})
    if who.pod is None:
        return False
    keys = [*plain["matchLabels"], *(entry["key"] for entry in plain["matchExpressions"])]
    scoped = any(key == _NAMESPACE or key.startswith(_NAMESPACE_LABELS) for key in keys)
    own = policy["kind"] == "CiliumNetworkPolicy" and not scoped
    if own and namespace_of(who.pod) != namespace_of(policy):
        return False
    return selects(plain, _labels(world, who.pod))


def _entity(entity: str, who: Who, own_node: str) -> bool:
    node = who.node is not None
    own = who.node is not None and name_of(who.node) == own_node
    return {
        "all": True,
        "none": False,
        "world": who.world,
        "world-ipv4": who.world and who.address.version == 4,
        "world-ipv6": who.world and who.address.version == 6,
        "host": own,
        "remote-node": node and not own,
        "cluster": not who.world,
        "cluster-mesh": not who.world,
        "unmanaged": who.pod is None and who.inside,
        "init": False,
        "health": False,
        "ingress": False,
    }[entity]


def _blocks(world: World, item: Doc) -> list[str]:
    """The prefix of an entry of a CIDR set, or those of the groups that it names."""
    if "cidr" in item:
        return [item["cidr"]]
    selector = item.get("cidrGroupSelector")
    groups = [
        group
        for group in world.of("CiliumCIDRGroup")
        if (selects(selector, labels_of(group)) if selector is not None else name_of(group) == item["cidrGroupRef"])
    ]
    return [block for group in groups for block in group["spec"]["externalCIDRs"]]


def _meant(item: Doc, service: Doc) -> bool:
    """Whether an entry of toServices means this Service; without a namespace those of every namespace."""
    given = item.get("k8sService") or item["k8sServiceSelector"]
    if given.get("namespace") not in (None, namespace_of(service)):
        return False
    if "k8sService" in item:
        return bool(given["serviceName"] == name_of(service))
    return selects(given["selector"], labels_of(service))


def _serves(world: World, service: Doc, who: Who) -> bool:
    """Whether it is an endpoint of the Service: a pod that it selects, or without a selector an address outside."""
    selector = service["spec"].get("selector")
    if service["spec"].get("type") == "ExternalName":
        return False
    if selector:
        return (
            who.pod is not None
            and namespace_of(who.pod) == namespace_of(service)
            and selects({"matchLabels": selector}, labels_of(who.pod))
        )
    return who.world and who.address in _behind(world, namespace_of(service), name_of(service))


def _behind(world: World, namespace: str, name: str) -> list[Any]:
    """Addresses of the EndpointSlices of a Service."""
    slices = [
        found
        for found in world.of("EndpointSlice")
        if namespace_of(found) == namespace and labels_of(found).get("kubernetes.io/service-name") == name
    ]
    ends = [end for one in slices for end in one["endpoints"] if _gets_traffic(end.get("conditions", {}))]
    return [ip_address(text) for end in ends for text in end["addresses"]]


def _gets_traffic(conditions: Doc) -> bool:
    """Ready (unknown counts as ready), or still serving while it ends."""
    ending = bool(conditions.get("terminating")) and bool(conditions.get("serving", True))
    return bool(conditions.get("ready", True)) or ending


def _port(port: Doc, ask: Ask) -> bool:
    protocol = port.get("protocol", "ANY")
    if ask.protocol not in (("TCP", "UDP", "SCTP") if protocol == "ANY" else (protocol,)):
        return False
    number = str(port["port"])
    if not number.isdigit():
        return (number, ask.protocol, ask.port) in named_ports(ask.server)
    if number == "0":
        return True
    return int(number) <= ask.port <= (port.get("endPort") or int(number))


def _icmp(item: Doc, ask: Ask) -> bool:
    protocol = {"IPv4": "ICMP", "IPv6": "ICMPV6"}[item.get("family", "IPv4")]
    names = {"ICMP": {"EchoRequest": 8, "Timestamp": 13, "TimestampReply": 14}, "ICMPV6": {"EchoRequest": 128}}[
        protocol
    ]
    kind = item["type"]
    return ask.protocol == protocol and ask.port >> 8 == (names[kind] if isinstance(kind, str) else kind)


def _labels(world: World, pod: Doc) -> dict[str, str]:
    """A pod's own labels, its namespace, and the labels of that."""
    namespace = namespace_of(pod)
    labels = {**labels_of(pod), _NAMESPACE: namespace}
    if "serviceAccountName" in pod["spec"]:
        labels["io.cilium.k8s.policy.serviceaccount"] = pod["spec"]["serviceAccountName"]
    return labels | {_NAMESPACE_LABELS + key: value for key, value in world.namespace_labels(namespace).items()}


def _plain(selector: Doc) -> Doc:
    """A selector without the sources k8s: and any: of its keys."""
    return {
        "matchLabels": {_bare(key): value for key, value in selector.get("matchLabels", {}).items()},
        "matchExpressions": [{**entry, "key": _bare(entry["key"])} for entry in selector.get("matchExpressions", [])],
    }


def _bare(key: str) -> str:
    return key.removeprefix("k8s:").removeprefix("any:")
