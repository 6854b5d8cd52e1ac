"""HBONE hides ports: what a policy that names ports means for a pod whose traffic comes and goes by port 15008. Pure.

Between pods of an ambient mesh the wire shows TCP to port 15008 and TLS in it, whatever port the client asked for. So
who may reach 15008 may reach every TCP port, and nothing that names ports may open it by accident:

- a rule that **denies** (or passes on) certain ports denies 15008 to the same peers, too: else what it denies would
  come by HBONE;
- a rule that **allows** a range of ports which happens to have 15008 in it does not allow 15008: else it would allow
  the ports beside the range. 15008 alone, or all ports of TCP, are meant so.

Rules without ports are as right as ever: ztunnel's sockets are in the pod's own network namespace and have its address.
UDP, SCTP and ICMP never go by HBONE. docs/istio-ambient.md argues it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import msgspec

from spliceway.policy.labels import HBONE_KEY, NAMESPACE_LABELS_PREFIX, Operator, Requirement
from spliceway.policy.model import Action, Cluster, NetworkPolicy, Pod, PortRange, PortRule, Rule, Spec
from spliceway.policy.verdict import Protocol

#: The port of HBONE, at pods with ztunnel or a sidecar and at waypoints.
HBONE = 15008
AMBIENT, PROXY, NONE = "ambient", "proxy", "none"
#: istio-cni writes it at a pod when ztunnel has it; «pending» where a part of that is still to be done.
REDIRECTION = "ambient.istio.io/redirection"
DATAPLANE = "istio.io/dataplane-mode"
_SIDECAR, _MANAGED = "sidecar.istio.io/status", "gateway.istio.io/managed"
_NAMESPACE = NAMESPACE_LABELS_PREFIX + DATAPLANE
#: What ztunnel and sidecars enforce themselves, by the ports that clients ask for.
AUTHORIZATION = "AuthorizationPolicy"
_LAST = 65535
_TCP = (Protocol.TCP, Protocol.ANY)


def mark(labels: Mapping[str, str], annotations: Any) -> str:
    """What a pod itself says: AMBIENT, PROXY (a sidecar, a waypoint), NONE; empty: its namespace decides.

    `annotations` as they were read, of any type. The annotation tells what is, the label what is asked for: either
    will do, since to take a pod for one too many costs a port, and one too few would open all.
    """
    told = annotations if isinstance(annotations, Mapping) else {}
    if told.get(REDIRECTION) in ("enabled", "pending"):
        return AMBIENT
    if _SIDECAR in told or _MANAGED in labels:
        return PROXY
    asked = labels.get(DATAPLANE)
    return AMBIENT if asked == "ambient" else NONE if asked is not None else ""


def dataplane(pod: Pod, namespace_labels: Mapping[str, str]) -> str:
    """AMBIENT, PROXY or NONE."""
    return pod.labels.get(HBONE_KEY) or (AMBIENT if namespace_labels.get(DATAPLANE) == "ambient" else NONE)


class Hidden(Enum):
    """Why a rule means something else for such a pod than it says."""

    DENIED = "denies"
    PASSED = "passes on"
    RANGE = "range"


def hidden(rule: Rule) -> Hidden | None:
    """Why a rule can't be taken literally where HBONE hides ports; None: it can."""
    ports = [one for entry in rule.to_ports for one in entry.ports if one.protocol in _TCP]
    if rule.void or not ports or _is_every_port(ports):
        return None
    inside = any(one.covers(Protocol.TCP, HBONE) for one in ports)
    match rule.action:
        case Action.DENY:
            return None if inside else Hidden.DENIED
        case Action.PASS:
            return None if all(map(_is_literal, ports)) else Hidden.PASSED
        case Action.ALLOW:
            wide = any(one.covers(Protocol.TCP, HBONE) and not _is_literal(one) for one in ports)
            return Hidden.RANGE if wide else None


def opens(rule: Rule) -> bool:
    """Whether a rule lets its peers in by HBONE: without ports, for every port of TCP, or for 15008 as such."""
    if rule.action is not Action.ALLOW or rule.void:
        return False
    ports = [one for entry in rule.to_ports for one in entry.ports if one.protocol in _TCP]
    return not rule.to_ports or (bool(ports) and _is_every_port(ports)) or any(map(_is_literal, ports))


def closed(policy: NetworkPolicy) -> NetworkPolicy:
    """The policy with the port of HBONE closed where it has to be; the very same where nothing is to be done.

    Specifications of which a rule is `hidden` become four about different pods: those where HBONE may hide ports, by
    their own marks or by their namespace's label, and all others, for which nothing changes.
    """
    if policy.kind == AUTHORIZATION or not any(hidden(rule) for spec in policy.specs for rule in spec.rules):
        return policy
    return msgspec.structs.replace(policy, specs=tuple(part for spec in policy.specs for part in _parts(spec)))


def closed_cluster(cluster: Cluster) -> Cluster:
    """The cluster as it is enforced: policies `closed` where any pod needs it."""
    labels = {name: one.labels for name, one in cluster.namespaces.items()}
    if all(dataplane(pod, labels.get(pod.namespace, {})) == NONE for pod in cluster.pods.values()):
        return cluster
    policies = {key: closed(policy) for key, policy in cluster.policies.items()}
    return msgspec.structs.replace(cluster, policies=policies)


def _parts(spec: Spec) -> Iterator[Spec]:
    if not any(map(hidden, spec.rules)):
        yield spec
        return
    rules = tuple(each for rule in spec.rules for each in _closed(rule))
    unmarked = Requirement("k8s", HBONE_KEY, Operator.DOES_NOT_EXIST)
    yield _about(spec, rules, Requirement("k8s", HBONE_KEY, Operator.IN, (AMBIENT, PROXY)))
    yield _about(spec, rules, unmarked, Requirement("k8s", _NAMESPACE, Operator.IN, ("ambient",)))
    yield _about(spec, spec.rules, Requirement("k8s", HBONE_KEY, Operator.IN, (NONE,)))
    yield _about(spec, spec.rules, unmarked, Requirement("k8s", _NAMESPACE, Operator.NOT_IN, ("ambient",)))


def _about(spec: Spec, rules: tuple[Rule, ...], *more: Requirement) -> Spec:
    subject = msgspec.structs.replace(spec.subject, requirements=(*spec.subject.requirements, *more))
    return msgspec.structs.replace(spec, subject=subject, rules=rules)


def _closed(rule: Rule) -> Iterator[Rule]:
    why = hidden(rule)
    if why is None:
        yield rule
        return
    if why is Hidden.RANGE:
        entries = (
            msgspec.structs.replace(entry, ports=tuple(part for port in entry.ports for part in _without(port)))
            for entry in rule.to_ports
        )
        yield msgspec.structs.replace(rule, to_ports=tuple(entries))
        return
    # The name is that of the entry that is the reason.
    path = next(entry.path for entry in rule.to_ports if any(one.protocol in _TCP for one in entry.ports))
    shut = PortRule(path, (PortRange(Protocol.TCP, HBONE, HBONE),))
    if why is Hidden.DENIED:
        yield msgspec.structs.replace(rule, to_ports=(*rule.to_ports, shut))
        return
    # Whatever comes by HBONE may be what is passed on, or what this tier's later rules are about: neither may decide.
    yield msgspec.structs.replace(rule, action=Action.DENY, to_ports=(shut,))
    yield rule


def _without(port: PortRange) -> Iterator[PortRange]:
    """A range without TCP's port 15008; what has that port alone stays."""
    if port.protocol not in _TCP or _is_literal(port) or not port.covers(Protocol.TCP, HBONE):
        yield port
        return
    if port.first < HBONE:
        yield msgspec.structs.replace(port, last=HBONE - 1)
    if port.protocol is Protocol.ANY:
        yield from (PortRange(one, HBONE, HBONE) for one in (Protocol.UDP, Protocol.SCTP))
    if port.last > HBONE:
        yield msgspec.structs.replace(port, first=HBONE + 1)


def _is_literal(port: PortRange) -> bool:
    return port.first == port.last == HBONE


def _is_every_port(ports: Iterable[PortRange]) -> bool:
    """Whether these are all ports from 1, together."""
    reached = 0
    for port in sorted(ports, key=lambda one: one.first):
        if not port.name and port.first <= reached + 1:
            reached = max(reached, port.last)
    return reached >= _LAST
