"""Labels of identities and the selectors that choose among them.

A label is the string `source:key=value`, as Cilium prints it: `k8s:role=front`, `reserved:world`, `cidr:10.1.0.0/16`.
Sources: Cilium, Documentation/gettingstarted/terminology «Labels»; pkg/labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

#: Label that carries the namespace of a pod; pods cannot set it themselves.
NAMESPACE_KEY = "io.kubernetes.pod.namespace"
#: Prefix under which the labels of the namespace appear among a pod's.
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
#: Prefix of what Cilium derives itself (cluster, service account).
DERIVED_PREFIX = "io.cilium.k8s.policy."
CLUSTER_KEY = DERIVED_PREFIX + "cluster"
SERVICE_ACCOUNT_KEY = DERIVED_PREFIX + "serviceaccount"
#: What the source knows of a pod besides its labels: whether HBONE hides its ports
#: (`istio.hbone`). No pod can claim it: keys have no colon.
HBONE_KEY = "spliceway:hbone"
#: Likewise: which ports its sidecar sees (`istio.sidecar`).
SIDECAR_KEY = "spliceway:sidecar"
#: The API server puts this label on every namespace.
NAMESPACE_NAME_KEY = "kubernetes.io/metadata.name"

#: Sources that a selector may name; «any» (or none) matches every source.
SELECTOR_SOURCES = ("any", "k8s", "reserved")


def reserved(name: str) -> str:
    """Label of a reserved identity: `reserved:world`."""
    return f"reserved:{name}"


def split(label: str) -> tuple[str, str, str]:
    """Source, key and value of a label; the value is empty when there is no `=`."""
    source, _, rest = label.partition(":")
    key, _, value = rest.partition("=")
    return source, key, value


def pod_labels(
    namespace: str, labels: Mapping[str, str], namespace_labels: Mapping[str, str], service_account: str
) -> tuple[str, ...]:
    """Sorted identity labels of a pod.

    What is derived (namespace, its labels, service account, cluster) replaces what a pod claims under those keys:
    otherwise a pod could label itself into another namespace.
    """
    found = {
        key: value
        for key, value in labels.items()
        if key != NAMESPACE_KEY and not key.startswith((NAMESPACE_LABELS_PREFIX, DERIVED_PREFIX))
    }
    found[NAMESPACE_KEY] = namespace
    found[CLUSTER_KEY] = "default"
    if service_account:
        found[SERVICE_ACCOUNT_KEY] = service_account
    for key, value in {**namespace_labels, NAMESPACE_NAME_KEY: namespace}.items():
        found[NAMESPACE_LABELS_PREFIX + key] = value
    return tuple(sorted(f"k8s:{key}={value}" for key, value in found.items()))


class Operator(Enum):
    """Operators of Kubernetes label selector requirements."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(msgspec.Struct, frozen=True):
    """One condition on a key. `source` is one of SELECTOR_SOURCES; `values` are sorted, empty unless In or NotIn."""

    source: str
    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class Selector(msgspec.Struct, frozen=True):
    """All requirements hold. Without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def has_key(self, key: str) -> bool:
        """Whether a requirement names this key, with the source k8s or any."""
        return any(r.key == key and r.source in ("any", "k8s") for r in self.requirements)

    def matches(self, labels: Iterable[str]) -> bool:
        """Whether an identity with these labels is selected. NotIn holds when the key is absent, as in Kubernetes."""
        parts = [split(label) for label in labels]
        return all(_holds(requirement, parts) for requirement in self.requirements)


def _holds(requirement: Requirement, labels: list[tuple[str, str, str]]) -> bool:
    values = [
        value for source, key, value in labels if key == requirement.key and requirement.source in ("any", source)
    ]
    match requirement.operator:
        case Operator.IN:
            return any(value in requirement.values for value in values)
        case Operator.NOT_IN:
            return not any(value in requirement.values for value in values)
        case Operator.EXISTS:
            return bool(values)
        case Operator.DOES_NOT_EXIST:
            return not values
