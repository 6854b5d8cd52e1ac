"""What the agent says, put in force: read strictly, sockets opened, told to all workers, and only then accepted.

Whatever is refused changes nothing, and does not hold back the good ones beside it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import msgspec
import structlog

from spliceway.policy.errors import SplicewayError
from spliceway.proxy.ads.values import CLUSTER, LISTENER, Batch, ResourceValue
from spliceway.proxy.model import Change
from spliceway.proxy.process.config import Config, difference, is_empty
from spliceway.proxy.process.listeners import Address, ListenError, Sockets
from spliceway.proxy.process.pool import Pool, PoolError
from spliceway.proxy.resources.reading import read_cluster, read_listener, read_routes

T = TypeVar("T")

#: Resources that are read in a row; then others have their turn.
_READ = 20

log = structlog.get_logger(__name__)


class Refused(msgspec.Struct, frozen=True):
    """A resource that was refused last, and why. `at`: CLOCK_REALTIME, seconds."""

    value: ResourceValue
    reason: str


class Supervisor:
    """`apply` is what the ADS client calls. `frozen` holds back changes while a new proxy takes over."""

    def __init__(self, pool: Callable[[Callable[[], tuple[Change, list[int]]]], Pool]) -> None:
        """`pool` makes the pool, given what tells the whole of what is in force."""
        self.config = Config()
        self.sockets = Sockets()
        self.refused: dict[tuple[str, str], Refused] = {}
        self.frozen = asyncio.Lock()
        self.draining = False
        self._revision = 0
        self.pool = pool(self._whole)

    def __repr__(self) -> str:
        return f"<Supervisor {self.config} {self.pool}>"

    async def apply(self, batch: Batch) -> dict[str, str]:
        """Bring a batch into force everywhere; returns what is refused of it, by name, with the reason."""
        async with self.frozen:
            if batch.type_url == LISTENER:
                refused = await self._listeners(batch)
            elif batch.type_url == CLUSTER:
                refused = await self._cluster(batch)
            else:
                refused = await self._routes(batch)
        for name in (*batch.changed, *batch.removed):
            self.refused.pop((batch.type_url, name), None)
        for name, reason in refused.items():
            self.refused[batch.type_url, name] = Refused(batch.changed[name], reason)
        return refused

    def volatile(self, type_url: str, name: str) -> bool:
        """Whether a resource must not be written to a disk."""
        route = self.config.routes.get(name)
        return type_url not in (CLUSTER, LISTENER) and (route is None or route.volatile)

    def active(self) -> list[str]:
        """Listeners that are served."""
        return [name for name in self.config.listeners if self.config.served(name) is not None]

    def adopt(self, sockets: Mapping[Address, socket.socket]) -> None:
        """Use listening sockets of an earlier proxy, which still accepts on them, for what is applied from now on."""
        self.sockets.offer(sockets)
        self.sockets.shared = True

    def own(self) -> None:
        """The earlier proxy accepts no more: the sockets are ours alone."""
        self.sockets.close_offered()
        self.sockets.shared = False

    async def drain(self) -> None:
        """Accept nothing more, and wait until the last connection has ended.

        What is applied from now on opens no sockets: they are another proxy's, or nobody's.
        """
        self.draining = True
        self.pool.begin_drain()
        self.sockets.release(self.sockets.names())
        await self.pool.drained()

    async def _listeners(self, batch: Batch) -> dict[str, str]:
        good, refused = await _read(batch, read_listener)
        if batch.removed:
            # First: what goes may hold the address of what comes.
            await self._commit(self.config.without(batch.removed).pruned(), batch.removed)
            self.sockets.close(batch.removed)
        for name, listener in list(good.items()):
            try:
                if not self.draining:
                    self.sockets.stage(name, listener.addresses)
            except ListenError as error:
                refused[name] = str(error)
                del good[name]
        while good:
            bad = await self._commit(self.config.with_listeners(good).pruned(), good)
            self.sockets.discard(bad)
            refused |= bad
            good = {name: item for name, item in good.items() if name not in bad}
            if not bad:
                break
        self.sockets.commit()
        return refused

    async def _routes(self, batch: Batch) -> dict[str, str]:
        good, refused = await _read(batch, read_routes)
        while good:
            bad = await self._commit(self.config.with_routes(good), self.config.users(good))
            if not bad:
                break
            failed = {self.config.listeners[name].route: reason for name, reason in bad.items()}
            refused |= failed
            good = {name: item for name, item in good.items() if name not in failed}
        # Removed ones stay while a listener names them: that listener would be open, or have to go.
        self.config = self.config.pruned()
        return refused

    async def _cluster(self, batch: Batch) -> dict[str, str]:
        good, refused = await _read(batch, read_cluster)
        # There is one. When it is removed it stays as it was: it only says how to connect.
        for name, cluster in good.items():
            bad = await self._commit(self.config.with_cluster(cluster), self.config.listeners)
            if bad:
                refused[name] = "; ".join(sorted(set(bad.values())))
        return refused

    async def _commit(self, new: Config, names: Collection[str]) -> dict[str, str]:
        """Go over to `new`, in all workers; or change nothing, and return listeners with what is wrong."""
        old = self.config
        change = self._change(old, new, names)
        if bad := self._listen(change, new):
            return bad
        self.config = new
        if is_empty(change):
            return {}
        try:
            await self.pool.apply(change, self.sockets.descriptors(change.sockets))
        except PoolError as error:
            log.error("a worker refuses a change", reason=str(error), revision=change.revision)
            self.config = old
            self.sockets.silence(change.sockets)
            self.sockets.discard(change.sockets)
            await self._undo(new, old, names)
            return dict.fromkeys(names, str(error))
        return {}

    async def _undo(self, new: Config, old: Config, names: Collection[str]) -> None:
        change = self._change(new, old, names)
        try:
            await self.pool.apply(change, self.sockets.descriptors(change.sockets))
        except PoolError as error:
            log.error("a worker refuses to go back", reason=str(error), revision=change.revision)

    def _change(self, old: Config, new: Config, names: Iterable[str]) -> Change:
        self._revision += 1
        change = difference(old, new, names, self._revision)
        return msgspec.structs.replace(change, sockets=()) if self.draining else change

    def _listen(self, change: Change, config: Config) -> dict[str, str]:
        bad = {}
        for name in change.sockets:
            try:
                self.sockets.listen(name, config.listeners[name].backlog)
            except ListenError as error:
                bad[name] = str(error)
        if bad:
            self.sockets.silence(change.sockets)
        return bad

    def _whole(self) -> tuple[Change, list[int]]:
        self._revision += 1
        whole = self.config.whole(self._revision)
        return whole, self.sockets.descriptors(whole.sockets)


async def _read(batch: Batch, read: Callable[[bytes], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What can be enforced, and why the rest can't, by name."""
    good: dict[str, T] = {}
    refused: dict[str, str] = {}
    for count, (name, value) in enumerate(batch.changed.items(), 1):
        try:
            good[name] = read(value.body)
        except SplicewayError as error:
            refused[name] = str(error)
        if not count % _READ:
            await asyncio.sleep(0)
    return good, refused
