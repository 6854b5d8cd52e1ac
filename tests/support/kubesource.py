"""The Kubernetes source on the API server's double, with an inventory behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.events import Batch
from spliceway.agent.sources.kubernetes.figures import Figures, Timing
from spliceway.agent.sources.kubernetes.source import KubernetesSource
from spliceway.policy.model import Object
from support.kubeapi import KubeApi, crd

T = TypeVar("T")
NODE = "node1"
#: Quick enough for tests; each of these is minutes or seconds in an agent.
QUICK = Timing(again=0.2, gone=0.3, lost=0.3, retry=(0.02, 0.2))
CILIUM = crd("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies", ["v2"])
#: The definitions of all kinds that are no built-in ones.
CRDS = (
    CILIUM,
    crd("cilium.io", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", ["v2"], namespaced=False),
    crd("cilium.io", "CiliumCIDRGroup", "ciliumcidrgroups", ["v2", "v2alpha1"], namespaced=False),
    crd("policy.networking.k8s.io", "ClusterNetworkPolicy", "clusternetworkpolicies", ["v1alpha2"], namespaced=False),
    crd("policy.networking.k8s.io", "AdminNetworkPolicy", "adminnetworkpolicies", ["v1alpha1"], namespaced=False),
    crd(
        "policy.networking.k8s.io",
        "BaselineAdminNetworkPolicy",
        "baselineadminnetworkpolicies",
        ["v1alpha1"],
        namespaced=False,
    ),
    crd("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", ["v1", "v1beta1"]),
)


class Followed:
    """A source that is followed, all of its batches so far, and what an inventory makes of them."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.inventory = Inventory(NODE)
        self.batches: list[Batch] = []

    async def follow(self) -> None:
        async for batch in self.source.batches():
            self.batches.append(batch)
            self.inventory.feed(batch)

    def figures(self, kind: str) -> Figures:
        """How a kind does."""
        return next(one for one in self.source.status().resources if one.kind == kind)

    def names(self, kind: str = "Pod") -> list[str]:
        """Of the objects of a kind."""
        return sorted(self.inventory.names(kind))

    def item(self, kind: str, name: str) -> Object:
        """An object in force."""
        entry = self.inventory.entry((kind, name))
        assert entry is not None, (kind, name)
        return entry.item


@contextlib.asynccontextmanager
async def followed(kubeconfig: Path | None, timing: Timing = QUICK, **options: Any) -> AsyncIterator[Followed]:
    """A source while it is followed."""
    with KubernetesSource(NODE, kubeconfig=kubeconfig, timing=timing, **options) as source:
        it = Followed(source)
        task = asyncio.create_task(it.follow())
        try:
            yield it
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    await source.ended()
    await asyncio.sleep(0.01)  # what was closed is told to be


async def ask(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call something of the double's without holding up this loop."""
    return await asyncio.to_thread(call, *arguments, **options)


def pod(
    name: str, address: str = "", *, node: str = "other", namespace: str = "default", **more: Any
) -> dict[str, Any]:
    """A pod that runs; `labels` and `created` may be given."""
    metadata = {"name": name, "namespace": namespace, "labels": more.get("labels", {"app": name})}
    if created := more.get("created"):
        metadata["creationTimestamp"] = created
    status = {"phase": more.get("phase", "Running"), **({"podIPs": [{"ip": address}]} if address else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node}, "status": status}


def policy(name: str, port: int = 80) -> dict[str, Any]:
    """A CiliumNetworkPolicy."""
    rule = {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}]}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {}, "ingress": [rule]},
    }


def fresh(api: KubeApi) -> list[str]:
    """Paths of lists and of watches that began with all there is, so far."""
    return [path for _method, path, query in api.requests if "sendInitialEvents" in query or "limit=" in query]
