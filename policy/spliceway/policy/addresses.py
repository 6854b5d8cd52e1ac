"""Which labels an address has, kept up as pods, nodes and what policies name come and go.

An address is exactly one of: a node's (`host` for the node itself, `remote-node` for others), a pod's, one that a node
has by annotations or by convention, one of a pod range without a pod (`unmanaged`), or outside the cluster: then the
longest prefix that any policy in use names, or the world. One identity is treated alike everywhere, so addresses get
labels beyond that where policies tell them apart: `block:<prefix>` (the longest prefix of `ipBlock` or `networks` that
holds it), `node:<key>=<value>` of nodes, `reserved:kube-apiserver`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from spliceway.policy.entity import Reserved
from spliceway.policy.labels import pod_labels
from spliceway.policy.labelsets import LabelSet, LabelSets
from spliceway.policy.model import IPAddress, Node
from spliceway.policy.prefixsets import PrefixCounts, host_prefix, place_of, within
from spliceway.policy.table import IPNetwork

WORLD_PREFIXES: tuple[tuple[IPNetwork, Reserved], ...] = (
    (ip_network("0.0.0.0/0"), Reserved.WORLD_IPV4),
    (ip_network("::/0"), Reserved.WORLD_IPV6),
)
_UNMANAGED = Reserved.UNMANAGED.label
#: Addresses are kept in heaps of this many bits, to find those in a block without looking at all.
_HEAP_BITS = {4: 8, 6: 64}


def cidr_labels(prefix: IPNetwork) -> tuple[str, ...]:
    """Labels of a prefix outside the cluster. It stays part of the world."""
    world = Reserved.WORLD_IPV4 if prefix.version == 4 else Reserved.WORLD_IPV6
    return (f"cidr:{prefix}", world.label) if prefix.prefixlen else (world.label,)


class Addresses:
    """Who claims which address. What may have other labels than before is in `stale` until `take_stale`."""

    def __init__(self, node: str, label_sets: LabelSets, pod_cidrs: Iterable[IPNetwork]) -> None:
        self._node = node
        self._label_sets = label_sets
        self._pods: dict[IPAddress, str | tuple[str, ...]] = {}  # mostly one, and then without a tuple around it
        self._nodes: dict[IPAddress, Counter[str]] = {}
        self._further: dict[IPAddress, Counter[str]] = {}
        self._node_labels: dict[str, Mapping[str, str]] = {}
        self._node_keys: Counter[str] = Counter()
        self._node_addresses: dict[str, dict[IPAddress, None]] = {}
        self._heaps: dict[tuple[int, int], set[IPAddress]] = {}
        self._named = PrefixCounts()
        self._blocks = PrefixCounts()
        self._ranges = PrefixCounts()
        self._servers: Counter[IPAddress] = Counter()
        self._stale_addresses: dict[IPAddress, None] = {}
        self._stale_prefixes: dict[IPNetwork, None] = dict.fromkeys(prefix for prefix, _ in WORLD_PREFIXES)
        for prefix in pod_cidrs:
            self.pod_range(prefix, times=1)

    def pod(self, key: str, addresses: Iterable[IPAddress], *, there: bool) -> None:
        """A pod has these addresses (or has them no more)."""
        for address in addresses:
            pods = self._pods_at(address)
            pods = tuple(sorted({*pods, key})) if there else tuple(other for other in pods if other != key)
            if pods:
                self._pods[address] = pods if len(pods) > 1 else pods[0]
            else:
                self._pods.pop(address, None)
            self._claimed(address)

    def node(self, node: str, addresses: Iterable[IPAddress], *, there: bool, further: bool = False) -> None:
        """A node has these addresses, by itself or by a pod in its network (or has them no more).

        `further`: by annotations or by convention, so that what a node or pod says of itself comes first.
        """
        claims = self._further if further else self._nodes
        for address in addresses:
            names = claims.setdefault(address, Counter())
            names[node] += 1 if there else -1
            if names[node] <= 0:
                del names[node]
            if not names:
                del claims[address]
            of_node = self._node_addresses.setdefault(node, {})
            if any(node in names.get(address, ()) for names in (self._nodes, self._further)):
                of_node[address] = None
            else:
                of_node.pop(address, None)
                if not of_node:
                    del self._node_addresses[node]
            self._claimed(address)

    def node_labels(self, name: str, new: Node | None) -> None:
        """The labels of a node."""
        old, labels = self._node_labels.pop(name, {}), new.labels if new else {}
        if labels:
            self._node_labels[name] = labels
        if any(old.get(key) != labels.get(key) for key in self._node_keys):
            self._stale_addresses.update(self._node_addresses.get(name, {}))

    def name_node_keys(self, keys: Iterable[str], *, times: int) -> None:
        """Selectors of nodes name these keys, so much more (or less) often."""
        changed = False
        for key in keys:
            before = key in self._node_keys
            self._node_keys[key] += times
            if self._node_keys[key] <= 0:
                del self._node_keys[key]
            changed |= before is not (key in self._node_keys)
        if changed:
            self._stale_addresses.update(dict.fromkeys((*self._nodes, *self._further)))

    def pod_range(self, prefix: IPNetwork, *, times: int) -> None:
        """Pods have addresses from this prefix (or no more)."""
        if self._ranges.add(prefix, times):
            self._stale_prefixes[prefix] = None
            for counts in (self._named, self._blocks, self._ranges):
                self._stale_prefixes.update(dict.fromkeys(inner for inner in counts if within(inner, prefix)))
            self._stale_addresses.update(dict.fromkeys(self._servers))

    def name_prefix(self, prefix: IPNetwork, *, inside: bool, times: int) -> None:
        """A policy in use names this prefix, so much more (or less) often."""
        if self._named.add(prefix, times):
            self._stale_prefixes[prefix] = None
        if inside and self._blocks.add(prefix, times):
            self._stale_prefixes[prefix] = None
            self._stale_prefixes.update(dict.fromkeys(inner for inner in self._ranges if within(inner, prefix)))
            self._stale_addresses.update(dict.fromkeys((*self._addresses_in(prefix), *self._servers)))

    def api_server(self, addresses: Iterable[IPAddress], *, times: int) -> None:
        """The API server is at these addresses (or no more)."""
        for address in addresses:
            before = address in self._servers
            self._servers[address] += times
            if self._servers[address] <= 0:
                del self._servers[address]
            if before is not (address in self._servers):
                self._stale_addresses[address] = None

    def relabelled(self, addresses: Iterable[IPAddress]) -> None:
        """Pods at these addresses have other labels."""
        self._stale_addresses.update(dict.fromkeys(addresses))

    def take_stale(self) -> dict[IPNetwork, None]:
        """Prefixes that may have other labels than before."""
        found, self._stale_prefixes = self._stale_prefixes, {}
        addresses, self._stale_addresses = self._stale_addresses, {}
        found.update(dict.fromkeys(map(host_prefix, addresses)))
        return found

    def labels(self, prefix: IPNetwork) -> tuple[tuple[str, ...], LabelSet | None, tuple[str, ...]] | None:
        """Labels of a prefix; None when it is like the one around it.

        They come as labels, a label set whose labels come in addition, and what the address itself adds.
        """
        if prefix.prefixlen == prefix.max_prefixlen:
            address = prefix.network_address
            pods = self._pods_at(address)
            nodes = self._nodes.get(address) or (None if pods else self._further.get(address))
            if nodes:
                kind = Reserved.HOST if self._node in nodes else Reserved.REMOTE_NODE
                return (kind.label, *self._node_labels_of(nodes)), None, self._extra(prefix, address)
            if pods:
                found = self._label_sets.of(pods[0])
                if len(pods) == 1:
                    return (), found, self._extra(prefix, address)
                return *self._shared(pods), self._extra(prefix, address)
        return self._area(prefix)

    def _pods_at(self, address: IPAddress) -> tuple[str, ...]:
        found = self._pods.get(address, ())
        return (found,) if isinstance(found, str) else found

    def _shared(self, names: Iterable[str]) -> tuple[tuple[str, ...], LabelSet | None]:
        """Several pods with one address are `unmanaged`, unless all their labels are the same.

        Those that do not count for identities are compared too: a verdict must not depend on the label filter. Named
        ports are no labels: such pods serve the ports of all.
        """
        sets = [(self._label_sets.of(name), name) for name in names]
        pods = [found.pods[name] for found, name in sets]
        if len({pod_labels(pod.namespace, pod.labels, {}, pod.service_account) for pod in pods}) > 1:
            return (_UNMANAGED,), None
        different = {found.labels: found for found, _ in sets}
        if len(different) == 1:
            return (), sets[0][0]
        return tuple({label for labels in different for label in labels}), None

    def _area(self, prefix: IPNetwork) -> tuple[tuple[str, ...], LabelSet | None, tuple[str, ...]] | None:
        server = prefix.prefixlen == prefix.max_prefixlen and prefix.network_address in self._servers
        also = (Reserved.KUBE_APISERVER.label,) if server else ()
        if self._ranges.longest(prefix) is not None:
            if prefix not in self._ranges and prefix not in self._blocks and not also:
                return None
            return (_UNMANAGED,), None, (*self._block(*place_of(prefix)), *also)
        if prefix.prefixlen and prefix not in self._named and not also:
            return None
        return cidr_labels(prefix), None, also

    def _node_labels_of(self, names: Iterable[str]) -> list[str]:
        if not self._node_keys:
            return []
        found = []
        for position, name in enumerate(sorted(names)):
            labels = self._node_labels.get(name, {})
            mark = f"node:{position}:" if position else "node:"
            if position:
                found.append(mark)
            found += [f"{mark}{key}={labels[key]}" for key in self._node_keys if key in labels]
        return found

    def _extra(self, prefix: IPNetwork, address: IPAddress) -> tuple[str, ...]:
        found = self._block(address.version, prefix.prefixlen, int(address)) if self._blocks else ()
        return (*found, Reserved.KUBE_APISERVER.label) if address in self._servers else found

    def _block(self, version: int, length: int, first: int) -> tuple[str, ...]:
        found = self._blocks.longest_of(version, length, first)
        return () if found is None else (f"block:{found}",)

    def _claimed(self, address: IPAddress) -> None:
        self._stale_addresses[address] = None
        heap = address.version, int(address) >> _HEAP_BITS[address.version]
        if address in self._pods or address in self._nodes or address in self._further:
            self._heaps.setdefault(heap, set()).add(address)
        else:
            self._heaps[heap].discard(address)
            if not self._heaps[heap]:
                del self._heaps[heap]

    def _addresses_in(self, prefix: IPNetwork) -> list[IPAddress]:
        """Addresses of pods and nodes inside a prefix, in order."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        bits = _HEAP_BITS[prefix.version]
        heaps = [
            heap
            for (version, number), heap in self._heaps.items()
            if version == prefix.version and first >> bits <= number <= last >> bits
        ]
        return sorted(address for heap in heaps for address in heap if first <= int(address) <= last)
