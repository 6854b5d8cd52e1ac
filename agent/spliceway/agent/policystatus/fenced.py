"""Writes of the one that is elected: so many a second, and none when its term may be over."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.pacing import Bucket
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection

#: What the server can't do may be the objects' own trouble: of a webhook, say, that is asked for one namespace alone.
#: After so many in a row each write waits, in seconds, until one goes well.
_MOST_BROKEN, _SLOWLY = 3, 1.0
#: Seconds for which nothing of that kind is written in a namespace after a write there was not answered: the first
#: time, and the longest.
_HUNG = (2.0, 60.0)
#: Seconds of peace after which a namespace that failed is one like all others again.
_PEACE = 600.0
_PLACE = re.compile(r"(?:/namespaces/([^/]+))?/([a-z]+)(?:$|/[^/]+(?:/status)?$)")


class PassedOver(ApiFailure):
    """The server could not, or this agent may not: but as far as is known for this object alone."""


def is_general(failure: ApiFailure) -> bool:
    """Whether it says nothing of the object: the server can't, or this agent may not. Then the round is over."""
    return (failure.code in (0, 401, 429) or failure.code > 500) and not isinstance(failure, PassedOver)


class FencedWrites:
    """One for each kind of writing: who waits for the rate of one does not hold up another."""

    def __init__(self, connection: Connection, election: Election, rate: Bucket) -> None:
        self._connection = connection
        self._election = election
        self._rate = rate
        self._broken = 0  # what the server could not do in a row
        self._failed: dict[str, float] = {}  # by namespace, when last
        self._known: set[str] = set()  # of them, those that had failed before this round
        self._round: dict[int, set[str]] = {}  # by code, the others that did in this round
        # By namespace and kind: until when nothing is written there, and how often in a row.
        self._hung: dict[tuple[str, str], tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"FencedWrites({self._connection!r}, {self._election!r})"

    def begin(self) -> None:
        """A round of writes begins."""
        now = asyncio.get_running_loop().time()
        self._failed = {one: when for one, when in self._failed.items() if now - when < _PEACE}
        self._hung = {one: found for one, found in self._hung.items() if now - found[0] < _PEACE}
        self._known, self._round = set(self._failed), {}

    async def send(self, method: str, path: str, content: object) -> bytes:
        """Write, when there is room, and as long as this one may. Raises ApiFailure."""
        place = _place(path)
        wait = self._hung.get(place, (0.0, 0))[0] - asyncio.get_running_loop().time()
        if wait > 0:
            raise PassedOver(
                0, "Idle", f"{place[1]} of this namespace are tried again later: a write had no answer", wait
            )
        await self._rate.wait()
        if self._broken > _MOST_BROKEN:
            await asyncio.sleep(_SLOWLY)
        seconds = self._election.left
        if not seconds:
            raise ApiFailure(0, "", "this agent is not elected any more")
        try:
            answer = await self._connection.send(method, path, content, seconds=seconds)
        except ApiFailure as failure:
            is_silent = failure.code == 0 and failure.reason == "Idle"
            may_be_own = is_silent or (failure.code not in (0, 500) and is_general(failure))
            self._broken = self._broken + 1 if may_be_own or failure.code == 500 else 0
            # Without an answer for the Lease either, it is the server.
            if may_be_own and self._election.left and self._passes_over(place, failure.code):
                raise PassedOver(failure.code, failure.reason, failure.message, failure.wait) from failure
            raise
        self._broken = 0
        return answer

    def _passes_over(self, place: tuple[str, str], code: int) -> bool:
        """Whether what failed in one namespace alone is passed over. A second one ends the round.

        Not one of which it was known: who has two can't end it again and again.
        """
        now = asyncio.get_running_loop().time()
        if not code:
            tries = self._hung.get(place, (0.0, 0))[1]
            first, most = _HUNG
            self._hung[place] = (now + min(most, first * 2.0 ** min(tries, 16)), tries + 1)
        namespace, _kind = place
        self._failed[namespace] = now
        if namespace in self._known:
            return True
        found = self._round.setdefault(code, set())
        found.add(namespace)
        return len(found) < 2

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """Look before writing, as rarely. Raises ApiFailure."""
        await self._rate.wait()
        return await self._connection.get(path, query)

    async def delete(self, path: str, uid: str, revision: str) -> bytes:
        """Delete this revision of an object and no other; that it is gone already is fine. Raises ApiFailure.

        The answer is the object itself where something holds it up.
        """
        conditions = {"uid": uid, "resourceVersion": revision}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        try:
            return await self.send("DELETE", path, options)
        except ApiFailure as failure:
            if failure.code != 404:
                raise
            return b"{}"


def _place(path: str) -> tuple[str, str]:
    """Namespace (empty: of the cluster) and kind of what is written."""
    found = _PLACE.search(path)
    return (found[1] or "", found[2]) if found else ("", path)
