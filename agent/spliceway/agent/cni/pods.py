"""This node's pods as policy sees them: objects of the source, with the addresses and devices that they are wired with.

A pod's status has its address long after its first packet, and keeps it when somebody else has it already. So where
runtimes tell us (`cni.enabled`), a pod of this node has the addresses of its wiring and no others, and no other pod of
the cluster has these. Pods that say themselves how they are wired (`spliceway.io/interface`) are left alone. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.agent.cni.netconf import IPAddress
from spliceway.agent.cni.wirings import Wiring
from spliceway.agent.endpoints import Claim
from spliceway.agent.manifests import Key
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.istio.sidecar import rewired
from spliceway.policy.model import Object, Pod


class WiredPods:
    """Completes changes of the source. `claims` and `wirings` are live views of what there is now."""

    def __init__(self, claims: Mapping[str, Claim], wirings: Mapping[str, Wiring], *, only: bool = True) -> None:
        """`only`: pods of this node have no addresses but those of their wirings, which nobody else has.

        Else that goes for those alone that have a wiring, and what is said of others counts, too: nobody tells that a
        wired pod has ended, and whoever is said to have its address may be the one that has it by now.
        """
        self._only = only
        self._claims = claims
        self._wirings = wirings
        self._pods: dict[str, Pod] = {}  # as the source says them; all but those in the host's network
        self._holders: dict[IPAddress, str | frozenset[str]] = {}  # mostly one, and then without a set around it
        self._given: dict[str, Wiring] = {}

    def __repr__(self) -> str:
        return f"WiredPods({len(self._pods)} pods, wired={sorted(self._given)})"

    def complete(self, changes: dict[Key, Object | None]) -> None:
        """Take in what changed in the source and in the wirings, and give pods the addresses that they have."""
        stale = {name for name in self._given.keys() | self._wirings.keys() if self._differs(name)}
        moved = {address for name in stale for address in self._addresses_of(name)}
        self._given = dict(self._wirings)
        for (kind, name), item in changes.items():
            if kind == "Pod":
                stale.add(name)
                self._take(name, item)
        for address in moved:
            stale |= self._holding(address)
        owners = {address: one.pod for one in self._wirings.values() for address in one.addresses}
        for name in stale:
            if (pod := self._pods.get(name)) is not None:
                changes["Pod", name] = self._whole(pod, owners)

    def known(self, wiring: Wiring) -> bool:
        """Whether the source has the very pod that is wired so: one of the same name may have been there before."""
        claim = self._claims.get(wiring.pod)
        return wiring.pod in self._pods and claim is not None and _is_meant(wiring, claim)

    def endpoint(self, wiring: Wiring) -> LocalEndpoint | None:
        """Where policy is enforced for a pod that is wired so; None: nowhere, or it is not known."""
        if not wiring.side.interface or not self.known(wiring):
            return None
        claim = self._claims[wiring.pod]
        where = (wiring.pod, wiring.side.interface, wiring.netns, wiring.addresses)
        return LocalEndpoint(*where, claim.splice, claim.unspliced_ports, claim.sidecar, claim.mesh)

    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """All of them, by name."""
        found = (self.endpoint(self._wirings[name]) for name in sorted(self._wirings))
        return tuple(one for one in found if one is not None)

    def unwired(self) -> dict[str, tuple[Pod, Claim]]:
        """Pods of this node that have addresses by their status, and of whose wiring nothing is known."""
        return {
            name: (pod, claim)
            for name, claim in self._claims.items()
            if (pod := self._pods.get(name)) is not None and pod.addresses and not self._is_wired(name, claim)
        }

    def _is_wired(self, name: str, claim: Claim) -> bool:
        return (wiring := self._wirings.get(name)) is not None and _is_meant(wiring, claim)

    def _whole(self, pod: Pod, owners: Mapping[IPAddress, str]) -> Pod:
        claim = self._claims.get(pod.key)
        if claim is not None:
            wiring = self._wirings.get(pod.key)
            if wiring is not None and _is_meant(wiring, claim):
                return rewired(pod, wiring.addresses)
            if self._only:
                return msgspec.structs.replace(pod, addresses=())
        if not self._only:
            return pod
        left = tuple(one for one in pod.addresses if owners.get(one, pod.key) == pod.key)
        return pod if left == pod.addresses else msgspec.structs.replace(pod, addresses=left)

    def _take(self, name: str, item: Object | None) -> None:
        if (old := self._pods.pop(name, None)) is not None:
            for address in old.addresses:
                self._hold(address, self._holding(address) - {name})
        if isinstance(item, Pod) and not item.host_network:
            self._pods[name] = item
            for address in item.addresses:
                self._hold(address, self._holding(address) | {name})

    def _holding(self, address: IPAddress) -> frozenset[str]:
        found = self._holders.get(address, frozenset())
        return frozenset((found,)) if isinstance(found, str) else found

    def _hold(self, address: IPAddress, names: frozenset[str]) -> None:
        if names:
            self._holders[address] = names if len(names) > 1 else next(iter(names))
        else:
            self._holders.pop(address, None)

    def _differs(self, name: str) -> bool:
        return self._given.get(name) != self._wirings.get(name)

    def _addresses_of(self, name: str) -> Iterable[IPAddress]:
        for one in (self._given.get(name), self._wirings.get(name)):
            yield from one.addresses if one is not None else ()


def _is_meant(wiring: Wiring, claim: Claim) -> bool:
    return not wiring.uid or not claim.uids or wiring.uid in claim.uids
