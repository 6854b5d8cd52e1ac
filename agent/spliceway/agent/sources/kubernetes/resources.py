"""What is watched: every kind that `policy` reads, by the paths that the API server has it at."""

from __future__ import annotations

import msgspec

from spliceway.policy.parse import READERS


class Resource(msgspec.Struct, frozen=True):
    """A kind and where it is. `versions`: the first that is served is read.

    `built_in`: every API server has it. `essential`: nothing goes into force before it was listed (or is known not to
    be served): without it policy would have holes. Without Services and slices only `toServices` matches nothing.
    """

    kind: str
    group: str
    versions: tuple[str, ...]
    plural: str
    built_in: bool
    essential: bool

    def path(self, version: str, namespace: str = "") -> str:
        """Of all objects, or those of a namespace, below the server's root."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/namespaces/{namespace}/{self.plural}" if namespace else f"{root}/{self.plural}"

    def api_version(self, version: str) -> str:
        """As documents have it."""
        return f"{self.group}/{version}" if self.group else version


#: Plural names of built-in kinds, and of those that CustomResourceDefinitions bring.
_BUILT_IN = {
    "Pod": "pods",
    "Namespace": "namespaces",
    "Node": "nodes",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "NetworkPolicy": "networkpolicies",
}
_CUSTOM = {
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
    "CiliumCIDRGroup": "ciliumcidrgroups",
    "ClusterNetworkPolicy": "clusternetworkpolicies",
    "AdminNetworkPolicy": "adminnetworkpolicies",
    "BaselineAdminNetworkPolicy": "baselineadminnetworkpolicies",
    "AuthorizationPolicy": "authorizationpolicies",
}
#: Kinds without which the rest can be enforced.
_OPTIONAL = frozenset({"Service", "EndpointSlice"})
#: Read one by one and by name, see docs/kubernetes.md.
NOT_WATCHED = frozenset({"Secret"})


def _resources() -> tuple[Resource, ...]:
    found: dict[str, list[str]] = {}
    for api_version, kind in READERS:
        if kind not in NOT_WATCHED:
            found.setdefault(kind, []).append(api_version)
    return tuple(
        Resource(
            kind,
            versions[0].rpartition("/")[0],
            tuple(version.rpartition("/")[2] for version in versions),
            _BUILT_IN.get(kind) or _CUSTOM[kind],
            kind in _BUILT_IN,
            kind not in _OPTIONAL,
        )
        for kind, versions in found.items()
    )


RESOURCES = _resources()


def rights() -> tuple[dict[str, tuple[str, ...]], ...]:
    """The rules of a ClusterRole that the source needs, by API group."""
    groups: dict[str, list[str]] = {}
    for one in RESOURCES:
        groups.setdefault(one.group, []).append(one.plural)
    return tuple(
        {"apiGroups": (group,), "resources": tuple(sorted(plurals)), "verbs": ("list", "watch")}
        for group, plurals in sorted(groups.items())
    )
