"""Pods by what makes their identity: those that only differ in what does not count are one label set.

Whatever changes the labels of many pods at once (their namespace's labels, a port that policies begin to name) is work
for each label set, not for each pod.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from spliceway.policy.labelfilter import LabelFilter
from spliceway.policy.labels import pod_labels
from spliceway.policy.model import PORT_PROTOCOLS, ContainerPort, Namespace, Pod, PortRange
from spliceway.policy.verdict import Protocol

#: A named port of a protocol, as policies name it.
PortName = tuple[str, Protocol]
_Key = tuple[str, tuple[tuple[str, str], ...], str, tuple[ContainerPort, ...]]

_PORT = "port:"


class LabelSet:
    """Pods with the same labels, as far as they count, and the same named ports.

    `labels` are those of the identity, sorted: the pod's, derived ones, and `port:<protocol>/<name>=<number>` for the
    ports that policies name. `numbers`: identity and labels by what an address adds.
    """

    __slots__ = ("account", "key", "labels", "namespace", "numbers", "own", "pods", "ports")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.namespace, own, self.account, self.ports = key
        self.own = dict(own)
        self.labels: tuple[str, ...] = ()
        self.pods: dict[str, Pod] = {}
        self.numbers: dict[tuple[str, ...], tuple[int, tuple[str, ...]]] = {}

    def __repr__(self) -> str:
        return f"LabelSet({self.labels}, {len(self.pods)} pods)"


class LabelSets:
    """All pods by label set. Whatever changes label sets says so; `relabel` then works it out."""

    def __init__(self, label_filter: LabelFilter) -> None:
        self._filter = label_filter
        self._counts: dict[str, bool] = {}
        self._named_keys: Counter[str] = Counter()
        self._named_ports: Counter[PortName] = Counter()
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._sets: dict[_Key, LabelSet] = {}
        self._of: dict[str, LabelSet] = {}
        self._by_namespace: dict[str, dict[LabelSet, None]] = {}
        self._stale: dict[LabelSet, None] = {}
        self._rekeyed: set[str] = set()

    def __len__(self) -> int:
        return len(self._sets)

    def of(self, pod: str) -> LabelSet:
        """Label set of a pod, by its key."""
        return self._of[pod]

    def put(self, pod: Pod) -> LabelSet:
        """A pod that is new or has changed."""
        counts = self._counts
        own = []
        for key, value in pod.labels.items():
            known = counts.get(key)
            if known is None:
                known = counts[key] = self._counting(key)
            if known:
                own.append((key, value))
        own.sort()
        whole = (pod.namespace, tuple(own), pod.service_account, pod.ports)
        name = pod.key
        old = self._of.get(name)
        if old is not None:
            if old.key == whole:
                old.pods[name] = pod
                return old
            self.drop(name)
        found = self._sets.get(whole)
        if found is None:
            found = self._sets[whole] = LabelSet(whole)
            self._by_namespace.setdefault(pod.namespace, {})[found] = None
            self._stale[found] = None
        found.pods[name] = pod
        self._of[name] = found
        return found

    def drop(self, pod: str) -> None:
        """A pod is gone."""
        found = self._of.pop(pod)
        del found.pods[pod]
        if not found.pods:
            del self._sets[found.key]
            self._stale.pop(found, None)
            siblings = self._by_namespace[found.namespace]
            del siblings[found]
            if not siblings:
                del self._by_namespace[found.namespace]

    def namespace(self, name: str, new: Namespace | None) -> None:
        """The labels of a namespace."""
        labels = new.labels if new else {}
        if self._namespaces.get(name, {}) != labels:
            self._stale.update(self._by_namespace.get(name, {}))
        if new is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = labels

    def name_keys(self, keys: Iterable[str], *, times: int) -> None:
        """Selectors name these keys, `times` more often (or less) than before. They count whatever the filter says."""
        for key in keys:
            self._named_keys[key] += times
            known = self._counts.get(key)
            if known is not None and known is not self._counting(key):
                self._rekeyed.add(key)
                self._counts[key] = not known

    def name_ports(self, ports: Iterable[PortName], *, times: int) -> None:
        """Policies name these ports, `times` more often (or less) than before."""
        for port in ports:
            before = self._named_ports[port] > 0
            self._named_ports[port] += times
            if before is not (self._named_ports[port] > 0):
                self._stale.update(
                    dict.fromkeys(
                        found for found in self._sets.values() if any((p.name, p.protocol) == port for p in found.ports)
                    )
                )

    def rekey(self) -> list[Pod]:
        """Put all pods again that have a key which counts now and did not, or the other way round; gives them."""
        keys, self._rekeyed = self._rekeyed, set()
        if not keys:
            return []
        found = [pod for held in self._sets.values() for pod in held.pods.values() if not keys.isdisjoint(pod.labels)]
        for pod in found:
            self.put(pod)
        return found

    def relabel(self) -> Iterator[LabelSet]:
        """Work out the labels of stale label sets; gives those that have others than before."""
        stale, self._stale = self._stale, {}
        for found in stale:
            labels = pod_labels(found.namespace, found.own, self._namespaces.get(found.namespace, {}), found.account)
            ports = [
                port_label(port) for port in found.ports if self._named_ports.get((port.name, port.protocol), 0) > 0
            ]
            if ports:
                labels = tuple(sorted((*labels, *ports)))
            if labels != found.labels:
                found.labels = labels
                found.numbers = {}
                yield found

    def _counting(self, key: str) -> bool:
        return self._named_keys.get(key, 0) > 0 or self._filter.counts(key)


def port_label(port: ContainerPort) -> str:
    """`port:tcp/http=8080`."""
    return f"{_PORT}{port.protocol.name.lower()}/{port.name}={port.port}"


def ports_of(labels: Iterable[str]) -> dict[PortName, tuple[int, ...]]:
    """Numbers of named ports that labels of an identity tell, sorted."""
    found: dict[PortName, tuple[int, ...]] = {}
    for label in labels:
        if label.startswith(_PORT):
            where, _, number = label.removeprefix(_PORT).rpartition("=")
            protocol, _, name = where.partition("/")
            key = (name, Protocol[protocol.upper()])
            found[key] = tuple(sorted((*found.get(key, ()), int(number))))
    return found


def port_names(ports: Iterable[PortRange]) -> Iterator[PortName]:
    """Names among port ranges, for each protocol that they mean."""
    for port in ports:
        if port.name:
            for protocol in PORT_PROTOCOLS if port.protocol is Protocol.ANY else (port.protocol,):
                yield port.name, protocol
