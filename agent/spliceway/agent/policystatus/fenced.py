"""Writes of the one that is elected: so many a second, and none when its term may be over."""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.pacing import Bucket
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection


class FencedWrites:
    """One for each kind of writing: who waits for the rate of one does not hold up another."""

    def __init__(self, connection: Connection, election: Election, rate: Bucket) -> None:
        self._connection = connection
        self._election = election
        self._rate = rate

    def __repr__(self) -> str:
        return f"FencedWrites({self._connection!r}, {self._election!r})"

    async def send(self, method: str, path: str, content: object) -> bytes:
        """Write, when there is room, and as long as this one may. Raises ApiFailure."""
        await self._rate.wait()
        seconds = self._election.left
        if not seconds:
            raise ApiFailure(0, "", "this agent is not elected any more")
        return await self._connection.send(method, path, content, seconds=seconds)

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
