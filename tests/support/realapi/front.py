"""A forwarder on the loopback, which can be stopped, cut and stalled.

It ends TLS on both sides, to know which connections carry watches: those alone are cut and stalled, as with the double.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

_RESET = struct.pack("ii", 1, 0)


class _Carried:
    """What a connection carries at the moment."""

    def __init__(self) -> None:
        self.is_watch = False

    def sends(self, data: bytes) -> None:
        """See what goes up: a client asks for one thing after the other."""
        if data.startswith((b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ")):
            line = data.partition(b"\r\n")[0]
            self.is_watch = b"?watch=" in line or b"&watch=" in line


class Front:
    """Forwards HTTPS from one port to another one of the loopback, as long as it is let."""

    def __init__(self, target: int, serves: ssl.SSLContext, asks: ssl.SSLContext) -> None:
        """`serves`: to those who come; `asks`: of where it goes."""
        self._target = target
        self._serves, self._asks = serves, asks
        self._server: asyncio.Server | None = None
        self._writers: dict[asyncio.StreamWriter, _Carried] = {}
        #: So many pieces of watches are cut in two, and their connections end; watches stall while this is cleared.
        self.cut, self.moves = 0, asyncio.Event()
        self.moves.set()

    async def start(self, port: int) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._serves, backlog=1024)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self, *, abrupt: bool) -> None:
        """Listen no more, and end what there is."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for one in list(self._writers):
            _end(one, abrupt=abrupt)

    def drop_watches(self, share: float, *, abrupt: bool) -> int:
        """End connections that carry watches, all or the first of them."""
        watches = sorted((one for one, carried in self._writers.items() if carried.is_watch), key=id)
        chosen = watches[: max(1, int(len(watches) * share))]
        for one in chosen:
            _end(one, abrupt=abrupt)
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above, below = await asyncio.open_connection("127.0.0.1", self._target, ssl=self._asks)
        except OSError:
            _end(writer, abrupt=True)
            return
        carried = self._writers[writer] = _Carried()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, below, carried, down=False))
                group.create_task(self._copy(above, writer, carried, down=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.pop(writer, None)
            for one in (below, writer):
                one.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carried: _Carried, *, down: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            if not down:
                carried.sends(data)
            elif carried.is_watch:
                await self.moves.wait()
                if self.cut:
                    self.cut -= 1
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    _end(writer, abrupt=False)
                    raise OSError("cut")
            writer.write(data)
            await writer.drain()
        raise OSError("ended")  # what one side ends is over for both


def _end(writer: asyncio.StreamWriter, *, abrupt: bool) -> None:
    sock = writer.get_extra_info("socket")
    if abrupt and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()
