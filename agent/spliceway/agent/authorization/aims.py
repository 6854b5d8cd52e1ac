"""What there should be of AuthorizationPolicies, what stays as it was, what goes, and what is told of it. Pure.

A translation that is refused leaves what its last good one has made: it would open what that one closes. With it stays
all else of ours that is about the same workloads, even of a policy that is gone: without it more could pass than by
the old policies or by the new ones. Not so what stands for everything while something changes (a bridge).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

import msgspec

from spliceway.agent.authorization.objects import Held, Made, made, moved
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.ledger import Version
from spliceway.policy.istio.mesh import Dataplane, Mesh
from spliceway.policy.istio.rollout import Name, Shape
from spliceway.policy.istio.translate import Part, Translation
from spliceway.policy.model import Cluster, Namespace, Pod
from spliceway.policy.parse_authorization_source import TRUST_DOMAIN

#: Of a policy that nobody has the document of.
NO_VERSION = "/0/"
#: Reasons of policies that go on as soon as they can.
_HALF_WAY = {"NotWritten", "Pending"}


class Trouble(msgspec.Struct, frozen=True):
    """Why there is nothing new of a policy. `reason`: Refused, Conflict or NotWritten; `field`: of the policy."""

    reason: str
    message: str
    field: str = ""


class Ready(msgspec.Struct, frozen=True):
    """A part of the translation, and the objects that it becomes."""

    part: Part
    objects: tuple[Made, ...]


class World(msgspec.Struct, frozen=True):
    """What was translated: the parts in the mesh.

    `versions`: of the policies, as they were read; `unread`: those that could not be; `idle`: see `Translation`;
    `left`: those whose HTTP rules the wire leaves to Istio, with the pods whose sidecars are to ask them; `newest`:
    those of which the server itself has nothing newer, whatever is written somewhere; `trust_domain`: of the mesh now.
    """

    root_namespace: str
    versions: Mapping[Key, str]
    unread: frozenset[Key]
    idle: frozenset[Key]
    parts: tuple[Ready, ...]
    left: Mapping[Key, tuple[Pod, ...]] = {}
    newest: frozenset[Key] = frozenset()
    trust_domain: str = TRUST_DOMAIN


class Aim(msgspec.Struct, frozen=True):
    """`kept` and `unwanted` are of what is held. `troubles`: by policy; `parts`: policies → names of what is wanted.

    `wanted` are also those of what is kept that are of another trust domain, in this one.
    `unasked`: policies in trouble whose HTTP rules nobody asks at some pods, the wire neither, and at which.
    `unmoved`: policies of which something that is kept is of another trust domain, and can't be moved, and why.
    """

    wanted: Mapping[Name, Made]
    kept: frozenset[Name]
    unwanted: frozenset[Name]
    troubles: Mapping[Key, Trouble]
    parts: Mapping[Key, tuple[Name, ...]]
    unasked: Mapping[Key, tuple[str, ...]] = {}
    unmoved: Mapping[Key, str] = {}


def nothing(held: Mapping[Name, Held]) -> Aim:
    """All goes."""
    return Aim({}, frozenset(), frozenset(held), {}, {})


def meshed(cluster: Cluster, mesh: Mesh, found: Translation, versions: Mapping[Key, str]) -> tuple[Ready, ...]:
    """The parts of which any workload is in the mesh: of all others HTTP is judged on the wire."""
    return tuple(
        Ready(part, tuple(made(one, versions.get(_origin(one.origin), NO_VERSION)) for one in part.policies))
        for part in found.parts
        if _is_meshed(part, cluster, mesh)
    )


def leaving(keys: Iterable[Key], cluster: Cluster, mesh: Mesh, found: Translation) -> dict[Key, tuple[Pod, ...]]:
    """What `World` has of policies that leave HTTP rules to Istio; where no sidecar shows the wire asks them."""
    left: dict[Key, tuple[Pod, ...]] = dict.fromkeys(keys, ())
    for part in found.parts:
        for key, pods in part.asking.items():
            if key in left:
                left[key] += tuple(pod for pod in pods if _is_asked_by_sidecar(cluster, mesh, pod))
    return left


def aim(
    world: World,
    held: Mapping[Name, Held],
    taken: Collection[Name],
    failed: Mapping[Name, str],
    closed: Mapping[str, str] = MappingProxyType({}),
) -> Aim:
    """`held`: what is ours; `taken`: names that others' objects have; `failed`: what could not be written, and why.

    `closed`: namespaces in which nothing new can be written, and why.
    """
    late = "this agent has not seen generation {} of it yet"
    troubles = {
        key: Trouble("Pending", late.format(generation))
        for key, generation in behind(world, held).items()
        if key not in world.newest
    }
    for one in world.parts:
        _refused(one.part, troubles)
        for each in one.objects:
            name = "/".join(each.shape.key)
            if each.shape.key in taken:
                why = f"there is an AuthorizationPolicy {name} that is not ours: it stays as it is"
                troubles.setdefault(each.source, Trouble("Conflict", why))
            elif each.shape.key in failed:
                troubles.setdefault(each.source, Trouble("NotWritten", f"{name}: {failed[each.shape.key]}"))
            elif each.shape.namespace in closed and each.shape.key not in held:
                troubles.setdefault(each.source, Trouble("NotWritten", f"{name}: {closed[each.shape.namespace]}"))
    _spread([one.part for one in world.parts], troubles)
    good = [one for one in world.parts if not any(key in troubles for key in one.part.keys)]
    wanted = {each.shape.key: each for one in good for each in one.objects}
    named: dict[Key, tuple[Name, ...]] = {key: () for one in good for key in one.part.keys}
    for each in wanted.values():
        named[each.source] = (*named.get(each.source, ()), each.shape.key)
    kept = frozenset(_kept(world, held, wanted, troubles))
    unasked = dict(_unasked(world, held, kept, troubles))
    theirs = dict.fromkeys(taken, "there is an AuthorizationPolicy {} that is not ours")

    def stuck(name: Name) -> str:
        return theirs.get(name, "").format("/".join(name)) or failed.get(name, "") or closed.get(name[0], "")

    moves, unmoved = _moves(world, held, kept, stuck)
    wanted |= {new.shape.key: new for new in moves.values() if new.shape.key not in wanted.keys() | held.keys()}
    kept -= moves.keys()
    unwanted = frozenset(held) - wanted.keys() - kept
    return Aim(wanted, kept, unwanted, troubles, named, unasked, unmoved)


def behind(world: World, held: Mapping[Name, Held]) -> dict[Key, int]:
    """Policies of which an agent before says that it has seen more than we have, and which generation."""
    found: dict[Key, int] = {}
    for one in held.values():
        version = Version.parse(world.versions.get(one.source, NO_VERSION))
        if version.uid and version.uid == one.uid and version.generation < one.generation:
            found[one.source] = max(one.generation, found.get(one.source, 0))
    return found


def _origin(origin: str) -> Key:
    kind, _, name = origin.partition(" ")
    return kind, name


def _is_meshed(part: Part, cluster: Cluster, mesh: Mesh) -> bool:
    if part.pods:
        return any(mesh.dataplane(cluster, pod) is not Dataplane.NONE for pod in part.pods)
    # No pod yet: what one would get that says nothing of itself.
    names = {name.rpartition("/")[0] for _kind, name in part.keys}
    spaces: Iterable[Namespace] = cluster.namespaces.values()
    if "" not in names:
        spaces = (one for one in spaces if one.name in names)
    return any(mesh.dataplane(cluster, Pod(one.name, "any")) is not Dataplane.NONE for one in spaces)


def _refused(part: Part, troubles: dict[Key, Trouble]) -> None:
    for error in part.errors:
        key = _origin(error.document)
        if key in part.keys:
            troubles.setdefault(key, Trouble("Refused", error.reason, error.field))
    if part.errors and not any(key in troubles for key in part.keys):
        first = part.errors[0]
        troubles[part.keys[0]] = Trouble("Refused", f"{first.document}: {first.reason}", first.field)


def _spread(parts: Iterable[Part], troubles: dict[Key, Trouble]) -> None:
    """What has a part in the same workloads, directly or by others, has the same trouble."""
    again = True
    while again:
        again = False
        for part in parts:
            bad = next((key for key in part.keys if key in troubles), None)
            if bad is None:
                continue
            for key in part.keys:
                if key not in troubles:
                    why = f"it is about the same workloads as {' '.join(bad)}: {troubles[bad].message}"
                    troubles[key] = Trouble(troubles[bad].reason, why)
                    again = True


def _kept(
    world: World, held: Mapping[Name, Held], wanted: Mapping[Name, Made], troubles: Mapping[Key, Trouble]
) -> Iterator[Name]:
    refused = [one.part for one in world.parts if any(key in troubles for key in one.part.keys)]
    pods: dict[str, Pod] = {}
    reasons: dict[str, set[str]] = {}
    for part in refused:
        why = {troubles[key].reason for key in part.keys}
        for pod in part.pods:
            pods[pod.key] = pod
            reasons.setdefault(pod.key, set()).update(why)
    spaces: dict[str, list[Pod]] = {}
    for pod in pods.values():
        spaces.setdefault(pod.namespace, []).append(pod)
    root = world.root_namespace
    about = {key for one in world.parts for key in one.part.keys}
    for name, one in held.items():
        if name in wanted:
            continue
        near = pods.values() if one.shape.namespace == root else spaces.get(one.shape.namespace, ())
        if one.shape.bridge:
            # It allows everything, for the time of a change: without it nothing opens, and some may have to wait.
            found = {why for pod in near if one.shape.covers(pod, root) for why in reasons[pod.key]}
            found |= {troubles[one.source].reason} if one.source in troubles else set()
            if found and found <= _HALF_WAY:
                yield name
            continue
        if (
            one.source in troubles
            or one.source in world.unread
            or any(one.shape.covers(pod, root) for pod in near)
            or _is_idle(world, one, about)
        ):
            yield name


def _moves(
    world: World, held: Mapping[Name, Held], kept: Iterable[Name], stuck: Callable[[Name], str]
) -> tuple[dict[Name, Made], dict[Key, str]]:
    """What is kept of another trust domain, as it is in this one; and by policy why something is not moved.

    Left there, what allows would deny to all, and what denies would mean nobody: nothing is allowed here before it.
    `stuck`: why there can be nothing new of this name; empty: there can.
    """
    found = {name: new for name in sorted(kept) if (new := moved(held[name], world.trust_domain)) is not None}
    why: dict[Name, str] = {}
    for name, new in found.items():
        if new.shape.key in held:
            continue
        if held[name].is_going:
            why[name] = "it is being deleted, and something holds it up"
        elif not held[name].is_whole or not name[1].endswith(f"-{held[name].digest[:10]}"):
            why[name] = "it was edited"
        elif reason := stuck(new.shape.key):
            why[name] = reason
    # Who can hold up a denial in a namespace can delete it there: it stops what is allowed in no other one.
    root = world.root_namespace
    denials = [held[name].shape for name in why if held[name].shape.action == "DENY"]
    for name in found.keys() - why.keys():
        one = found[name].shape
        near = (each for each in denials if each.namespace in (one.namespace, root) and each.overlaps(one, root))
        if one.action != "DENY" and (first := next(near, None)) is not None:
            why[name] = f"it waits for the denial {'/'.join(first.key)}"
    told: dict[Key, str] = {}
    for name in sorted(why, key=lambda name: (held[name].shape.action != "DENY", name)):
        text = f"{'/'.join(name)} is not moved to trust domain {world.trust_domain}: {why[name]}"
        told.setdefault(held[name].source, text)
    return {name: new for name, new in found.items() if name not in why}, told


def _unasked(
    world: World, held: Mapping[Name, Held], kept: Iterable[Name], troubles: Mapping[Key, Trouble]
) -> Iterator[tuple[Key, tuple[str, ...]]]:
    """Of what is kept each object is about the pods that it selects: those that its policy selects now may be more.

    As long as a bridge is there nobody asks, whatever else is.
    """
    by_source: dict[Key, list[Shape]] = {}
    for name in kept:
        by_source.setdefault(held[name].source, []).append(held[name].shape)
    # No waypoint's: these are pods with sidecars.
    bridges = [one.shape for one in held.values() if one.shape.bridge and not one.shape.services]
    for key in sorted(world.left.keys() & troubles.keys()):
        shapes = [one for one in by_source.get(key, ()) if one.action == "ALLOW" and not one.bridge]
        bare = [pod.key for pod in world.left[key] if not _is_asked(pod, shapes, bridges, world.root_namespace)]
        if bare:
            yield key, tuple(sorted(bare))


def _is_asked(pod: Pod, shapes: Iterable[Shape], bridges: Iterable[Shape], root: str) -> bool:
    return any(one.covers(pod, root) for one in shapes) and not any(one.covers(pod, root) for one in bridges)


def _is_asked_by_sidecar(cluster: Cluster, mesh: Mesh, pod: Pod) -> bool:
    shown = mesh.dataplane(cluster, pod) is Dataplane.SIDECAR and not mesh.shows_none(pod)
    return shown and not mesh.hidden(pod, ())


def _is_idle(world: World, one: Held, about: Collection[Key]) -> bool:
    """Whether its policy only has no pods for now: the first that comes must find what holds for it."""
    if one.source in about or one.source not in world.idle:
        return False
    return world.versions.get(one.source) == one.version
