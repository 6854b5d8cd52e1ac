"""Manifests with everything filled in that a cluster's controllers would have filled in. Pure.

The agent's directory source reads them: addresses, node and phase of each pod, and for the pods of its own node which
veth and namespace are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spliceway.agent.testbed.plan import NodePlan, PodPlan

INTERFACE = "spliceway.io/interface"
NETNS = "spliceway.io/netns"

Document = dict[str, Any]


def namespace(document: Mapping[str, Any]) -> Document:
    """Namespace with the label that the API server adds."""
    metadata = dict(document["metadata"])
    metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    return {**document, "metadata": metadata}


def node(plan: NodePlan) -> Document:
    """Node with its addresses and pod prefixes."""
    status = {
        **(plan.document.get("status") or {}),
        "addresses": [
            *({"type": "InternalIP", "address": str(address)} for address in plan.addresses),
            {"type": "Hostname", "address": plan.name},
        ],
    }
    prefixes = [str(prefix) for prefix in plan.prefixes]
    spec = {**(plan.document.get("spec") or {}), "podCIDR": prefixes[0], "podCIDRs": prefixes}
    return {**plan.document, "spec": spec, "status": status}


def pod(plan: PodPlan, home: NodePlan, interface: str, netns: Path, *, local: bool) -> Document:
    """Pod with node, addresses and, when the reader is its own node (`local`), interface and namespace."""
    metadata = {**plan.document["metadata"], "namespace": plan.namespace}
    if local:
        annotations = metadata.get("annotations") or {}
        metadata["annotations"] = {**annotations, INTERFACE: interface, NETNS: str(netns)}
    addresses = [str(address) for address in plan.addresses]
    status = {
        **(plan.document.get("status") or {}),
        "phase": "Running",
        "hostIP": str(home.addresses[0]),
        "hostIPs": [{"ip": str(address)} for address in home.addresses],
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
    }
    return {
        **plan.document,
        "metadata": metadata,
        "spec": {**plan.document.get("spec", {}), "nodeName": home.name},
        "status": status,
    }
