"""Policies as they are enforced where HBONE hides ports (`policy.istio.hbone`), and what is told of it. Pure.

As long as a pod of this node needs it, each policy that could be bypassed by port 15008 leaves the inventory `closed`;
without such a pod all leave it as they are. What a policy means for ambient pods, and not what it says, is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

import msgspec

from spliceway.agent.localpods import LocalPods
from spliceway.agent.manifests import Key
from spliceway.policy.entity import Entity
from spliceway.policy.istio.hbone import (
    AMBIENT,
    AUTHORIZATION,
    DATAPLANE,
    HBONE,
    NONE,
    Hidden,
    closed,
    dataplane,
    hidden,
    opens,
)
from spliceway.policy.labels import NAMESPACE_KEY, Operator, Selector
from spliceway.policy.model import Action, NetworkPolicy, Object, Peers, Pod, Rule, Spec
from spliceway.policy.selectors import facts_of, matcher
from spliceway.policy.verdict import Direction, Protocol

#: Warnings that are told at most, and pods that one names.
_MOST, _NAMED = 20, 3
_INSIDE = frozenset({Entity.ALL, Entity.CLUSTER, Entity.CLUSTER_MESH})
_INSTEAD = "or say it in an AuthorizationPolicy"
_WHY = {
    Hidden.DENIED: f"denies ports that HBONE hides, so port {HBONE} is denied {{peers}}, too: deny them without "
    f"ports, {_INSTEAD}",
    Hidden.PASSED: f"passes on ports that HBONE hides, so port {HBONE} is denied {{peers}}: pass them on without "
    f"ports, {_INSTEAD}",
    Hidden.RANGE: f"allows a range of ports with {HBONE} in it, by which HBONE would reach all ports, so that one is "
    f"left out: allow port {HBONE} as such {{peers}} if all ports are meant, {_INSTEAD}",
}
_BROKEN = {
    Direction.INGRESS: f"allows ports only, and what comes by HBONE comes to port {HBONE}, which is denied: allow "
    f"port {HBONE} {{peers}} (that opens all ports for those in the mesh; AuthorizationPolicies tell ports apart)",
    Direction.EGRESS: f"allows ports only, and what goes to ambient pods goes to port {HBONE}, which is denied: allow "
    f"port {HBONE} {{peers}} (that opens all ports of those in the mesh; AuthorizationPolicies tell ports apart)",
}
_PEERS = {Direction.INGRESS: "from the same peers", Direction.EGRESS: "to the same peers"}


class _Group(msgspec.Struct, frozen=True):
    """Ambient pods with the same labels, and the specifications that are about them."""

    pods: tuple[str, ...]
    about: tuple[tuple[NetworkPolicy, Spec], ...]


class HboneSide:
    """Follows the objects; `complete` closes policies, `warnings` says for whom."""

    def __init__(self, local: LocalPods) -> None:
        """`local`: the pods that count, as they are after each change."""
        self._local = local
        self._policies: dict[Key, NetworkPolicy] = {}
        self._closing = False
        self.ambient = False  # whether a pod of this node is
        self._told: tuple[str, ...] | None = ()

    def __repr__(self) -> str:
        return f"HboneSide({self._local!r}, policies={len(self._policies)}, closing={self._closing})"

    def complete(self, changes: dict[Key, Object | None]) -> None:
        """Take in what changed, and close policies of it, or all of them when the first pod needs it."""
        if not changes:
            return
        for key, item in changes.items():
            self._take(key, item)
        self._told = None
        planes = set(map(self._plane, self._local.pods.values()))
        self.ambient = AMBIENT in planes
        before, self._closing = self._closing, not planes <= {NONE}
        if self._closing != before:
            for key, policy in self._policies.items():
                if closed(policy) is not policy:
                    changes.setdefault(key, policy)
        if self._closing:
            for key, item in changes.items():
                if isinstance(item, NetworkPolicy):
                    changes[key] = closed(item)

    def warnings(self) -> tuple[str, ...]:
        """What policies don't do, or do besides, for ambient pods of this node."""
        if self._told is None:
            found: dict[tuple[str, str], list[str]] = {}
            for group in self._groups():
                for where, what in _findings(group, self._leads_into_the_mesh):
                    found.setdefault((where, what), []).extend(group.pods)
            told = [f"{where} {what} [ambient: {_names(pods)}]" for (where, what), pods in sorted(found.items())]
            more = (f"{len(told) - _MOST} more rules for ambient pods are like these",) if len(told) > _MOST else ()
            self._told = (*told[:_MOST], *more)
        return self._told

    def _take(self, key: Key, item: Object | None) -> None:
        if isinstance(item, NetworkPolicy):
            self._policies[key] = item
        else:
            self._policies.pop(key, None)

    def _plane(self, pod: Pod) -> str:
        return dataplane(pod, self._local.namespaces.get(pod.namespace, {}))

    def _groups(self) -> Iterator[_Group]:
        specs = [
            (policy, spec)
            for policy in self._policies.values()
            if policy.kind != AUTHORIZATION
            for spec in policy.specs
        ]
        for labels, names in self._local.alike(lambda pod: self._plane(pod) == AMBIENT):
            facts = facts_of(labels)
            about = tuple((policy, spec) for policy, spec in specs if matcher(spec.subject).matches(facts))
            yield _Group(tuple(sorted(names)), about)

    def _leads_into_the_mesh(self, peers: Peers | None) -> bool:
        """Whether a peer may be ambient, too: then what is sent to it goes by HBONE."""
        if peers is None or peers.services or _INSIDE.intersection(peers.entities):
            return True
        ambient = {name for name, labels in self._local.namespaces.items() if labels.get(DATAPLANE) == "ambient"}
        ambient |= {pod.namespace for pod in self._local.pods.values() if self._plane(pod) == AMBIENT}
        return any(_may_be_in(selector, ambient) for selector in peers.endpoints)


def _findings(group: _Group, into_mesh: Callable[[Peers | None], bool]) -> Iterator[tuple[str, str]]:
    """Which rule, and what is to be said of it."""
    rules = [rule for _, spec in group.about for rule in spec.rules]
    opened = {
        direction: [rule.peers for rule in rules if rule.direction is direction and opens(rule)]
        for direction in Direction
    }
    isolated = {direction: any(spec.default_deny[direction] for _, spec in group.about) for direction in Direction}
    for policy, spec in group.about:
        for rule in spec.rules:
            why = hidden(rule)
            if why is not None:
                yield f"{policy.title}: {rule.path}", _WHY[why].format(peers=_PEERS[rule.direction])
            elif (
                _has_tcp_alone(rule)
                and isolated[rule.direction]
                and None not in opened[rule.direction]
                and rule.peers not in opened[rule.direction]
                and (rule.direction is Direction.INGRESS or into_mesh(rule.peers))
            ):
                yield f"{policy.title}: {rule.path}", _BROKEN[rule.direction].format(peers=_PEERS[rule.direction])


def _has_tcp_alone(rule: Rule) -> bool:
    """Whether it allows ports of TCP, and not by HBONE."""
    ports = [one for entry in rule.to_ports for one in entry.ports]
    named = any(one.protocol in (Protocol.TCP, Protocol.ANY) for one in ports)
    return rule.action is Action.ALLOW and not rule.void and named and not opens(rule)


def _may_be_in(selector: Selector, namespaces: Set[str]) -> bool:
    """Whether pods of these namespaces may be selected, as far as the selector names namespaces."""
    for one in selector.requirements:
        if one.key == NAMESPACE_KEY and one.operator is Operator.IN and namespaces.isdisjoint(one.values):
            return False
    return bool(namespaces)


def _names(pods: list[str]) -> str:
    more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
    return ", ".join(sorted(pods)[:_NAMED]) + more
