"""Writes of the one that is elected: so many a second, and none when its term may be over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.pacing import Bucket
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection

#: Internal errors may be the objects' own: of a webhook, say, that is asked for one namespace alone. After so many in a
#: row each write waits, in seconds, until one goes well.
_MOST_BROKEN, _SLOWLY = 3, 1.0


def is_general(failure: ApiFailure) -> bool:
    """Whether it says nothing of the object: the server can't, or this agent may not."""
    return failure.code in (0, 401, 429) or failure.code > 500


class FencedWrites:
    """One for each kind of writing: who waits for the rate of one does not hold up another."""

    def __init__(self, connection: Connection, election: Election, rate: Bucket) -> None:
        self._connection = connection
        self._election = election
        self._rate = rate
        self._broken = 0  # internal errors in a row

    def __repr__(self) -> str:
        return f"FencedWrites({self._connection!r}, {self._election!r})"

    async def send(self, method: str, path: str, content: object) -> bytes:
        """Write, when there is room, and as long as this one may. Raises ApiFailure."""
        await self._rate.wait()
        if self._broken > _MOST_BROKEN:
            await asyncio.sleep(_SLOWLY)
        seconds = self._election.left
        if not seconds:
            raise ApiFailure(0, "", "this agent is not elected any more")
        try:
            answer = await self._connection.send(method, path, content, seconds=seconds)
        except ApiFailure as failure:
            self._broken = self._broken + 1 if failure.code == 500 else 0
            raise
        self._broken = 0
        return answer

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
