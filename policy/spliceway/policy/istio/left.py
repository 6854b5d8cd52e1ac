"""HTTP rules that a policy leaves to Istio: what they are on the wire where a sidecar asks them. Pure.

With the annotation `spliceway.io/http-rules: istio` an ingress rule with HTTP rules is its L3/L4 part for a pod whose
own sidecar sees the port (`istio.sidecar`): its peers pass, and are not steered. For all other pods and ports it is
what it says. A specification is about pods that it selects, so one with such rules becomes several about different
pods, by the pods' marks. A rule's name stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec

from spliceway.policy.istio.sidecar import Sees
from spliceway.policy.labels import SIDECAR_KEY, Operator, Requirement
from spliceway.policy.model import Action, Cluster, NetworkPolicy, PortRule, Rule, Spec
from spliceway.policy.selectors import Facts, facts_of, matcher
from spliceway.policy.verdict import Direction


def on_the_wire(policy: NetworkPolicy, marks: Collection[str]) -> NetworkPolicy:
    """The policy as the wire enforces it. `marks`: see `marks_of`; for a pod with another it is as written."""
    if not policy.left_to_istio:
        return policy
    specs = tuple(part for spec in policy.specs for part in _parts(spec, marks))
    return policy if specs == policy.specs else msgspec.structs.replace(policy, specs=specs)


def cluster_on_the_wire(cluster: Cluster) -> Cluster:
    """The cluster as it is enforced, each policy with the marks of the cluster's own pods."""
    if not any(policy.left_to_istio for policy in cluster.policies.values()):
        return cluster
    marked = [pod for pod in cluster.pods.values() if pod.labels.get(SIDECAR_KEY) and not pod.host_network]
    alike = {cluster.labels_of(pod): pod.labels[SIDECAR_KEY] for pod in marked}
    pods = [(facts_of(labels), mark) for labels, mark in alike.items()]
    policies = {key: on_the_wire(policy, set(marks_of(policy, pods))) for key, policy in cluster.policies.items()}
    return msgspec.structs.replace(cluster, policies=policies)


def marks_of(policy: NetworkPolicy, pods: Iterable[tuple[Facts, str]]) -> Iterator[str]:
    """Of pods (labels and mark of each) the marks of those that HTTP rules which may be left to Istio are about."""
    if policy.left_to_istio:
        tests = [matcher(spec.subject) for spec in policy.specs if any(map(is_left, spec.rules))]
        yield from (mark for facts, mark in pods if any(test.matches(facts) for test in tests))


def is_left(rule: Rule) -> bool:
    """Whether a rule is one of those that may be left to Istio: it allows, and has HTTP rules of ingress."""
    return (
        rule.direction is Direction.INGRESS
        and rule.action is Action.ALLOW
        and not rule.void
        and any(entry.http is not None for entry in rule.to_ports)
    )


def _parts(spec: Spec, marks: Collection[str]) -> Iterator[Spec]:
    alike: dict[tuple[Rule, ...], list[str]] = {}
    if any(map(is_left, spec.rules)):
        for mark in sorted(marks):
            rules = tuple(_plain(rule, Sees.of(mark)) for rule in spec.rules)
            if rules != spec.rules:
                alike.setdefault(rules, []).append(mark)
    if not alike:
        yield spec
        return
    known = tuple(sorted(mark for found in alike.values() for mark in found))
    yield _about(spec, spec.rules, Requirement("k8s", SIDECAR_KEY, Operator.NOT_IN, known))
    for rules, found in alike.items():
        yield _about(spec, rules, Requirement("k8s", SIDECAR_KEY, Operator.IN, tuple(found)))


def _about(spec: Spec, rules: tuple[Rule, ...], more: Requirement) -> Spec:
    subject = msgspec.structs.replace(spec.subject, requirements=(*spec.subject.requirements, more))
    return msgspec.structs.replace(spec, subject=subject, rules=rules)


def _plain(rule: Rule, sees: Sees) -> Rule:
    """The rule without HTTP rules for the ports that the sidecar sees."""
    if not is_left(rule):
        return rule
    return msgspec.structs.replace(rule, to_ports=tuple(part for one in rule.to_ports for part in _split(one, sees)))


def _split(entry: PortRule, sees: Sees) -> Iterator[PortRule]:
    if entry.http is None:
        yield entry
        return
    seen = tuple(one for one in entry.ports if sees.has(one))
    others = tuple(one for one in entry.ports if not sees.has(one))
    if seen:
        yield msgspec.structs.replace(entry, ports=seen, http=None)
    if others or not seen:
        yield msgspec.structs.replace(entry, ports=others)
