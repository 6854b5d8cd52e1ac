"""Load balancing on one node, kept up as Services and EndpointSlices change: objects in, changed frontends out.

What changes is worked out for the Services that a change is about, whatever else there is; `lbchoice` has the rules.
Where several Services claim the same frontend, the one of the least rank (`Claim.rank`) has it: a cluster IP before an
address from outside, then the older Service, then the first by name. So nobody takes over an address that is in use by
asking for it as an external IP, and every node decides alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.policy.lbchoice import Here, claims, left_out
from spliceway.policy.lbmodel import Claim, Frontend, FrontendState, Loser, frontend_order
from spliceway.policy.model import Node, Object
from spliceway.policy.servicemodel import ZONE, EndpointSlice, Service
from spliceway.policy.sharing import SharedMap

#: Frontends that are new or different; None: there is no such frontend any more. In the order of `frontend_order`.
Changes = Mapping[Frontend, FrontendState | None]


class Balance(msgspec.Struct, frozen=True):
    """Load balancing as it is at one moment. Nothing in it ever changes.

    `conflicts`: frontends that other Services want, too, with these, best first; `left_out`: by Service («namespace/
    name»), why some of its addresses have no frontend. `services`: how many Services there are; `without_backends`:
    how many frontends lead nowhere.
    """

    frontends: Mapping[Frontend, FrontendState] = {}
    conflicts: Mapping[Frontend, tuple[Loser, ...]] = {}
    left_out: Mapping[str, tuple[str, ...]] = {}
    services: int = 0
    without_backends: int = 0


class Work(msgspec.Struct):
    """What was done since the beginning: Services worked out anew, and endpoints of theirs that were looked at."""

    services: int = 0
    endpoints: int = 0


class LoadBalancing:
    """See the module. Not for several threads at once; what `balance` gave may be read anywhere."""

    def __init__(self, node: str) -> None:
        """`node`: the name of the node whose pods dial."""
        self._here = Here(node)
        self._services: dict[str, Service] = {}
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = {}
        self._with_zones: set[str] = set()  # Services with hints for zones
        self._wanted: dict[str, dict[Frontend, Claim]] = {}
        self._claims: dict[Frontend, dict[str, Claim]] = {}
        self._frontends: SharedMap[Frontend, FrontendState] = SharedMap()
        self._conflicts: SharedMap[Frontend, tuple[Loser, ...]] = SharedMap()
        self._left_out: SharedMap[str, tuple[str, ...]] = SharedMap()
        self._without_backends = 0
        self.work = Work()

    def __repr__(self) -> str:
        return f"LoadBalancing({self._here}, services={len(self._services)}, frontends={len(self._frontends)})"

    @property
    def balance(self) -> Balance:
        """All of it as it is now."""
        return Balance(
            self._frontends.give(),
            self._conflicts.give(),
            self._left_out.give(),
            len(self._services),
            self._without_backends,
        )

    def apply(self, changes: Mapping[tuple[str, str], Object | None]) -> Changes:
        """Take over objects by kind and key (None: it went); kinds that have no part in this are passed over.

        Objects that are as they were cost nothing, so that handing them in again is harmless.
        """
        stale: dict[str, None] = {}
        for (kind, key), item in changes.items():
            match kind:
                case "Service":
                    stale.update(dict.fromkeys(self._take_service(key, item)))
                case "EndpointSlice":
                    stale.update(dict.fromkeys(self._take_slice(key, item)))
                case "Node" if key == self._here.node:
                    stale.update(dict.fromkeys(self._take_node(item)))
        touched: dict[Frontend, None] = {}
        for key in stale:
            touched.update(dict.fromkeys(self._renew(key)))
        changed: dict[Frontend, FrontendState | None] = {}
        for frontend in sorted(touched, key=frontend_order):
            before = self._frontends.get(frontend)
            after = self._settle(frontend)
            if after != before:
                changed[frontend] = after
                self._without_backends += _leads_nowhere(after) - _leads_nowhere(before)
        for shared in (self._frontends, self._conflicts, self._left_out):
            shared.touched = set()
        return changed

    # Objects: each gives the Services that must be worked out anew.

    def _take_service(self, key: str, item: Object | None) -> Iterable[str]:
        if self._services.get(key) == item:
            return ()
        if isinstance(item, Service):
            self._services[key] = item
        else:
            del self._services[key]
        return (key,)

    def _take_slice(self, key: str, item: Object | None) -> Iterable[str]:
        old = self._slices.get(key)
        if old == item:
            return ()
        stale = []
        if old is not None:
            del self._slices[key]
            owner = _owner(old)
            del self._slices_of[owner][key]
            if not self._slices_of[owner]:
                del self._slices_of[owner]
            stale.append(owner)
        if isinstance(item, EndpointSlice):
            self._slices[key] = item
            self._slices_of.setdefault(_owner(item), {})[key] = item
            stale.append(_owner(item))
        return stale

    def _take_node(self, item: Object | None) -> Iterable[str]:
        zone = item.labels.get(ZONE, "") if isinstance(item, Node) else ""
        if zone == self._here.zone:
            return ()
        self._here = Here(self._here.node, zone)
        return sorted(self._with_zones)

    # What follows.

    def _renew(self, key: str) -> Iterable[Frontend]:
        """Work out a Service anew; gives the frontends that it wants otherwise than before."""
        service = self._services.get(key)
        slices = self._slices_of.get(key, {}).values()
        self._with_zones.discard(key)
        wanted: dict[Frontend, Claim] = {}
        if service is not None:
            self.work.services += 1
            self.work.endpoints += sum(len(one.endpoints) for one in slices)
            wanted = claims(service, slices, self._here)
            if any(endpoint.zones for one in slices for endpoint in one.endpoints):
                self._with_zones.add(key)
        if service is not None and (why := left_out(service)):
            self._left_out.set(key, why)
        else:
            self._left_out.drop(key)
        before = self._wanted.pop(key, {})
        if wanted:
            self._wanted[key] = wanted
        touched = [one for one in before.keys() | wanted.keys() if before.get(one) != wanted.get(one)]
        for frontend in touched:
            of_frontend = self._claims.setdefault(frontend, {})
            of_frontend.pop(key, None)
            if frontend in wanted:
                of_frontend[key] = wanted[frontend]
            if not of_frontend:
                del self._claims[frontend]
        return touched

    def _settle(self, frontend: Frontend) -> FrontendState | None:
        """Decide who has a frontend."""
        found = sorted(self._claims.get(frontend, {}).values(), key=lambda claim: claim.rank)
        if not found:
            self._frontends.drop(frontend)
            self._conflicts.drop(frontend)
            return None
        winner, *others = (claim.state for claim in found)
        self._frontends.set(frontend, winner)
        if others:
            self._conflicts.set(frontend, tuple(Loser(one.service, one.port_name, one.kind) for one in others))
        else:
            self._conflicts.drop(frontend)
        return winner


def _owner(one: EndpointSlice) -> str:
    return f"{one.namespace}/{one.service}"


def _leads_nowhere(state: FrontendState | None) -> bool:
    return state is not None and not state.backends
