"""Readiness of sockets: one epoll instance of our own, which the event loop watches as a whole.

uvloop's `add_reader` is made of libuv's uv_poll, which stops at EPOLLERR and calls the reader once more: when a server
sends the last bytes and then a RST, the bytes are read and the RST is never seen. It also needs some five system calls
to begin and end with a socket. Here it is one each, and a connection that is not read says all the same that it is
gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

IN, OUT = select.EPOLLIN, select.EPOLLOUT
#: Told without being asked for.
GONE = select.EPOLLERR | select.EPOLLHUP

#: Events that are handled before timers and other sockets of the loop have their turn.
_AT_ONCE = 256

OnEvents = Callable[[int], None]


class Poller:
    """`add` a descriptor with what is called when something in its mask is so; level-triggered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[OnEvents, Exception], None]) -> None:
        """`on_error`: told which callback raised what; the others are called all the same."""
        self._loop = loop
        self._on_error = on_error
        self._epoll = select.epoll()
        self._handlers: dict[int, OnEvents] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def __repr__(self) -> str:
        return f"<Poller of {len(self._handlers)}>"

    def add(self, fd: int, mask: int, handler: OnEvents) -> None:
        """Call `handler(events)` when there are events."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Look for these events from now on; GONE always."""
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Don't look at it any more; before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it when what runs now has ended."""
        self._loop.call_soon(callback)

    def later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call it after a time."""
        return self._loop.call_later(seconds, callback)

    def close(self) -> None:
        """Give up the epoll instance."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()

    def _turn(self) -> None:
        handlers = self._handlers
        # First who is meant, then the calls: one of them may close a descriptor, and another open one with its number.
        batch = [(handlers.get(fd), events) for fd, events in self._epoll.poll(0, _AT_ONCE)]
        for handler, events in batch:
            if handler is not None:
                try:
                    handler(events)
                except Exception as error:
                    self._on_error(handler, error)
