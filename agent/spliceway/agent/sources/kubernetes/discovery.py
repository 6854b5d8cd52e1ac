"""Which kinds the server has: CustomResourceDefinitions come and go."""

from __future__ import annotations

import asyncio

import msgspec

from spliceway.agent.sources.kubernetes.connection import BEGIN_SECONDS, ApiFailure, Connection
from spliceway.agent.sources.kubernetes.resources import Resource

#: Seconds that an answer is good for: several kinds of one group ask at once.
_FRESH = 1.0


class _Named(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_Named]


_RESOURCES = msgspec.json.Decoder(_Resources)


class Discovery:
    """Asks when it is asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answers: dict[str, tuple[float, frozenset[str]]] = {}
        self._asking: dict[str, asyncio.Future[frozenset[str]]] = {}

    async def version(self, resource: Resource, *, fresh: bool = False) -> str | None:
        """The version to read a kind in; None: it is not served. `fresh`: asked now. Raises ApiFailure."""
        if resource.built_in:
            return resource.versions[0]
        for version in resource.versions:
            if resource.plural in await self._plurals(f"/apis/{resource.group}/{version}", 0.0 if fresh else _FRESH):
                return version
        return None

    async def settled(self) -> bool:
        """Whether the server has seen all definitions: one that has just started says 404 of kinds that it will have.

        Its readiness says so (crd-informer-synced). Where we may not ask, it counts as ready. Raises ApiFailure.
        """
        try:
            await self._connection.get("/readyz", seconds=BEGIN_SECONDS)
        except ApiFailure as failure:
            if failure.code in (401, 403, 404):
                return True
            if failure.code >= 500:
                return False
            raise
        return True

    async def _plurals(self, path: str, age: float) -> frozenset[str]:
        loop = asyncio.get_running_loop()
        found = self._answers.get(path)
        if found is not None and loop.time() - found[0] <= age:
            return found[1]
        if age and path in self._asking:
            # One answer is for all that wait for it, and so is its failure: they don't queue at a server that is away.
            return await asyncio.shield(self._asking[path])
        future = self._asking[path] = loop.create_future()
        future.add_done_callback(lambda one: one.cancelled() or one.exception())  # that nobody waits is no mistake
        begun = loop.time()
        try:
            answer = await self._ask(path)
            self._answers[path] = (begun, answer)
            future.set_result(answer)
            return answer
        except ApiFailure as failure:
            future.set_exception(failure)
            raise
        finally:
            if self._asking.get(path) is future:
                del self._asking[path]
            if not future.done():  # who has asked is cancelled
                future.set_exception(ApiFailure(0, "", f"{path}: there was no answer"))

    async def _ask(self, path: str) -> frozenset[str]:
        try:
            answer = _RESOURCES.decode(await self._connection.get(path, seconds=BEGIN_SECONDS))
        except ApiFailure as failure:
            if failure.code == 404:
                return frozenset()
            raise
        except msgspec.MsgspecError as error:
            raise ApiFailure(0, "", f"{path}: not what an API server answers: {error}") from error
        return frozenset(one.name for one in answer.resources)
