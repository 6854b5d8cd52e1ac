"""When something changes in this network namespace, as the kernel tells by rtnetlink. Source: `linux/rtnetlink.h`."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType

from spliceway.bpf.filters import messages

#: RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR, as bits; what they tell: RTM_NEWADDR, RTM_DELADDR.
ADDRESS_GROUPS = 1 << 4 | 1 << 8
ADDRESS_KINDS = frozenset({20, 21})


class NetlinkEvents:
    """Listens while it is entered. For one task of one event loop."""

    def __init__(self, groups: int, kinds: frozenset[int]) -> None:
        """`groups`: bits of multicast groups; `kinds`: types of messages that count."""
        self._groups, self._kinds = groups, kinds
        self._told = asyncio.Event()

    def __enter__(self) -> NetlinkEvents:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._netlink = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._netlink.bind((0, self._groups))
        asyncio.get_running_loop().add_reader(self._netlink, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._netlink)
        self._netlink.close()

    async def changed(self, seconds: float, pause: float) -> None:
        """Return `pause` seconds after something was told (a change is seldom alone), or after `seconds` without."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return
        await asyncio.sleep(pause)
        self._told.clear()

    def _read(self) -> None:
        try:
            while True:
                if any(kind in self._kinds for kind, _body in messages(self._netlink.recv(1 << 16))):
                    self._told.set()
        except BlockingIOError:
            pass
        except OSError:
            self._told.set()  # ENOBUFS: more than there was room for
