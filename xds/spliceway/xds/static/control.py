"""One change after the other: files and admin API to the state, the state to the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from itertools import count
from typing import Protocol

import structlog

from spliceway.xds.protocol.snapshot import Check, Snapshot
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.resources.protofiles import Loaded
from spliceway.xds.server.clients import ANY_NODE, NodeKey
from spliceway.xds.static.files import EVERYONE, Load, News
from spliceway.xds.static.layers import Layers
from spliceway.xds.static.state import Builder, Served, State, differing

_log = structlog.get_logger(__name__)


class SnapshotServer(Protocol):
    """Who serves the snapshots."""

    def set_snapshot(self, node: NodeKey, snapshot: Snapshot) -> None:
        """Serve it from now on."""

    def remove_snapshot(self, node: NodeKey) -> None:
        """The node has none of its own any more."""


class Control:
    """Holds the state. Reading and checking run in a thread, so that streams go on meanwhile."""

    def __init__(self, server: SnapshotServer, load: Load, check: Check) -> None:
        """`load` reads a text of resources, `check` refuses snapshots."""
        self.state = State()
        #: Why the files can't be read at all, for now.
        self.lost = ""
        self._server = server
        self._builder = Builder(load, check)
        self._one = asyncio.Lock()
        # A version must never have been used with other content, also not by an earlier process.
        self._boot = secrets.token_hex(4)
        self._count = count(1)

    def __repr__(self) -> str:
        versions = {scope: held.snapshot.version for scope, held in self.state.served.items()}
        return f"<Control {versions} problems={dict(self.state.problems)}>"

    async def read(self, news: Iterable[News]) -> None:
        """Files changed."""
        if not (news := tuple(news)) and self.state.complete:
            return
        async with self._one:
            self._publish(await asyncio.to_thread(self._builder.read, self.state, news, self._version()))

    async def load(self, text: str, where: str) -> list[Loaded]:
        """The resources in a text. Raises ResourceError."""
        return await asyncio.to_thread(self._builder.load, text, where)

    async def change(self, scope: str, make: Callable[[Layers], Layers], version: str | None = None) -> Served:
        """Change what was told by `make`, and serve it; returns what `scope` gets now.

        `version`: this one for all that changes, instead of a new one.

        Raises:
            XdsError: nothing is changed: `make` or the check refuses it.
        """
        async with self._one:
            layers = make(self.state.layers)
            forced = version is not None
            fresh = version if version is not None else self._version()
            self._publish(
                await asyncio.to_thread(self._builder.change, self.state, layers, scope, fresh, forced=forced)
            )
            served = self.state.snapshot(scope)
            assert served is not None  # a change is refused before the start is complete
            return served

    def _version(self) -> str:
        return f"{self._boot}-{next(self._count)}"

    def _publish(self, state: State) -> None:
        before, self.state = self.state, state
        _tell(before, state)
        fresh, gone = differing(before, state)
        for scope, snapshot in fresh.items():
            self._server.set_snapshot(_key(scope), snapshot)
            counts = {TYPES[url].short: len(held.resources) for url, held in snapshot.types.items() if held.resources}
            _log.info("resources served", node=scope, version=snapshot.version, **counts)
        for scope in gone:
            self._server.remove_snapshot(_key(scope))
            _log.info("node has no resources of its own any more", node=scope)


def _key(scope: str) -> NodeKey:
    return ANY_NODE if scope == EVERYONE else NodeKey(scope)


def _tell(before: State, after: State) -> None:
    """Log what is refused, once."""
    for path, file in after.layers.files.items():
        known = before.layers.files.get(path)
        if file.error and (known is None or known.error != file.error):
            _log.error("file refused", file=path, error=file.error, keeps_last=file.loaded is not None)
    for scope, problem in after.problems.items():
        if before.problems.get(scope) != problem:
            _log.error("resources refused, the last ones stay", node=scope, error=problem)
