"""The client's side of the incremental xDS protocol over one aggregated stream. No I/O, no clock.

All listeners and clusters are asked for (`*`), and the route configurations that accepted listeners name. A response
is answered when it has been applied: what is refused of it stays as it was, the rest of it is in force, whatever is
beside it. Sources: Envoy's xDS protocol page («Incremental xDS», «ACK and NACK semantics»), the comments of
DeltaDiscoveryRequest and DeltaDiscoveryResponse.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from spliceway.proxy.ads.refusal import refusal_text
from spliceway.proxy.ads.routenames import route_names
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch, Request, Resources, Response

WILDCARD = "*"


class Outcome(msgspec.Struct, frozen=True):
    """What an applied response leads to: the requests to be sent, in this order.

    `unwanted`: routes that no listener asks for any more. They are accepted no longer.
    """

    requests: tuple[Request, ...]
    unwanted: tuple[str, ...] = ()


class AdsState:
    """What is in force, and what the stream has been asked for.

    For each response: `incoming` says what it changes, and `settle` takes in what came of it. Between the two nothing
    else may be taken in.
    """

    def __init__(self) -> None:
        #: What is in force: the last good version of each resource.
        self.accepted: Resources = {CLUSTER: {}, LISTENER: {}, ROUTE: {}}
        # Listener -> the routes that it names.
        self._names: dict[str, frozenset[str]] = {}
        # What this stream has been asked for. Types that are in it have had their first request.
        self._asked: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(held)} {url.rpartition('.')[2]}" for url, held in self.accepted.items())
        return f"<AdsState {counts}, asked for {sorted(self._asked)}>"

    def connect(self) -> list[Request]:
        """The first requests of a new stream: they tell what was accepted, and nothing else."""
        self._asked = {url: frozenset({WILDCARD}) for url in (CLUSTER, LISTENER)}
        requests = [Request(url, (WILDCARD,), initial=self._versions(url)) for url in self._asked]
        return [*requests, *self._follow()]

    def incoming(self, response: Response) -> Batch:
        """What a response changes: without what is in force already, and what nobody asked for or has.

        It may be empty; `settle` has to be called all the same.
        """
        url = response.type_url
        if url not in self._asked:
            return Batch(url, {})
        held = self.accepted[url]
        # Routes may have been on their way when they were unsubscribed from.
        given = {name: value for name, value in response.resources.items() if self._wants(url, name)}
        changed = {name: value for name, value in given.items() if held.get(name) != value}
        present = response.resources.keys() | response.unusable.keys()
        removed = sorted({name for name in response.removed if name in held and name not in present})
        return Batch(url, changed, tuple(removed))

    def settle(self, response: Response, batch: Batch, refused: Mapping[str, str]) -> Outcome:
        """Take in what came of `batch`, which `incoming` made of `response`; `refused`: name -> reason."""
        url = response.type_url
        if url not in self._asked:
            return Outcome((Request(url, nonce=response.nonce, error=f"{url or 'this type'} was not asked for"),))
        self.take(batch, refused)
        unusable = {name: why for name, why in response.unusable.items() if self._wants(url, name)}
        bad = {**unusable, **{name: why for name, why in refused.items() if name in batch.changed}}
        alone = len(response.resources) + len(response.unusable) == 1
        answer = Request(url, nonce=response.nonce, error=refusal_text(url, bad, alone=alone) if bad else None)
        if url != LISTENER:
            return Outcome((answer,))
        return Outcome((answer, *self._follow()), self.forget_unwanted())

    def take(self, batch: Batch, refused: Mapping[str, str]) -> None:
        """What is not refused of it is in force now."""
        held = self.accepted[batch.type_url]
        good = {name: value for name, value in batch.changed.items() if name not in refused}
        held.update(good)
        for name in batch.removed:
            held.pop(name, None)
        if batch.type_url == LISTENER:
            self._names.update({name: route_names(value.body) for name, value in good.items()})
            for name in batch.removed:
                self._names.pop(name, None)

    def forget_unwanted(self) -> tuple[str, ...]:
        """Forget routes that no accepted listener names; returns their names."""
        routes = self.accepted[ROUTE]
        unwanted = tuple(sorted(routes.keys() - self._wanted_routes()))
        for name in unwanted:
            del routes[name]
        return unwanted

    def restorable(self, url: str, resources: Resources) -> Batch:
        """What of an earlier proxy's resources of one type may be applied: no routes that no accepted listener names.

        `take` is to be called with what was applied of it.
        """
        held = resources.get(url, {})
        names = held.keys() if url != ROUTE else held.keys() & self._wanted_routes()
        return Batch(url, {name: held[name] for name in sorted(names)})

    def _wanted_routes(self) -> frozenset[str]:
        return frozenset().union(*self._names.values())

    def _wants(self, url: str, name: str) -> bool:
        return url != ROUTE or name in self._asked[ROUTE]

    def _versions(self, url: str) -> dict[str, str]:
        return {name: value.version for name, value in self.accepted[url].items()}

    def _follow(self) -> list[Request]:
        """Ask for the routes that listeners name, and no longer for those that none names."""
        asked, wanted = self._asked.get(ROUTE, frozenset()), self._wanted_routes()
        if asked == wanted:
            return []
        # In a first request what is there already is told, too; those that have none of a name have lost it.
        initial = {} if ROUTE in self._asked else self._versions(ROUTE)
        self._asked[ROUTE] = wanted
        return [Request(ROUTE, tuple(sorted(wanted - asked)), tuple(sorted(asked - wanted)), initial)]
