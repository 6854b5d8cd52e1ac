"""Takes the taint off this node that keeps pods away until their policy is in force."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection

#: Seconds between looks whether it is time, and after a failure the first pause and the longest.
_LOOK, _FIRST, _MOST = 0.5, 0.5, 30.0
_MERGE = "application/merge-patch+json"

log = structlog.get_logger(__name__)


class _Metadata(msgspec.Struct, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class _Spec(msgspec.Struct):
    taints: list[dict[str, Any]] = []


class _Node(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


_NODE = msgspec.json.Decoder(_Node)


class NotReadyTaint:
    """Runs until cancelled: a Node that is registered anew comes with its taint again."""

    def __init__(
        self, connection: Connection, node: str, taint: str, *, ready: Callable[[], bool], uid: Callable[[], str]
    ) -> None:
        """`taint`: «key:effect»; `ready`: whether policy is in force; `uid`: of the Node, as the source has it."""
        self._connection = connection
        self._path = f"/api/v1/nodes/{node}"
        self._key, _, self._effect = taint.rpartition(":")
        self._ready = ready
        self._uid = uid
        self._done = ""
        self.error = ""
        self.removed = 0

    def __repr__(self) -> str:
        return f"NotReadyTaint({self._key}:{self._effect}, removed={self.removed}, error={self.error!r})"

    async def run(self) -> None:
        """Take it off whenever it is time."""
        tries = 0
        while True:
            if not self._ready() or (self._done and self._uid() in ("", self._done)):
                await asyncio.sleep(_LOOK)
                continue
            try:
                self._done = await self._remove()
            except (ApiFailure, msgspec.MsgspecError) as failure:
                if not self.error:
                    log.warning("the node's taint can't be taken off", taint=self._key, error=str(failure))
                self.error = str(failure)
                await asyncio.sleep(min(_MOST, _FIRST * 2.0 ** min(tries, 16)) * random.uniform(0.5, 1.0))
                tries += 1
            else:
                self.error, tries = "", 0

    async def _remove(self) -> str:
        """The uid of the Node that is without it now. Raises ApiFailure, also when others changed the Node (409)."""
        node = _NODE.decode(await self._connection.get(self._path))
        left = [one for one in node.spec.taints if (one.get("key"), one.get("effect")) != (self._key, self._effect)]
        if len(left) < len(node.spec.taints):
            # Of this revision and of no other: a list is replaced whole, and others put taints there, too.
            metadata = {"resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid}
            content = {"metadata": metadata, "spec": {"taints": left or None}}
            await self._connection.send("PATCH", self._path, content, kind=_MERGE)
            self.removed += 1
            log.info("policy is in force: the node's taint is off", taint=f"{self._key}:{self._effect}")
        return node.metadata.uid
