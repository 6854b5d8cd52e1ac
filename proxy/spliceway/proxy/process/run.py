"""The composition root of `spliceway proxy`: starts, takes over, serves, hands over, drains and ends everything."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog

from spliceway.proxy.ads.accesslog import AccessLogClient
from spliceway.proxy.ads.channel import open_channel
from spliceway.proxy.ads.client import AdsClient
from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.store import StateStore
from spliceway.proxy.errors import ProxyError
from spliceway.proxy.model import ProxySettings
from spliceway.proxy.process.admin import AdminServer, admin_app
from spliceway.proxy.process.handover import Giver, Offer, Taken, take_over
from spliceway.proxy.process.metrics import Statistics
from spliceway.proxy.process.pool import Pool
from spliceway.proxy.process.supervisor import Supervisor
from spliceway.proxy.process.unixsocket import UnixListener

#: How long a second proxy waits for one that neither lets go nor hands over, in seconds.
_LOCK_WAIT = 10.0
#: How long the agent is waited for before a handover is complete, in seconds.
_AGENT_WAIT = 1.0
#: At the end: for how long nothing must have waited in the listening sockets' queues (handshakes that are under way
#: have that much time), and how long this is waited for, in seconds.
_QUEUE_QUIET, _QUEUE_WAIT, _QUEUE_LOOK = 0.1, 1.0, 0.01

log = structlog.get_logger(__name__)


class Proxy:
    """One supervisor process. `run` returns when it has ended well."""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings = settings
        self.state = "INITIALIZING"
        self._ads_state = AdsState()
        self._supervisor = Supervisor(self._make_pool)
        self._store = StateStore(settings, self._ads_state, self._supervisor.volatile)
        self._ending = asyncio.Event()
        self._at_once = asyncio.Event()
        self._superseded = asyncio.Event()
        self._lock = -1
        self._failed = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._storing: asyncio.Task[None]
        self._logging: asyncio.Task[None]
        self._channel: grpc.aio.Channel
        self._ads: AdsClient
        self._logs: AccessLogClient

    def __repr__(self) -> str:
        return f"<Proxy {self.state} {self._supervisor}>"

    async def run(self) -> None:
        """Serve until SIGTERM, or until another proxy has taken over and the last connection has ended.

        Raises:
            SplicewayError: it can't start, or not go on.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        taken = await self._begin()
        self._channel = open_channel(self.settings)
        self._ads = AdsClient(
            self.settings, self._supervisor.apply, self._ads_state, channel=self._channel, on_accepted=self._store.touch
        )
        self._logs = AccessLogClient(self.settings, self._channel)
        try:
            await self._serve(taken)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._supervisor.pool.stop()
            await self._channel.close(None)
            self._unlock()
        if self._failed:
            raise ProxyError(f"internal error: {self._failed}")

    async def _begin(self) -> Taken | None:
        """Have the lock, alone or together with an old proxy that hands over."""
        file = self.settings.state_file.with_name(f"{self.settings.state_file.name}.lock")
        for attempt in range(int(_LOCK_WAIT * 10)):
            self._lock = _try_lock(file)
            if self._lock >= 0:
                return None
            taken = await take_over(self.settings.handover_socket)
            if taken is not None:
                self._lock = taken.lock
                return taken
            if not attempt:
                log.info("another proxy holds the lock, waiting for it", lock=str(file))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._ending.wait()
                raise ProxyError("ended while it waited for another proxy")
        raise ProxyError(f"another proxy holds {file} and does not hand over: end it first (SIGTERM)")

    async def _serve(self, taken: Taken | None) -> None:
        supervisor, pool = self._supervisor, self._supervisor.pool
        if taken is not None:
            supervisor.adopt(taken.sockets)
            pool.share = taken.share
        await pool.start()
        await self._ads.restore(taken.resources if taken is not None else self._store.load())
        await pool.until_ready()
        self._start(self._ads.run())
        self._storing, self._logging = self._start(self._store.run()), self._start(self._logs.run())
        if taken is not None:
            await self._complete(taken)
        admin, handover = UnixListener(self.settings.admin_socket), UnixListener(self.settings.handover_socket)
        server = AdminServer(admin_app(self, Statistics(self._counters, self._gauges)))
        giver = Giver(supervisor.frozen, self._offer, self._superseded.set)
        self._start(server.serve_on(admin.socket))
        giving = self._start(giver.serve(handover.socket))
        self.state = "LIVE"
        log.info("serving", workers=pool.size, listeners=len(supervisor.active()), node=self.settings.node_id)
        try:
            await _first(self._ending, self._superseded)
            if not self._superseded.is_set():
                giving.cancel()
                await asyncio.wait({giving})
            handover.close(successor=self._superseded.is_set())
            await self._drain(shared=giver.given)
        finally:
            server.stop()
            admin.close(successor=self._superseded.is_set())

    async def _complete(self, taken: Taken) -> None:
        """End the handover: from here on everything is this proxy's."""
        await self._until_agent_answers()
        if self._ending.is_set():
            raise ProxyError("ended before it had taken over; the running proxy goes on")
        drains = await taken.ready()
        self._supervisor.own()
        log.info("took over from a running proxy" if drains else "the running proxy has died, going on alone")

    async def _drain(self, *, shared: bool) -> None:
        """Let connections end, for as long as they may. `shared`: another proxy may go on with the sockets."""
        self.state = "DRAINING"
        supervisor = self._supervisor
        self._storing.cancel()
        if self._superseded.is_set():
            log.info("another proxy has taken over, draining", connections=supervisor.pool.connections)
        else:
            log.info("draining", connections=supervisor.pool.connections)
            await self._store.flush()
            if not shared:
                supervisor.sockets.drop_new()
            await self._until_accepted()
        draining = asyncio.create_task(supervisor.drain())
        at_once = asyncio.create_task(self._at_once.wait())
        await asyncio.sleep(0)  # the sockets are let go
        self._unlock()
        limit = self.settings.limits.drain or None
        await asyncio.wait({draining, at_once}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        left = supervisor.pool.connections
        for task in (draining, at_once):
            task.cancel()
        await supervisor.pool.stop()
        self._logs.stop()
        await asyncio.wait({self._logging}, timeout=2)
        log.info("ended", connections_left=left)

    async def _until_accepted(self) -> None:
        """Wait until workers have accepted what waits for them, and what was about to."""
        quiet = 0
        for _ in range(int(_QUEUE_WAIT / _QUEUE_LOOK)):
            quiet = 0 if self._supervisor.sockets.queued() else quiet + 1
            if self._at_once.is_set() or quiet * _QUEUE_LOOK > _QUEUE_QUIET:
                return
            await asyncio.sleep(_QUEUE_LOOK)

    async def _until_agent_answers(self) -> None:
        """Wait until the agent knows of this proxy's stream, if it is there: from then on its answers count."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGENT_WAIT):
                await self._channel.channel_ready()

    def _make_pool(self, whole: Callable[[], Any]) -> Pool:
        size = self.settings.workers or len(os.sched_getaffinity(0))
        return Pool(size, self.settings.limits, whole=whole, on_records=lambda records: self._logs.add(records))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal error, ending", error=repr(error), exc_info=error)
            self._failed = repr(error)
            self._on_signal()

    def _on_signal(self) -> None:
        if self._ending.is_set() or self._superseded.is_set():
            self._at_once.set()
        self._ending.set()

    def _offer(self) -> tuple[Offer, list[int]]:
        sockets = self._supervisor.sockets
        offer = Offer(sockets.addresses(), self._ads_state.accepted, self._supervisor.pool.share)
        return offer, [self._lock, *sockets.descriptors(sockets.names())]

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # What the admin interface is about.

    def about(self) -> Mapping[str, Any]:
        """More for `/server_info`."""
        return {
            "node": {"id": self.settings.node_id, "cluster": self.settings.cluster},
            "command_line_options": {"concurrency": self._supervisor.pool.size},
            "pid": os.getpid(),
            "workers": self._supervisor.pool.pids,
        }

    def set_share(self, millionths: int) -> None:
        """How many of a million allowed requests are recorded."""
        self._supervisor.pool.set_share(millionths)

    async def connection_list(self) -> list[dict[str, Any]]:
        """All connections."""
        return await self._supervisor.pool.connection_list()

    def drain_listeners(self) -> None:
        """Accept nothing more, and end when the connections that there are have ended: as SIGTERM."""
        self._ending.set()

    def dump(self) -> Callable[[], Mapping[str, Any]]:
        """What makes the config_dump, in a thread."""
        from spliceway.proxy.process.configdump import config_dump

        accepted = {url: dict(named) for url, named in self._ads_state.accepted.items()}
        active = frozenset(self._supervisor.active())
        return partial(config_dump, accepted, dict(self._supervisor.refused), active)

    def _counters(self) -> dict[str, int]:
        pool = self._supervisor.pool
        ads = self._ads.counters()
        ads.pop("control_plane.connected_state", None)
        return {
            **pool.totals.counters(),
            **self._logs.counters(),
            **ads,
            "spliceway.worker_restarts_total": pool.restarts,
            "spliceway.records_dropped_total": pool.totals.dropped,
        }

    def _gauges(self) -> dict[str, int]:
        supervisor = self._supervisor
        active = len(supervisor.active())
        return {
            **supervisor.pool.totals.gauges(),
            "control_plane.connected_state": int(self._ads.connected),
            "listener_manager.total_listeners_active": active,
            "listener_manager.total_listeners_warming": len(supervisor.config.listeners) - active,
            "server.concurrency": supervisor.pool.size,
            "server.live": int(self.state == "LIVE"),
            "spliceway.workers": len(supervisor.pool.pids),
        }


async def _first(*events: asyncio.Event) -> None:
    """Wait for the first of these."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _try_lock(file: Path) -> int:
    """A descriptor that holds the lock, -1 if another process has it. It lets go by itself when its holders end.

    Raises:
        ProxyError: the file can't be made.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ProxyError(f"{file}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    return handle


def serve(settings: ProxySettings) -> None:
    """Be the proxy until the end.

    Raises:
        SplicewayError: it can't start, or not go on.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def work() -> None:
        await Proxy(settings).run()

    asyncio.run(work())
