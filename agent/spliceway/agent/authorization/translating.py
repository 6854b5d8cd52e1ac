"""Translates what the agent knows of the cluster, when it is another one, and not more often than a node can bear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from spliceway.agent.authorization.aims import NO_VERSION, World, leaving, meshed
from spliceway.agent.authorization.marks import PodMarks
from spliceway.agent.authorization.objects import digest_of
from spliceway.agent.authorization.seen import Other, Seen
from spliceway.agent.inventory import Inventory
from spliceway.agent.istioconfig import IstioConfig
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.ledger import Ledger, version_of
from spliceway.policy.istio.httprules import Ambiguous, Meaning, Normalization
from spliceway.policy.istio.mesh import Mesh
from spliceway.policy.istio.translate import Options, Translation, translate
from spliceway.policy.model import Cluster, NetworkPolicy
from spliceway.policy.verdict import Direction

#: A tenth of a processor is enough, and a minute long enough to wait.
_SHARE, _LONGEST = 10.0, 60.0


class Translating:
    """Gives the `World`, translated anew if anything is different; in a large cluster that is seconds of a thread."""

    def __init__(
        self, config: IstioConfig, inventory: Inventory, ledger: Ledger, marks: PodMarks, *, audit: Callable[[], bool]
    ) -> None:
        """`audit`: whether no policy is enforced anywhere; call `stale` when that is different."""
        self._inventory = inventory
        self._ledger = ledger
        self._marks = marks
        self._audit = audit
        self._root = config.root_namespace
        meaning = Meaning(Normalization(config.path_normalization), Ambiguous(config.ambiguous))
        self._options = Options(config.trust_domain, meaning, config.without_own_node)
        self._world: World | None = None
        self._turn, self._done = 1, 0
        self._next = 0.0
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"Translating(seconds={self.seconds:.3f}, stale={self._turn != self._done})"

    def stale(self) -> None:
        """Policies, pods or what else it depends on are others."""
        self._turn += 1

    def due(self, seen: Seen) -> float:
        """When it is to be done again, by the loop's clock; 0: all is as it was translated."""
        return self._next if self._is_stale(seen) else 0.0

    async def world(self, seen: Seen) -> World:
        """What there is, translated; or was, when it is too early to do it again."""
        early = asyncio.get_running_loop().time() < self._next
        if self._world is not None and (early or not self._is_stale(seen)):
            return self._world
        begun = time.monotonic()
        seen.is_stale, self._done = False, self._turn
        policies, unread = self._policies()
        cluster = Cluster()
        if any(map(_has_http, policies)):  # to look at a hundred thousand pods takes a while
            cluster = msgspec.structs.replace(self._inventory.cluster, audit=self._audit())
        foreign = tuple(one.foreign for one in seen.others.values() if one.foreign is not None and not one.said)
        by_hand = tuple(one for one in seen.others.values() if one.foreign is not None and one.said)
        mesh = Mesh(seen.authentications, foreign, self._marks.annotations, self._root)
        versions = {(one.kind, one.key): self._version((one.kind, one.key)) for one in policies}
        left = frozenset((one.kind, one.key) for one in policies if one.left_to_istio and _has_http(one))
        work = (cluster, mesh, self._options, by_hand, versions, unread, left)
        try:
            made = await asyncio.to_thread(_translated, *work)
        except Exception:
            seen.is_stale = True  # or the one before would pass for this one
            raise
        self._world = made
        self.seconds = time.monotonic() - begun
        self._next = asyncio.get_running_loop().time() + min(_LONGEST, _SHARE * self.seconds)
        return made

    def _is_stale(self, seen: Seen) -> bool:
        return seen.is_stale or self._turn != self._done

    def _policies(self) -> tuple[list[NetworkPolicy], frozenset[Key]]:
        """Those that are in force here, and those of which nothing is."""
        found: list[NetworkPolicy] = []
        unread = set()
        for key in self._ledger.written:
            entry = self._inventory.entry(key)
            if entry is not None and isinstance(entry.item, NetworkPolicy):
                found.append(entry.item)
            else:
                unread.add(key)
        return found, frozenset(unread)

    def _version(self, key: Key) -> str:
        entry = self._inventory.entry(key)
        document = entry.document() if entry is not None else None
        return version_of(document).text if document is not None else NO_VERSION


def _translated(
    cluster: Cluster,
    mesh: Mesh,
    options: Options,
    by_hand: Iterable[Other],
    versions: Mapping[Key, str],
    unread: frozenset[Key],
    left: frozenset[Key],
) -> World:
    found = translate(cluster, mesh, options) if cluster.policies else Translation((), (), ())
    said = {digest_of(one.namespace, one.document()["spec"]) for one in found.policies}
    # What was applied by hand and says the same may stay until somebody deletes it; anything else adds to ours.
    if more := tuple(one.foreign for one in by_hand if one.foreign is not None and one.said not in said):
        mesh = msgspec.structs.replace(mesh, foreign=(*mesh.foreign, *more))
        found = translate(cluster, mesh, options) if cluster.policies else found
    return World(
        mesh.root_namespace,
        versions,
        unread,
        found.idle,
        meshed(cluster, mesh, found, versions),
        leaving(left, cluster, mesh, found),
        trust_domain=options.trust_domain,
    )


def _has_http(policy: NetworkPolicy) -> bool:
    return any(
        entry.http is not None
        for spec in policy.specs
        for rule in spec.rules
        if rule.direction is Direction.INGRESS
        for entry in rule.to_ports
    )
