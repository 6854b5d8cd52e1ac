"""Which workloads a specification is about, as selectors of Istio: matchLabels in a namespace, or in all of them."""

from __future__ import annotations

from itertools import product
from math import prod

import msgspec

from spliceway.policy.istio.httprules import RefusedError
from spliceway.policy.labels import (
    CLUSTER_KEY,
    DERIVED_PREFIX,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    Operator,
    Requirement,
    Selector,
    pod_labels,
)
from spliceway.policy.model import Cluster
from spliceway.policy.selectors import facts_of, matcher

#: Most AuthorizationPolicies that one selector becomes.
MAX_TARGETS = 64


class Target(msgspec.Struct, frozen=True):
    """A namespace and the labels of workloads in it. The root namespace stands for every namespace."""

    namespace: str
    match_labels: tuple[tuple[str, str], ...] = ()


def targets(cluster: Cluster, subject: Selector, root_namespace: str) -> tuple[Target, ...]:
    """The targets that together are equal to the selector. Raises RefusedError."""
    of_namespaces, of_labels = [], []
    for one in subject.requirements:
        if one.source not in ("any", "k8s"):
            raise RefusedError(f"endpointSelector: {one.source}:{one.key} selects no workload")
        if one.key == NAMESPACE_KEY or one.key.startswith(NAMESPACE_LABELS_PREFIX):
            of_namespaces.append(one)
        elif one.key == CLUSTER_KEY:
            if not Selector((one,)).matches((f"k8s:{CLUSTER_KEY}=default",)):
                return ()
        elif one.key.startswith(DERIVED_PREFIX) or one.operator is not Operator.IN:
            raise RefusedError(f"endpointSelector: {_told(one)} has no counterpart among matchLabels")
        else:
            of_labels.append(one)
    namespaces = _namespaces(cluster, of_namespaces, root_namespace)
    if not namespaces:
        return ()
    values: dict[str, list[str]] = {}
    for one in of_labels:  # one key twice: what both have
        both = frozenset(one.values)
        values[one.key] = [value for value in values.get(one.key, one.values) if value in both]
    if prod(map(len, values.values())) * len(namespaces) > MAX_TARGETS:
        raise RefusedError(f"endpointSelector: needs more than {MAX_TARGETS} AuthorizationPolicies")
    choices = [[(key, value) for value in values[key]] for key in values]
    found = (tuple(sorted(labels)) for labels in product(*choices))
    return tuple(dict.fromkeys(Target(namespace, labels) for labels in found for namespace in namespaces))


def _namespaces(cluster: Cluster, requirements: list[Requirement], root_namespace: str) -> list[str]:
    if all(one.key == NAMESPACE_KEY and one.operator is Operator.EXISTS for one in requirements):
        return [root_namespace]
    named = {
        value for one in requirements if one.operator is Operator.IN for value in one.values if one.key == NAMESPACE_KEY
    }
    known = {*cluster.namespaces, *(pod.namespace for pod in cluster.pods.values()), *named}
    test = matcher(Selector(tuple(requirements)))
    found = []
    for name in sorted(known):
        labels = cluster.namespaces[name].labels if name in cluster.namespaces else {}
        if test.matches(facts_of(pod_labels(name, {}, labels, ""))):
            if name == root_namespace:
                raise RefusedError(f"endpointSelector: a policy in namespace {name} would be about every namespace")
            found.append(name)
    return found


def _told(one: Requirement) -> str:
    return f"{one.key} {one.operator.value}"
