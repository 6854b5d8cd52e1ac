"""A new proxy takes over from an old one, without a lost connection.

    new                                   old
     │ Hello ──────────────────────────▶  │ holds back policy edits from here on
     │ ◀── Offer (sockets, lock, rules)   │ (or Refused)
     │ workers accept beside the old ones │
     │ Ready ──────────────────────────▶  │
     │ ◀───────────────────────────── Go  │ edits go on; accepts nothing more, drains, exits
     │ takes the paths of the sockets     │

Until `Go` nothing has changed for the old one: if the new one dies before, it goes on as before. If the old one dies
after `Offer`, the new one has all it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import msgspec
import structlog

from spliceway.policy.errors import SplicewayError
from spliceway.proxy.ads.values import Resources
from spliceway.proxy.process.channel import Channel, take_sockets
from spliceway.proxy.process.listeners import Address
from spliceway.proxy.process.unixsocket import peer_of

#: What both sides must speak. It counts up when a message changes its meaning.
VERSION = 1
#: How long the old one holds back edits for a new one, in seconds, and how long the new one waits for each answer.
PATIENCE = 30.0

log = structlog.get_logger(__name__)


class HandoverError(SplicewayError):
    """The old proxy does not hand over. The message says why, and what to do."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message, whose first field never changes. `package`: for people."""

    version: int
    package: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The new one serves everything."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No, and why."""

    reason: str


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """What the old one has. Descriptors: of the lock file, then a socket for each address.

    `share`: how many of a million allowed requests are recorded.
    """

    addresses: list[Address]
    resources: Resources
    share: int


class Go(msgspec.Struct, frozen=True, tag="go"):
    """It is all yours."""


class _End:
    """A channel whose messages are awaited one after the other; None when the other side has gone."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self.peer = peer_of(sock)
        self._messages: asyncio.Queue[tuple[Any, list[int]] | None] = asyncio.Queue()
        self.channel: Channel[Any] = Channel(
            asyncio.get_running_loop(),
            sock,
            kind,
            lambda message, descriptors: self._messages.put_nowait((message, descriptors)),
            lambda _why: self._messages.put_nowait(None),
        )

    async def next(self) -> tuple[Any, list[int]] | None:
        """Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            return await self._messages.get()


class Giver:
    """What the old one does with a connection to its handover socket."""

    def __init__(
        self, frozen: asyncio.Lock, offer: Callable[[], tuple[Offer, list[int]]], on_go: Callable[[], None]
    ) -> None:
        """`frozen`: held while a new one takes over. `offer`: what it gets, with descriptors that stay the caller's.

        `on_go` is called before `Go` is sent.
        """
        self._frozen = frozen
        self._offer = offer
        self._on_go = on_go
        self._busy = False
        #: Another proxy may have the sockets, and go on with them alone.
        self.given = False

    async def serve(self, listener: socket.socket) -> None:
        """Take connections until one has taken over, or cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            accepting = group.create_task(self._accept(loop, listener, group, over))
            await over.wait()
            accepting.cancel()

    async def _accept(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, group: asyncio.TaskGroup, over: asyncio.Event
    ) -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            group.create_task(self._give(sock, over))

    async def _give(self, sock: socket.socket, over: asyncio.Event) -> None:
        end = _End(sock, Hello | Ready)
        try:
            reason = await self._hand_over(end)
        except TimeoutError:
            reason = f"not done within {PATIENCE:g} seconds"
        except Exception as error:  # this proxy goes on, whatever the other one does
            log.exception("the handover failed")
            reason = f"internal error: {error!r}"
        if reason is None:
            over.set()
        else:
            log.warning("the handover was not completed, this proxy goes on", pid=end.peer[0], reason=reason)
            end.channel.send(Refused(reason))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await end.channel.flushed()
        end.channel.close()

    async def _hand_over(self, end: _End) -> str | None:
        """None when it is done; else why not."""
        pid, uid = end.peer
        if uid != os.geteuid():
            return f"user {uid} is not the proxy's user"
        first = await end.next()
        if first is None or not isinstance(first[0], Hello):
            return "it did not say hello"
        if (foreign := first[0].version) != VERSION:
            return f"handover of version {foreign} is not known to this proxy (version {VERSION})"
        if self._busy:
            return "another proxy is just taking over"
        self._busy = True
        try:
            async with self._frozen:
                log.info("a new proxy takes over", pid=pid, package=first[0].package)
                self.given = True
                end.channel.send(*self._offer())
                answer = await end.next()
                if answer is None:
                    self.given = False
                    return "the new proxy ended before it was ready"
                if not isinstance(answer[0], Ready):
                    return "the new proxy did not say that it is ready"
                self._on_go()
                end.channel.send(Go())
        finally:
            self._busy = False
        return None


class Taken:
    """What a new proxy got. `ready` completes the handover."""

    def __init__(
        self, path: Path, end: _End, offer: Offer, lock: int, sockets: Mapping[Address, socket.socket]
    ) -> None:
        self._path = path
        self.resources, self.share = offer.resources, offer.share
        self.lock = lock
        self.sockets = sockets
        self._end = end

    def __repr__(self) -> str:
        return f"<Taken {len(self.sockets)} sockets>"

    async def ready(self) -> bool:
        """Say that everything is served; whether the old one drains. False: it has died, and all is ours anyway.

        Raises:
            HandoverError: the old one goes on. This one must not.
        """
        self._end.channel.send(Ready())
        try:
            answer = await self._end.next()
        except TimeoutError:
            raise HandoverError(f"the running proxy (pid {self._end.peer[0]}) does not answer") from None
        finally:
            self._end.channel.close()
        if answer is None:
            if await _has_ended(self._end.peer[0], self._path):
                return False
            raise HandoverError(f"the running proxy (pid {self._end.peer[0]}) broke off the handover")
        if isinstance(answer[0], Refused):
            raise HandoverError(f"the running proxy (pid {self._end.peer[0]}) goes on: {answer[0].reason}")
        return True


async def take_over(path: Path) -> Taken | None:
    """Ask the proxy behind this socket; None when there is none, or it dies meanwhile.

    Raises:
        HandoverError: it refuses.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        if peer_of(sock)[1] != os.geteuid():
            raise HandoverError(f"{path} belongs to another user's process")
        end = _End(sock, Offer | Refused | Go)
    except OSError:
        sock.close()
        return None
    except HandoverError:
        sock.close()
        raise
    end.channel.send(Hello(VERSION, package_version("spliceway")))
    try:
        answer = await end.next()
    except TimeoutError:
        end.channel.close()
        raise HandoverError(f"the running proxy (pid {end.peer[0]}) does not answer; end it first") from None
    if answer is None:
        return None
    message, descriptors = answer
    if not isinstance(message, Offer):
        end.channel.close()
        reason = message.reason if isinstance(message, Refused) else "unexpected answer"
        raise HandoverError(
            f"the running proxy (pid {end.peer[0]}) does not hand over: {reason}; end it first (SIGTERM), or wait"
        )
    lock, *rest = descriptors
    return Taken(path, end, message, lock, dict(zip(message.addresses, take_sockets(rest), strict=True)))


async def _has_ended(pid: int, path: Path, wait: float = 2.0) -> bool:
    """Whether this process has ended, or does so soon. 0: of another PID namespace; then its socket tells."""
    if not pid:
        return await _is_silent(path, wait)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(wait):
            await ended.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _is_silent(path: Path, wait: float) -> bool:
    """Whether nobody listens on this socket, or soon nobody does."""
    loop = asyncio.get_running_loop()
    for _ in range(int(wait * 20)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            try:
                await loop.sock_connect(sock, str(path))
            except OSError:
                return True
        await asyncio.sleep(0.05)
    return False
