"""Peers of Cilium's rules as sources of an AuthorizationPolicy.

Selectors are about labels, certificates about service accounts: a selector is translated when it does not tell pods
of one service account apart. CIDRs and entities outside the pods become address blocks. What is asked is what the
interpreter's own peers would answer (`evaluate_peers`), for every kind of peer that there is. `namespaces` of a
source are never used: they would mean the namespaces of foreign trust domains, too; a prefix of principals doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network

from spliceway.policy.entity import ENTITY_SELECTORS, Reserved
from spliceway.policy.evaluate_facts import API_SERVER, k8s_labels, prefixes
from spliceway.policy.istio.httprules import RefusedError
from spliceway.policy.istio.objects import Source
from spliceway.policy.labels import (
    CLUSTER_KEY,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    SERVICE_ACCOUNT_KEY,
    Operator,
    Selector,
    pod_labels,
)
from spliceway.policy.model import CidrPeer, Cluster, IPAddress, Peers, Pod
from spliceway.policy.selectors import Facts, facts_of, matcher
from spliceway.policy.table import IPNetwork

#: Everybody, as sources.
EVERYONE: tuple[Source, ...] = ()
#: Account of a pod that names none (Kubernetes, «Service Accounts»).
DEFAULT_ACCOUNT = "default"
_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_WORLD = {4: Reserved.WORLD_IPV4.label, 6: Reserved.WORLD_IPV6.label}


def account(pod: Pod) -> tuple[str, str]:
    """Namespace and service account of a pod."""
    return pod.namespace, pod.service_account or DEFAULT_ACCOUNT


class PeerSources:
    """Translates the peers of one cluster's rules. `note` is called with what may be worth knowing."""

    def __init__(self, cluster: Cluster, trust_domain: str, note: Callable[[str], None]) -> None:
        self._cluster, self._trust_domain, self._note = cluster, trust_domain, note
        self._pods = [pod for pod in cluster.pods.values() if not pod.host_network]
        alike: dict[tuple[str, ...], list[Pod]] = {}
        for pod in self._pods:
            alike.setdefault(cluster.labels_of(pod), []).append(pod)
        self._alike = [(facts_of(labels), pods) for labels, pods in alike.items()]  # each is asked about once
        names = {*cluster.namespaces, *(pod.namespace for pod in self._pods)}
        self._namespaces = {
            name: cluster.namespaces[name].labels if name in cluster.namespaces else {} for name in names
        }
        self._nodes: set[IPAddress] = set()
        for node in cluster.nodes.values():
            self._nodes.update((*node.addresses, *node.further))
        for pod in cluster.pods.values():
            if pod.host_network:
                self._nodes.update(pod.addresses)
        self._api = sorted(
            {
                address
                for found in cluster.slices.values()
                if (found.namespace, found.service) == API_SERVER
                for address in found.addresses
            },
            key=lambda address: (address.version, int(address)),
        )
        ranges = cluster.all_pod_cidrs()
        self._ranges = ranges
        inside = _within(ranges)
        stray = {one for pod in self._pods for one in pod.addresses if not inside(one)}
        self._strays = stray
        self._inside = (
            *ranges,
            *(ip_network(one) for one in sorted({*stray, *self._nodes}, key=lambda a: (a.version, int(a)))),
        )

    def of(self, peers: Peers | None, *, deny: bool) -> tuple[Source, ...] | None:
        """Sources; EVERYONE is empty, None is nobody. Raises RefusedError."""
        if peers is None:
            return EVERYONE
        selectors = [*peers.endpoints, *(one for entity in peers.entities for one in ENTITY_SELECTORS[entity])]
        if any(not selector.requirements for selector in selectors):
            return EVERYONE
        found = list(self._selected(selectors, deny=deny)) if selectors else []
        for cidr in peers.cidrs:
            found += self._cidr(cidr)
        if peers.nodes:
            found += self._listed_nodes(peers.nodes, deny=deny)
        if peers.all_nodes or peers.services:
            raise RefusedError("peers of this kind have no counterpart")
        return tuple(dict.fromkeys(found)) or None

    def inside(self, version: int) -> tuple[IPNetwork, ...]:
        """Addresses of the cluster: pods' ranges, nodes."""
        return tuple(block for block in self._inside if block.version == version)

    # Selectors.

    def _selected(self, selectors: list[Selector], *, deny: bool) -> Iterator[Source]:
        tests = [matcher(selector) for selector in selectors]

        def means(facts: Facts) -> bool:
            return any(test.matches(facts) for test in tests)

        host, remote, unmanaged, api = (
            means(facts_of([one.label]))
            for one in (Reserved.HOST, Reserved.REMOTE_NODE, Reserved.UNMANAGED, Reserved.KUBE_APISERVER)
        )
        world = {version: means(facts_of([label])) for version, label in _WORLD.items()}
        pods = {pod.key for facts, alike in self._alike if means(facts) for pod in alike}
        if api and not (host or remote or unmanaged or any(world.values()) or pods):
            yield from self._api_server(deny=deny)
            return
        whole = unmanaged and host and remote and len(pods) == len(self._pods) and self._every_pod(selectors)
        if whole:
            yield from self._whole_cluster()
            if api:
                yield from self._blocks([ip_network(address) for address in self._api], [])
        else:
            if unmanaged:
                raise RefusedError("addresses of pods' ranges that no pod has (`unmanaged`) have no counterpart")
            yield from self._principals(selectors, pods)
            if host and deny and not remote:
                raise RefusedError("a pod's own node can't be told from other nodes")
            if remote and deny and not host:
                raise RefusedError("other nodes can't be told from a pod's own node")
            if remote:  # the own node needs no rule in Cilium
                yield from self._blocks([ip_network(address) for address in self._nodes], [])
            if api and not any(world.values()):
                yield from self._api_server(deny=deny)
        for version, meant in world.items():
            if meant:
                yield from self._blocks([_EVERYWHERE[version]], self.inside(version))

    def _every_pod(self, selectors: list[Selector]) -> bool:
        """Whether it is every pod that can be, not only every one that is there."""
        return any({one.key for one in selector.requirements} <= {CLUSTER_KEY, NAMESPACE_KEY} for selector in selectors)

    def _whole_cluster(self) -> Iterator[Source]:
        if self._strays or (self._pods and not self._ranges):
            raise RefusedError(
                "the whole cluster: not all pods have their addresses from ranges that Nodes name (spec.podCIDRs)"
            )
        yield from self._blocks(list(self._inside), [])

    def _api_server(self, *, deny: bool) -> Iterator[Source]:
        if not self._api:
            self._note(
                "the addresses of Service default/kubernetes are not known (EndpointSlice): nobody is kube-apiserver"
            )
        if deny and any(address in self._nodes for address in self._api):
            raise RefusedError("kube-apiserver: the API server's addresses are nodes', one of which may be a pod's own")
        yield from self._blocks([ip_network(address) for address in self._api], [])

    def _principals(self, selectors: list[Selector], pods: set[str]) -> Iterator[Source]:
        """Principals of the pods that are selected, which must be all pods with those service accounts."""
        meant: set[str] = set()
        by_labels: list[Selector] = []
        for selector in selectors:
            if all(requirement.source == "reserved" for requirement in selector.requirements):
                continue
            symbolic = self._symbolic(selector)
            if symbolic is None:
                by_labels.append(selector)
            else:
                meant |= symbolic
        tests = [matcher(selector) for selector in by_labels]
        for facts, (pod, *_) in self._alike:
            if any(test.matches(facts) for test in tests):
                meant.add(self._principal(*account(pod)))
        if by_labels and not meant:
            self._note(
                "a rule's peers are no pods of the inventory, which alone tell service accounts: nobody is meant"
            )
        for _, (pod, *_) in self._alike:
            principal = self._principal(*account(pod))
            covered = principal in meant or self._principal(pod.namespace, "*") in meant
            if covered != (pod.key in pods):
                raise RefusedError(
                    f"it tells pods of service account {'/'.join(account(pod))} apart (pod {pod.key} is "
                    f"{'not ' if covered else ''}meant), and their certificates are the same"
                )
        whole = {one for one in meant if one.endswith("/*")}
        meant = whole | {one for one in meant if f"{one.rpartition('/sa/')[0]}/*" not in whole}
        if meant:
            yield Source(principals=tuple(sorted(meant)))

    def _symbolic(self, selector: Selector) -> set[str] | None:
        """Principals that follow from namespaces and service accounts alone; None: there are other labels in it."""
        accounts: set[str] | None = None
        rest = []
        for one in selector.requirements:
            if one.source not in ("any", "k8s"):
                return None
            if one.key == SERVICE_ACCOUNT_KEY and one.operator is Operator.IN:
                accounts = set(one.values) if accounts is None else accounts & set(one.values)
            elif one.key in (NAMESPACE_KEY, CLUSTER_KEY) or one.key.startswith(NAMESPACE_LABELS_PREFIX):
                rest.append(one)
            else:
                return None
        named = {
            name for one in rest if one.key == NAMESPACE_KEY and one.operator is Operator.IN for name in one.values
        }
        test = matcher(Selector(tuple(rest)))
        chosen = {
            name
            for name in {*self._namespaces, *named}
            if test.matches(facts_of(pod_labels(name, {}, self._namespaces.get(name, {}), "")))
        }
        names = {"*"} if accounts is None else accounts
        return {self._principal(namespace, name) for namespace in chosen for name in names}

    def _principal(self, namespace: str, name: str) -> str:
        return f"{self._trust_domain}/ns/{namespace}/" + ("*" if name == "*" else f"sa/{name}")

    # Addresses.

    def _cidr(self, peer: CidrPeer) -> Iterator[Source]:
        for block in prefixes(self._cluster, peer):
            kept_out = [one for one in peer.excepts if one.version == block.version]
            if not peer.inside:
                kept_out += self.inside(block.version)
            yield from self._blocks([block], kept_out)

    def _listed_nodes(self, selectors: Iterable[Selector], *, deny: bool) -> Iterator[Source]:
        if deny:
            raise RefusedError("nodes can't be told from a pod's own node, which is not meant")
        addresses: set[IPAddress] = set()
        for node in self._cluster.nodes.values():
            if any(selector.matches(k8s_labels(node.labels)) for selector in selectors):
                addresses.update((*node.addresses, *node.further))
                addresses.update(
                    one
                    for pod in self._cluster.pods.values()
                    if pod.host_network and pod.node == node.name
                    for one in pod.addresses
                )
        yield from self._blocks([ip_network(address) for address in addresses], [])

    def _blocks(self, blocks: Iterable[IPNetwork], kept_out: Iterable[IPNetwork]) -> Iterator[Source]:
        """One source for all blocks from which the same is taken out."""
        kept_out = tuple(dict.fromkeys(kept_out))
        by_excepts: dict[tuple[str, ...], list[str]] = {}
        for block in sorted(set(blocks), key=lambda one: (one.version, int(one.network_address), one.prefixlen)):
            others = [other for other in kept_out if other.version == block.version and other.overlaps(block)]
            if any(block.subnet_of(other) for other in others):  # type: ignore[arg-type]
                continue
            by_excepts.setdefault(tuple(map(str, _outermost(others))), []).append(str(block))
        for others_text, texts in by_excepts.items():
            yield Source(ip_blocks=tuple(texts), not_ip_blocks=others_text)


def _outermost(blocks: list[IPNetwork]) -> list[IPNetwork]:
    """Those of one version that are in none of the others, in their order."""
    kept: set[IPNetwork] = set()
    end = -1
    for one in sorted(blocks, key=lambda block: (int(block.network_address), block.prefixlen)):
        last = int(one.broadcast_address)
        if last > end:
            kept.add(one)
            end = last
    return [one for one in blocks if one in kept]


def _within(blocks: Iterable[IPNetwork]) -> Callable[[IPAddress], bool]:
    """Whether an address is in any of the blocks, of which a cluster has as many as nodes."""
    known = {(block.version, block.prefixlen, int(block.network_address)) for block in blocks}
    lengths = {version: {length for each, length, _ in known if each == version} for version in (4, 6)}

    def test(address: IPAddress) -> bool:
        bits, number = address.max_prefixlen, int(address)
        return any(
            (address.version, length, number >> (bits - length) << (bits - length)) in known
            for length in lengths[address.version]
        )

    return test
