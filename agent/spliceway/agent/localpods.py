"""This node's pods by their labels, as far as policies that mean something else for some pods ask. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from spliceway.agent.manifests import Key
from spliceway.policy.labels import pod_labels
from spliceway.policy.model import Namespace, Object, Pod


class LocalPods:
    """Follows the objects. Pods in the host's network are none."""

    def __init__(self, node: str) -> None:
        """`node`: whose pods count."""
        self._node = node
        self.pods: dict[str, Pod] = {}  # by «namespace/name»
        self.namespaces: dict[str, Mapping[str, str]] = {}  # labels
        self.turn = 0  # another one when either may be different

    def __repr__(self) -> str:
        return f"LocalPods(pods={len(self.pods)}, namespaces={len(self.namespaces)})"

    def complete(self, changes: Mapping[Key, Object | None]) -> None:
        """Take in what changed."""
        for (kind, name), item in changes.items():
            if kind == "Pod":
                before = self.pods.pop(name, None)
                if isinstance(item, Pod) and item.node == self._node and not item.host_network:
                    self.pods[name] = item
                self.turn += self.pods.get(name) is not before
            elif kind == "Namespace":
                self.namespaces.pop(name, None)
                if isinstance(item, Namespace):
                    self.namespaces[name] = item.labels
                self.turn += 1

    def alike(self, wanted: Callable[[Pod], bool]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
        """Labels, and names of the pods that have them, of those that are wanted."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name, pod in self.pods.items():
            if wanted(pod):
                spaces = self.namespaces.get(pod.namespace, {})
                labels = pod_labels(pod.namespace, pod.labels, spaces, pod.service_account)
                found.setdefault(labels, []).append(name)
        yield from found.items()
