"""What the server serves: its own resources, and those of CustomResourceDefinitions in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from support.kubeapi.store import Resource, Store

Json = dict[str, Any]
CRDS: Resource = ("apiextensions.k8s.io", "customresourcedefinitions")


class Served(msgspec.Struct, frozen=True):
    """A resource in one version. `fields`: what field selectors may name, beside name and namespace.

    `schema`: of its definition, where that says more than that everything goes. `put_makes`: PUT of what is not there
    makes it, whatever its resourceVersion says.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    custom: bool = False
    fields: tuple[str, ...] = ()
    schema: Json | None = None
    put_makes: bool = False

    @property
    def resource(self) -> Resource:
        return self.group, self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


_EVENT_FIELDS = (
    "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "reason", "type",
)  # fmt: skip
_POD_FIELDS = (
    "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
    "status.phase", "status.podIP", "status.nominatedNodeName",
)  # fmt: skip
BUILT_IN = (
    Served("", "v1", "pods", "Pod", status=True, fields=_POD_FIELDS),
    Served("", "v1", "namespaces", "Namespace", namespaced=False, status=True, fields=("status.phase",)),
    Served("", "v1", "nodes", "Node", namespaced=False, status=True, fields=("spec.unschedulable",)),
    Served("", "v1", "services", "Service", status=True, fields=("spec.clusterIP", "spec.type")),
    Served("", "v1", "secrets", "Secret", fields=("type",)),
    Served("", "v1", "configmaps", "ConfigMap"),
    Served("", "v1", "serviceaccounts", "ServiceAccount"),
    Served("", "v1", "events", "Event", fields=_EVENT_FIELDS),
    Served("events.k8s.io", "v1", "events", "Event", fields=("reason", "type")),
    Served("apps", "v1", "daemonsets", "DaemonSet", status=True),
    Served("apps", "v1", "deployments", "Deployment", status=True),
    Served("batch", "v1", "jobs", "Job", status=True, fields=("status.successful",)),
    Served("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Served("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Served("coordination.k8s.io", "v1", "leases", "Lease", put_makes=True),
    *(
        Served("rbac.authorization.k8s.io", "v1", f"{kind.lower()}s", kind, namespaced=not kind.startswith("Cluster"))
        for kind in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    ),
    Served(*CRDS[:1], "v1", CRDS[1], "CustomResourceDefinition", namespaced=False, status=True),
)


class Registry:
    """Which resources there are at this moment."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._crds: object = None
        self._served: tuple[Served, ...] = ()

    def served(self) -> tuple[Served, ...]:
        """All, those of CRDs last."""
        crds = self._store.objects(CRDS)
        if crds is not self._crds:
            custom = [one for _name, item in sorted(crds.items()) for one in _of_crd(item.content)]
            self._crds, self._served = crds, (*BUILT_IN, *custom)
        return self._served

    def find(self, group: str, version: str, plural: str) -> Served | None:
        """The one that a path names."""
        wanted = (group, version, plural)
        return next((one for one in self.served() if (one.group, one.version, one.plural) == wanted), None)

    def of_kind(self, api_version: str, kind: str) -> Served:
        """The one that an object names. Raises LookupError."""
        for one in self.served():
            if (one.api_version, one.kind) == (api_version, kind):
                return one
        raise LookupError(f"nothing serves {api_version} {kind}: install its CustomResourceDefinition first")

    def groups(self) -> dict[str, list[str]]:
        """Versions of each group, the preferred one first. The core group is not one of them."""
        found: dict[str, list[str]] = {}
        for one in self.served():
            if one.group and one.version not in found.setdefault(one.group, []):
                found[one.group].append(one.version)
        return found


def _of_crd(content: Json) -> Iterator[Served]:
    spec = content["spec"]
    for version in spec["versions"]:
        if version.get("served", True):
            yield Served(
                spec["group"],
                version["name"],
                spec["names"]["plural"],
                spec["names"]["kind"],
                namespaced=spec.get("scope", "Namespaced") == "Namespaced",
                status="status" in version.get("subresources", {}),
                custom=True,
                schema=_schema(version),
            )


def _schema(version: Json) -> Json | None:
    schema: Json = version.get("schema", {}).get("openAPIV3Schema", {})
    return schema if "properties" in schema else None


def crd(
    group: str, kind: str, plural: str, versions: Iterable[str], *, namespaced: bool = True, status: bool = True
) -> Json:
    """A CustomResourceDefinition without a schema; the first version is the stored one."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": not index,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    **({"subresources": {"status": {}}} if status else {}),
                }
                for index, version in enumerate(versions)
            ],
        },
    }
