"""The reference interpreter: what a connection or request gets, read straight from the policies.

It shares with the compiler what policies *are* (`model`, selectors, HTTP decisions), and nothing of how they are
compiled: no identities as numbers, no classes, no rows, no prefixes. It is slow and short, so that it can be trusted;
tests compare every data path with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from spliceway.policy.entity import ENTITY_SELECTORS, Reserved
from spliceway.policy.http import HttpDecision, HttpRequest, decide
from spliceway.policy.model import (
    CidrPeer,
    Cluster,
    HttpMatch,
    IPAddress,
    NetworkPolicy,
    Peers,
    Pod,
    PortRule,
    Rule,
    Spec,
)
from spliceway.policy.table import HttpRule, RuleRef, RuleSet
from spliceway.policy.verdict import Direction, Reason, Verdict


class Connection(msgspec.Struct, frozen=True):
    """A connection, or a packet without one. `protocol` is the IP protocol number; `port` the destination port.

    For ICMP the port is `type << 8 | code`; 0 for protocols without ports.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int


class Half(msgspec.Struct, frozen=True):
    """What one endpoint's policy says in one direction. `contributors`: toPorts entries whose HTTP rules apply."""

    direction: Direction
    verdict: Verdict
    reason: Reason
    rule: RuleRef | None = None
    contributors: tuple[RuleRef, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """Verdict on a connection; verdict, reason and rule are those of the half that decides.

    A denial decides, the client's egress first; then what is redirected; otherwise the half that a policy made, the
    server's first. `egress` and `ingress` are None where no endpoint stands. `http` is there when a request was given
    and the connection is redirected; `http_rule` is the rule that let it pass.
    """

    verdict: Verdict
    reason: Reason
    rule: RuleRef | None
    egress: Half | None
    ingress: Half | None
    http: HttpDecision | None = None
    http_rule: RuleRef | None = None
    nearest_miss: str = ""


class _Peer(msgspec.Struct, frozen=True):
    """Who stands behind an address, as one endpoint's node sees it. `outside`: not of the cluster."""

    address: IPAddress
    labels: tuple[str, ...]
    outside: bool


def evaluate(cluster: Cluster, connection: Connection, request: HttpRequest | None = None) -> Decision:
    """What this connection, and this request on it, gets. Only pods have policies; other addresses have none.

    Raises ValueError when both addresses are not of one family.
    """
    if connection.source.version != connection.destination.version:
        raise ValueError("source and destination are not of one address family")
    client = find_pod(cluster, connection.source)
    server = find_pod(cluster, connection.destination)
    egress = ingress = None
    if client is not None:
        egress = evaluate_half(cluster, client, Direction.EGRESS, connection)
    if server is not None:
        ingress = evaluate_half(cluster, server, Direction.INGRESS, connection)
    deciding = _deciding(egress, ingress)
    if deciding.verdict is not Verdict.REDIRECT or request is None:
        return Decision(deciding.verdict, deciding.reason, deciding.rule, egress, ingress)
    rule_set, names = _rule_set(cluster, deciding.contributors)
    http = decide(request, rule_set, names)
    return Decision(
        deciding.verdict,
        deciding.reason,
        deciding.rule,
        egress,
        ingress,
        http,
        names.get(http.rule),
        http.nearest_miss,
    )


def find_pod(cluster: Cluster, address: IPAddress) -> Pod | None:
    """The endpoint of an address. Pods in their host's network, and addresses of nodes, are none."""
    if any(address in node.addresses for node in cluster.nodes.values()):
        return None
    found = None
    for pod in cluster.pods.values():
        if address not in pod.addresses:
            continue
        if pod.host_network:
            return None
        if found is None or pod.key < found.key:
            found = pod
    return found


def evaluate_half(cluster: Cluster, pod: Pod, direction: Direction, connection: Connection) -> Half:
    """What this pod's policies say about a connection to it (ingress) or from it (egress)."""
    labels = cluster.labels_of(pod)
    specs = [
        (policy, spec)
        for policy in cluster.ordered_policies()
        for spec in policy.specs
        if spec.applies[direction] and spec.subject.matches(labels)
    ]
    if not specs:
        return Half(direction, Verdict.ALLOW, Reason.NO_POLICY)
    peer = _peer(cluster, pod, connection.source if direction is Direction.INGRESS else connection.destination)
    matching = [
        (policy, rule, entry)
        for policy, spec in specs
        for rule, entry in _entries(spec, direction)
        if _peers_match(rule.peers, peer) and _ports_match(entry, connection)
    ]
    for policy, rule, entry in matching:
        if rule.deny:
            return Half(direction, Verdict.DENY, Reason.POLICY_DENIED, _name(policy, rule, entry))
    if direction is Direction.INGRESS and Reserved.HOST.label in peer.labels:
        return Half(direction, Verdict.ALLOW, Reason.HOST_ALLOWED)
    for policy, rule, entry in matching:
        if entry is None or entry.http is None:
            return Half(direction, Verdict.ALLOW, Reason.POLICY_ALLOWED, _name(policy, rule, entry))
    if matching:
        refs = tuple(_name(policy, rule, entry) for policy, rule, entry in matching)
        return Half(direction, Verdict.REDIRECT, Reason.REDIRECTED, refs[0], refs)
    if not any(spec.default_deny[direction] for _, spec in specs):
        return Half(direction, Verdict.ALLOW, Reason.NO_POLICY)
    return Half(direction, Verdict.DENY, Reason.DEFAULT_DENY)


def _deciding(egress: Half | None, ingress: Half | None) -> Half:
    halves = [half for half in (egress, ingress) if half is not None]
    for verdict in (Verdict.DENY, Verdict.REDIRECT):
        for half in halves:
            if half.verdict is verdict:
                return half
    for half in reversed(halves):
        if half.reason is not Reason.NO_POLICY:
            return half
    return Half(Direction.INGRESS, Verdict.ALLOW, Reason.NO_POLICY)


def _entries(spec: Spec, direction: Direction) -> Iterator[tuple[Rule, PortRule | None]]:
    """Each thing the rules say: an entry of toPorts, or None for a rule about every port."""
    for rule in spec.rules:
        if rule.direction is not direction or rule.void:
            continue
        if not rule.to_ports:
            yield rule, None
        for entry in rule.to_ports:
            yield rule, entry


def _name(policy: NetworkPolicy, rule: Rule, entry: PortRule | None) -> RuleRef:
    return policy.ref(rule.path if entry is None else entry.path)


def _ports_match(entry: PortRule | None, connection: Connection) -> bool:
    return entry is None or any(ports.covers(connection.protocol, connection.port) for ports in entry.ports)


def _peers_match(peers: Peers | None, peer: _Peer) -> bool:
    if peers is None:
        return True
    return (
        any(selector.matches(peer.labels) for selector in peers.endpoints)
        or any(_cidr_matches(cidr, peer) for cidr in peers.cidrs)
        or any(selector.matches(peer.labels) for entity in peers.entities for selector in ENTITY_SELECTORS[entity])
    )


def _cidr_matches(rule: CidrPeer, peer: _Peer) -> bool:
    assert rule.cidr is not None
    return peer.outside and peer.address in rule.cidr and not any(peer.address in block for block in rule.excepts)


def _peer(cluster: Cluster, endpoint: Pod, address: IPAddress) -> _Peer:
    """Who an address is, seen from the node of an endpoint."""
    nodes = [node.name for node in cluster.nodes.values() if address in node.addresses]
    nodes += [pod.node for pod in cluster.pods.values() if pod.host_network and address in pod.addresses]
    if nodes:
        kind = Reserved.HOST if endpoint.node in nodes else Reserved.REMOTE_NODE
        return _Peer(address, (kind.label,), outside=False)
    pods = {cluster.labels_of(pod) for pod in cluster.pods.values() if address in pod.addresses}
    if len(pods) == 1:
        return _Peer(address, pods.pop(), outside=False)
    if pods or any(address in cidr for cidr in cluster.all_pod_cidrs()):
        return _Peer(address, (Reserved.UNMANAGED.label,), outside=False)
    world = Reserved.WORLD_IPV4 if address.version == 4 else Reserved.WORLD_IPV6
    named = _named_prefix(cluster, address)
    return _Peer(address, (world.label, f"cidr:{named}") if named else (world.label,), outside=True)


def _named_prefix(cluster: Cluster, address: IPAddress) -> str:
    """The longest prefix with this address that a policy names: it is a label that selectors can see."""
    rules = [rule for policy in cluster.policies.values() for spec in policy.specs for rule in spec.rules]
    cidrs = [cidr for rule in rules if rule.peers for cidr in rule.peers.cidrs]
    blocks = [block for cidr in cidrs for block in (cidr.cidr, *cidr.excepts) if block and address in block]
    longest = max(blocks, key=lambda block: block.prefixlen, default=None)
    return str(longest) if longest is not None and longest.prefixlen else ""


def _rule_set(cluster: Cluster, refs: tuple[RuleRef, ...]) -> tuple[RuleSet, dict[int, RuleRef]]:
    """The HTTP rules of these toPorts entries, numbered for this one decision."""
    names: dict[int, RuleRef] = {}
    rules: list[HttpRule] = []
    for policy in cluster.ordered_policies():
        for match in _http_rules(policy, refs):
            number = len(names) + 1
            names[number] = RuleRef(policy.title, match.path)
            rules.append(HttpRule(number, match.method_regex, match.path_regex))
    return RuleSet(1, "+".join(map(str, refs)), tuple(rules)), names


def _http_rules(policy: NetworkPolicy, refs: tuple[RuleRef, ...]) -> Iterator[HttpMatch]:
    for spec in policy.specs:
        for rule in spec.rules:
            for entry in rule.to_ports:
                if entry.http and policy.ref(entry.path) in refs:
                    yield from entry.http
