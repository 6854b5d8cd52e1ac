"""Which pods are Istio's, and as which user a sidecar runs: by what the injector and istio-cni leave at a pod. Pure.

What of a pod's traffic comes to its sidecar, Istio's annotations decide (`traffic.sidecar.istio.io/…`), through the
rules in the pod: what is excluded there never arrives at the sidecar's ports, and so it is nothing to us. Here only
that is read which says whether there is a sidecar at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spliceway.policy.istio.sidecar import AMBIENT as AMBIENT
from spliceway.policy.istio.sidecar import CONTAINER, containers
from spliceway.policy.istio.sidecar import INTERCEPTION as INTERCEPTION
from spliceway.policy.istio.sidecar import STATUS as STATUS

#: Label: istio-cni shall take the pod into the ambient mesh, which it does before it annotates it.
DATAPLANE = "istio.io/dataplane-mode"
_PROXY_UID, _ROOT = 1337, 0
_HOW = {"REDIRECT": "", "TPROXY": "-tproxy", "NONE": "-none"}


def sidecar_of(annotations: Mapping[str, Any], spec: object) -> int | None:
    """User of a pod's sidecar, None for a pod whose inner connections are left alone.

    `spec` is the pod's, of which nothing is sure. A native sidecar is among the `initContainers`. With a user namespace
    of its own (`hostUsers: false`) the sidecar is another user to the kernel than to the pod: such pods go without.
    """
    if not isinstance(annotations.get(STATUS), str) or annotations.get(AMBIENT) == "enabled":
        return None
    mode = annotations.get(INTERCEPTION, "REDIRECT")
    if not isinstance(spec, Mapping) or spec.get("hostUsers") is False or mode not in ("REDIRECT", "TPROXY"):
        return None
    found = next((one for one in containers(spec) if one.get("name") == CONTAINER), None)
    if found is None:
        return None
    default = _user(spec, _ROOT if mode == "TPROXY" else _PROXY_UID)
    return _user(found, default) if default is not None else None


def mesh_of(annotations: Mapping[str, Any], labels: object, spec: object) -> str:
    """How Istio takes what a pod sends: `ambient`, `sidecar`, or empty for a pod that is not Istio's.

    A sidecar by TPROXY is `sidecar-tproxy`, one that the application has to dial itself `sidecar-none`, one that is led
    to in a way unknown to us `sidecar-other`; before that stands `native-` for one among the `initContainers`.
    """
    if annotations.get(AMBIENT) == "enabled":
        return "ambient"
    if not isinstance(annotations.get(STATUS), str):
        return "ambient" if isinstance(labels, Mapping) and labels.get(DATAPLANE) == "ambient" else ""
    native = isinstance(spec, Mapping) and any(
        one.get("name") == CONTAINER for one in containers(spec, ("initContainers",))
    )
    mode = annotations.get(INTERCEPTION, "REDIRECT")
    how = _HOW.get(mode, "-other") if isinstance(mode, str) else "-other"
    return f"{'native-' if native else ''}sidecar{how}"


def _user(of: Mapping[str, Any], default: int | None) -> int | None:
    """`securityContext.runAsUser` of a pod or container; None: it is no number."""
    context = of.get("securityContext")
    user = context.get("runAsUser", default) if isinstance(context, Mapping) else default
    return user if isinstance(user, int) and not isinstance(user, bool) and 0 <= user < 1 << 32 else None
