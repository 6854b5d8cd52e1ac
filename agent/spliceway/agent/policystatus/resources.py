"""Our own kinds, and what an agent must be allowed to do with them and others."""

from __future__ import annotations

from spliceway.agent.sources.kubernetes.resources import Resource

GROUP, VERSION = "spliceway.io", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


def _own(kind: str, plural: str) -> Resource:
    return Resource(kind, GROUP, (VERSION,), plural, False, True)


REPORTS = _own("NodePolicyReport", "nodepolicyreports")
NAMESPACED = _own("PolicyStatus", "policystatuses")
CLUSTERWIDE = _own("ClusterPolicyStatus", "clusterpolicystatuses")

#: Rules of a ClusterRole: every agent's, as any may be the one that writes.
RIGHTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"apiGroups": (GROUP,), "resources": (REPORTS.plural,), "verbs": ("list", "watch", "create", "patch")},
    {
        "apiGroups": (GROUP,),
        "resources": (CLUSTERWIDE.plural, NAMESPACED.plural),
        "verbs": ("list", "watch", "create", "delete"),
    },
    {
        "apiGroups": (GROUP,),
        "resources": (f"{CLUSTERWIDE.plural}/status", f"{NAMESPACED.plural}/status"),
        "verbs": ("update",),
    },
    {"apiGroups": ("",), "resources": ("events",), "verbs": ("create",)},
)
#: Istio's kinds, where translations are kept applied; the second is only read.
AUTHORIZATIONS = Resource(
    "AuthorizationPolicy", "security.istio.io", ("v1", "v1beta1"), "authorizationpolicies", False, True
)
AUTHENTICATIONS = Resource(
    "PeerAuthentication", "security.istio.io", ("v1", "v1beta1"), "peerauthentications", False, True
)
#: Of a ClusterRole, beside RIGHTS, with `istio.authorizationPolicies` emit or remove.
EMISSION_RIGHTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "apiGroups": (AUTHORIZATIONS.group,),
        "resources": (AUTHORIZATIONS.plural,),
        "verbs": ("list", "watch", "create", "update", "delete"),
    },
    {"apiGroups": (AUTHENTICATIONS.group,), "resources": (AUTHENTICATIONS.plural,), "verbs": ("list", "watch")},
)
#: Of a ClusterRole, where the taint is used.
TAINT_RIGHTS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"apiGroups": ("",), "resources": ("nodes",), "verbs": ("get", "patch")},
)


def lease_rights(lease: str) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Of a Role in the Lease's namespace. What is to be made can't be named in a rule."""
    group = ("coordination.k8s.io",)
    return (
        {"apiGroups": group, "resources": ("leases",), "verbs": ("create",)},
        {"apiGroups": group, "resources": ("leases",), "resourceNames": (lease,), "verbs": ("get", "update")},
    )
