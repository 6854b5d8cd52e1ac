"""The interpreter for many questions about one cluster: indexes what it looks up and remembers what it has decided.

It asks the same functions as `evaluate.evaluate`, which stays the reference; a property test compares the two. What it
remembers:

- a peer's **class**: which of all distinct `Peers` in the policies are about it, its named ports, and whether it is the
  endpoint's own node;
- an endpoint's **group**: the specifications that apply to it, and its named ports;
- verdicts by (group, direction, class, protocol, port).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

import msgspec

from spliceway.policy.evaluate import Connection, Decision
from spliceway.policy.evaluate_facts import API_SERVER, Facts, find_pod, named_prefixes
from spliceway.policy.evaluate_http import rule_set
from spliceway.policy.evaluate_peers import Peer, find_peer, peers_match, ports_match
from spliceway.policy.evaluate_tiers import Applied, Half, applied, both, judge
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.model import Cluster, ContainerPort, IPAddress, Peers, Pod, PortRule, Rule
from spliceway.policy.table import IPNetwork, RuleRef, RuleSet
from spliceway.policy.verdict import Direction, Verdict

#: How many entries each memory has before it is emptied.
MEMORY = 200_000

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Group:
    """Endpoints for which the same specifications apply in a direction, with the same named ports of their own."""

    __slots__ = ("specs",)

    def __init__(self, specs: list[Applied]) -> None:
        self.specs = specs


class _Class:
    """Peers that no rule tells apart. `about`: bit of each distinct `Peers` that is about them."""

    __slots__ = ("about", "host", "ports")

    def __init__(self, about: int, ports: tuple[ContainerPort, ...], host: bool) -> None:
        self.about = about
        self.ports = ports
        self.host = host


class _Known:
    """A verdict on a connection, and its HTTP rules once a request has asked for them."""

    __slots__ = ("decision", "rules")

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.rules: tuple[RuleSet, dict[int, RuleRef]] | None = None


class Evaluator:
    """Answers for one cluster. Memory is bounded by the cluster and MEMORY."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._facts = _IndexedFacts(cluster)
        self._policies = cluster.ordered_policies()
        written = _written_peers(cluster)
        bits = {peers: 1 << index for index, peers in enumerate(dict.fromkeys(written))}
        self._bits = {id(peers): bits[peers] for peers in written}  # of the objects in the rules: quicker than by value
        self._by_labels = [(bit, _label_part(peers)) for peers, bit in bits.items()]
        self._by_rest = [(bit, rest) for peers, bit in bits.items() if (rest := _rest_part(peers)) != Peers()]
        self._pods: dict[IPAddress, Pod | None] = {}
        self._label_bits: dict[tuple[str, ...], int] = {}
        self._classes: dict[tuple[IPAddress, str], _Class] = {}
        self._class_values: dict[tuple[int, tuple[ContainerPort, ...], bool], _Class] = {}
        self._groups: dict[tuple[str, Direction], _Group] = {}
        self._group_values: dict[tuple[tuple[int, ...], tuple[ContainerPort, ...], Direction], _Group] = {}
        self._halves: dict[tuple[_Group, _Class, int, int], Half] = {}
        self._half_values: dict[Half, Half] = {}
        self._known: dict[tuple[int, int], _Known] = {}
        self._requests: dict[tuple[_Known, HttpRequest], Decision] = {}

    def __repr__(self) -> str:
        return f"Evaluator(policies={len(self._policies)}, verdicts={len(self._halves)})"

    def evaluate(self, connection: Connection, request: HttpRequest | None = None) -> Decision:
        """As `evaluate.evaluate`; the same answer may be the same object."""
        source, destination = connection.source, connection.destination
        if source.version != destination.version:
            raise ValueError("source and destination are not of one address family")
        client, server = self._pod(source), self._pod(destination)
        egress = ingress = None
        if client is not None and client is not server:
            egress = self._half(client, Direction.EGRESS, destination, connection)
        if server is not None and client is not server:
            ingress = self._half(server, Direction.INGRESS, source, connection)
        known = self._known.get((id(egress), id(ingress)))
        if known is None:
            known = _Known(Decision(*both(egress, ingress), egress, ingress))
            self._known[id(egress), id(ingress)] = known
        if request is None or known.decision.verdict is not Verdict.REDIRECT:
            return known.decision
        return self._request(known, request)

    def _request(self, known: _Known, request: HttpRequest) -> Decision:
        found = self._requests.get((known, request))
        if found is None:
            if known.rules is None:
                known.rules = rule_set(self._cluster, known.decision.egress, known.decision.ingress)
            rules, names = known.rules
            http = decide(request, rules, names)
            found = msgspec.structs.replace(
                known.decision, http=http, http_rule=names.get(http.rule), nearest_miss=http.nearest_miss
            )
            _remember(self._requests, (known, request), found)
        return found

    def _half(self, endpoint: Pod, direction: Direction, address: IPAddress, connection: Connection) -> Half:
        group = self._groups.get((endpoint.key, direction)) or self._group(endpoint, direction)
        node = endpoint.node if self._facts.nodes_with(address) else ""
        peer = self._classes.get((address, node)) or self._class(address, node)
        key = (group, peer, connection.protocol, connection.port)
        found = self._halves.get(key)
        if found is None:
            found = self._judge(group, peer, endpoint, direction, connection)
            # Equal ones are one object, which lives as long as this: `_known` goes by identity.
            found = self._half_values.setdefault(found, found)
            _remember(self._halves, key, found)
        return found

    def _judge(self, group: _Group, peer: _Class, endpoint: Pod, direction: Direction, connection: Connection) -> Half:
        serving = endpoint.ports if direction is Direction.INGRESS else peer.ports

        def matches(rule: Rule, entry: PortRule | None) -> bool:
            about = rule.peers is None or bool(peer.about & self._bits[id(rule.peers)])
            return about and ports_match(entry, connection.protocol, connection.port, serving)

        return judge(group.specs, direction, matches, host=peer.host, audit=self._cluster.audit)

    def _pod(self, address: IPAddress) -> Pod | None:
        if address not in self._pods:
            _remember(self._pods, address, find_pod(self._facts, address))
        return self._pods[address]

    def _group(self, endpoint: Pod, direction: Direction) -> _Group:
        labels = self._cluster.labels_of(endpoint)
        specs = applied(self._policies, labels, direction)
        serving = endpoint.ports if direction is Direction.INGRESS else ()
        key = (tuple(id(spec) for _, spec in specs), serving, direction)
        found = self._group_values.setdefault(key, _Group(specs))
        self._groups[endpoint.key, direction] = found
        return found

    def _class(self, address: IPAddress, node: str) -> _Class:
        peer = find_peer(self._facts, node, address)
        about = self._label_bits.get(peer.labels)
        if about is None:
            about = self._about(peer, self._by_labels)
            _remember(self._label_bits, peer.labels, about)
        about |= self._about(peer, self._by_rest)
        key = (about, peer.ports, peer.host)
        found = self._class_values.setdefault(key, _Class(*key))
        _remember(self._classes, (address, node), found)
        return found

    def _about(self, peer: Peer, parts: list[tuple[int, Peers]]) -> int:
        about = 0
        for bit, peers in parts:
            if peers_match(self._cluster, peers, peer):
                about |= bit
        return about


class _IndexedFacts(Facts):
    """The same answers as `Facts`, by address."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        nodes: dict[IPAddress, set[str]] = {}
        pods: dict[IPAddress, list[Pod]] = {}
        for node in cluster.nodes.values():
            for address in node.addresses:
                nodes.setdefault(address, set()).add(node.name)
        for pod in cluster.pods.values():
            for address in dict.fromkeys(pod.addresses):
                pods.setdefault(address, []).append(pod)
                if pod.host_network:
                    nodes.setdefault(address, set()).add(pod.node)
        further: dict[IPAddress, set[str]] = {}
        for node in cluster.nodes.values():
            for address in node.further:
                if address not in nodes and address not in pods:
                    further.setdefault(address, set()).add(node.name)
        self._nodes = {address: frozenset(names) for address, names in (*nodes.items(), *further.items())}
        self._pods = {address: tuple(found) for address, found in pods.items()}
        self._api_server = {
            address
            for found in cluster.slices.values()
            if (found.namespace, found.service) == API_SERVER
            for address in found.addresses
        }
        self._pod_ranges = _Prefixes(cluster.all_pod_cidrs())
        self._named = _Prefixes(named_prefixes(cluster))

    def nodes_with(self, address: IPAddress) -> frozenset[str]:
        return self._nodes.get(address, frozenset())

    def pods_with(self, address: IPAddress) -> tuple[Pod, ...]:
        return self._pods.get(address, ())

    def is_api_server(self, address: IPAddress) -> bool:
        return address in self._api_server

    def in_pod_range(self, address: IPAddress) -> bool:
        return self._pod_ranges.longest(address) is not None

    def named_prefix(self, address: IPAddress) -> str:
        longest = self._named.longest(address)
        return str(longest) if longest is not None and longest.prefixlen else ""


class _Prefixes:
    """A set of prefixes that can be asked for the longest one with an address."""

    def __init__(self, prefixes: Iterable[IPNetwork]) -> None:
        self._known: dict[tuple[int, int], dict[int, IPNetwork]] = {}
        for prefix in prefixes:
            by_base = self._known.setdefault((prefix.version, prefix.prefixlen), {})
            by_base[int(prefix.network_address)] = prefix
        self._order = sorted(self._known, reverse=True)

    def longest(self, address: IPAddress) -> IPNetwork | None:
        number = int(address)
        for version, length in self._order:
            if version == address.version:
                host_bits = address.max_prefixlen - length
                found = self._known[version, length].get(number >> host_bits << host_bits)
                if found is not None:
                    return found
        return None


def _written_peers(cluster: Cluster) -> list[Peers]:
    return [
        rule.peers
        for policy in cluster.policies.values()
        for spec in policy.specs
        for rule in spec.rules
        if rule.peers is not None
    ]


def _label_part(peers: Peers) -> Peers:
    """What depends on labels alone; peers of equal labels are treated alike by it."""
    return Peers(endpoints=peers.endpoints, entities=peers.entities)


def _rest_part(peers: Peers) -> Peers:
    return msgspec.structs.replace(peers, endpoints=(), entities=())


def _remember(memory: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(memory) >= MEMORY:
        memory.clear()
    memory[key] = value
