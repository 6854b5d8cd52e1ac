"""The node-local DNS cache as policy sees it: it answers in place of the cluster's DNS, so it is that.

Its process is in the host's network and has addresses of its own on the node (169.254.20.10, and in front of kube-proxy
the cluster DNS's own ClusterIP), which pods dial. Policies name the cluster's DNS: `toEndpoints` with `k8s-app:
kube-dns`, `toServices`. So these addresses have the labels and named ports of the DNS Service's pods, as one more of
them. Pure.

Sources: kubernetes/dns cmd/node-cache (the device `nodelocaldns`, the addresses, NOTRACK), cluster/addons/dns/
nodelocaldns (Service kube-dns-upstream).
"""

from __future__ import annotations

from collections.abc import Iterable

from spliceway.agent.hostaddresses import IPAddress
from spliceway.agent.manifests import Key
from spliceway.policy.model import Object, Pod, Service

#: Where the cluster's DNS is, and the names that its Service has where its ClusterIP does not tell.
NAMESPACE = "kube-system"
NAMES = ("kube-dns", "kube-dns-upstream")
#: Labels of its pods where no Service tells.
LABELS = {"k8s-app": "kube-dns"}
#: No object of a cluster can be called so.
_KEY: Key = ("Pod", f"{NAMESPACE}/kube-dns:node-local")


class NodeLocalDns:
    """Follows the objects of NAMESPACE; `complete` adds the cache to changes, as a pod."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._pods: dict[str, Pod] = {}
        self._given: Pod | None = None

    def __repr__(self) -> str:
        return f"NodeLocalDns({self._given})"

    def complete(self, changes: dict[Key, Object | None], addresses: Iterable[IPAddress]) -> None:
        """Take in what changed, and put the cache that follows, which has these addresses, into it."""
        for (kind, key), item in changes.items():
            if not key.startswith(f"{NAMESPACE}/"):
                continue
            if kind == "Service":
                self._services.pop(key, None)
                if isinstance(item, Service):
                    self._services[key] = item
            elif kind == "Pod":
                self._pods.pop(key, None)
                if isinstance(item, Pod):
                    self._pods[key] = item
        pod = self._as_pod(tuple(sorted(addresses, key=lambda one: (one.version, one))))
        if pod != self._given:
            self._given = changes[_KEY] = pod

    def _as_pod(self, addresses: tuple[IPAddress, ...]) -> Pod | None:
        if not addresses:
            return None
        selector = self._selector(addresses)
        pods = [pod for pod in self._pods.values() if not pod.host_network and selector.items() <= pod.labels.items()]
        common = set.intersection(*(set(pod.labels.items()) for pod in pods)) if pods else set(selector.items())
        accounts, ports = {pod.service_account for pod in pods}, {pod.ports for pod in pods}
        return Pod(
            NAMESPACE,
            _KEY[1].partition("/")[2],
            dict(sorted(common)),
            addresses,
            service_account=accounts.pop() if len(accounts) == 1 else "",
            ports=ports.pop() if len(ports) == 1 else (),
        )

    def _selector(self, addresses: tuple[IPAddress, ...]) -> dict[str, str]:
        """Of the Service that it has an address of, or else of the cluster's DNS by name."""
        with_selector = {key: one.selector for key, one in sorted(self._services.items()) if one.selector}
        for key, selector in with_selector.items():
            if any(address in addresses for address in self._services[key].cluster_ips):
                return dict(selector)
        for name in NAMES:
            if found := with_selector.get(f"{NAMESPACE}/{name}"):
                return dict(found)
        return dict(LABELS)
