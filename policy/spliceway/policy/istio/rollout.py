"""In which order AuthorizationPolicies are created and deleted. Pure.

So that nothing passes in between that neither the old policies nor the new ones let pass.

Istio denies what a DENY policy means; else, where a workload has any ALLOW policy, what none of them means. So
nothing is ever changed in place: what is another one has another name, and first all that is new is there, then what
is old goes. DENY policies come before anything is allowed, and go when nothing is allowed any more on their account:
at each moment both the old and the new ones deny. ALLOW policies of old and new together allow the union of both.

A workload without ALLOW policies denies nothing by them, and the first of several would deny what the others allow,
as would the last that is left of several. So where nothing was allowed by ALLOW policies before, or nothing will be, a
*bridge* stands meanwhile: an ALLOW policy for everything, which changes nothing there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec

from spliceway.policy.istio.objects import AuthorizationPolicy, AuthorizationRule
from spliceway.policy.model import Pod

#: Namespace and name.
Name = tuple[str, str]
_BRIDGE = "-bridge"
_MAX_NAME = 253


class Shape(msgspec.Struct, frozen=True):
    """What of an AuthorizationPolicy matters for the order: whom it is about, and what it does."""

    namespace: str
    name: str
    action: str
    match_labels: tuple[tuple[str, str], ...] = ()
    services: tuple[str, ...] = ()
    bridge: bool = False

    @property
    def key(self) -> Name:
        """Namespace and name."""
        return self.namespace, self.name

    def covers(self, pod: Pod, root_namespace: str) -> bool:
        """Whether it may be about a pod. Which pods are behind a Service is not asked: all of the namespace."""
        if self.namespace not in (pod.namespace, root_namespace):
            return False
        return bool(self.services) or dict(self.match_labels).items() <= pod.labels.items()

    def overlaps(self, other: Shape, root_namespace: str) -> bool:
        """Whether both may be about one workload, where it is judged: at a waypoint, or at the pod."""
        if self.namespace != other.namespace and root_namespace not in (self.namespace, other.namespace):
            return False
        if bool(self.services) != bool(other.services):
            return False
        if self.services:
            return not set(self.services).isdisjoint(other.services)
        own = dict(self.match_labels)
        return all(own.get(key, value) == value for key, value in other.match_labels)


class Step(msgspec.Struct, frozen=True):
    """Objects that are created or deleted, in any order, before the next step."""

    verb: Literal["create", "delete"]
    shapes: tuple[Shape, ...]


def shape_of(policy: AuthorizationPolicy) -> Shape:
    """Of a policy that was translated."""
    return Shape(policy.namespace, policy.name, policy.action, policy.match_labels, policy.services)


def bridge(shape: Shape) -> Shape:
    """The one that stands for an ALLOW policy's workloads."""
    name = shape.name[: _MAX_NAME - len(_BRIDGE)].rstrip("-.") + _BRIDGE
    return msgspec.structs.replace(shape, name=name, bridge=True)


def bridge_policy(shape: Shape, origin: str) -> AuthorizationPolicy:
    """What a bridge is: everything passes."""
    everything = (AuthorizationRule(),)
    return AuthorizationPolicy(
        shape.namespace, shape.name, shape.action, everything, shape.match_labels, shape.services, origin
    )


def rollout(
    there: Mapping[Name, Shape], wanted: Mapping[Name, Shape], unwanted: Collection[Name], root_namespace: str
) -> tuple[Step, ...]:
    """The steps from what is there (others' policies, too) to what is wanted; without any, all is as it should be.

    `unwanted`: of what is there, and of bridges that an earlier rollout has left, those that go.
    """
    missing = [shape for key, shape in wanted.items() if key not in there]
    going = [shape for key, shape in there.items() if key in unwanted]
    allowing = [one for one in missing if one.action == "ALLOW"]
    allowed = [one for one in going if one.action == "ALLOW" and not one.bridge]
    before = [one for one in there.values() if one.action == "ALLOW" and not one.bridge]
    after = [*(one for one in before if one.key not in unwanted), *allowing]
    needed = [
        *_alone(allowing, before, root_namespace),
        *_alone(allowed, after, root_namespace),
    ]
    bridges = {one.key: one for one in map(bridge, needed)}
    standing = [one for one in going if one.bridge]
    steps = (
        Step("create", tuple(one for one in missing if one.action == "DENY")),
        Step("create", tuple(one for one in bridges.values() if one.key not in there)),
        Step("create", tuple(allowing)),
        Step("delete", tuple(allowed)),
        Step("delete", tuple({one.key: one for one in (*bridges.values(), *standing)}.values())),
        Step("delete", tuple(one for one in going if one.action == "DENY")),
    )
    return tuple(step for step in steps if step.shapes)


def _alone(several: Iterable[Shape], others: Iterable[Shape], root_namespace: str) -> list[Shape]:
    """Those that overlap with another of these and with none of the others."""
    several = list(several)
    own, rest = _by_namespace(several), _by_namespace(others)

    def near(found: Mapping[str, list[Shape]], shape: Shape) -> Iterable[Shape]:
        if shape.namespace == root_namespace:
            return (one for listed in found.values() for one in listed)
        return (*found.get(shape.namespace, ()), *found.get(root_namespace, ()))

    return [
        shape
        for shape in several
        if any(one is not shape and one.overlaps(shape, root_namespace) for one in near(own, shape))
        and not any(one.overlaps(shape, root_namespace) for one in near(rest, shape))
    ]


def _by_namespace(shapes: Iterable[Shape]) -> dict[str, list[Shape]]:
    found: dict[str, list[Shape]] = {}
    for one in shapes:
        found.setdefault(one.namespace, []).append(one)
    return found
