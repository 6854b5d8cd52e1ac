"""One end of a proxied connection, on real sockets."""

from __future__ import annotations

import asyncio
import errno
import socket

from spliceway.proxy.relay.end import End
from spliceway.proxy.relay.poller import Poller


class Refusing(socket.socket):
    """Says for a while that there is no memory: so does a spliced socket whose reader's cgroup is full."""

    refusals = 3

    def send(self, data: object, flags: int = 0, /) -> int:
        """Refuse, and then send."""
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return super().send(data, flags)  # type: ignore[arg-type]


def test_a_reader_without_memory_is_waited_for() -> None:
    async def run() -> tuple[bytes, list[str]]:
        plain, other = socket.socketpair()
        told: list[str] = []
        with other, Refusing(fileno=plain.detach()) as sock:
            sock.setblocking(False)
            other.setblocking(False)
            loop = asyncio.get_running_loop()
            poller = Poller(loop, lambda _, error: told.append(repr(error)))
            end = End(poller, sock, lambda: None, lambda: told.append("drained"), lambda: told.append("gone"))
            end.write(b"all of it")
            assert end.full
            try:
                async with asyncio.timeout(10):
                    return await loop.sock_recv(other, 100), told
            finally:
                end.close()
                poller.close()

    assert asyncio.run(run()) == (b"all of it", ["drained"])
