"""A forwarder on the loopback, which can be stopped, cut and stalled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_RESET = struct.pack("ii", 1, 0)


class Front:
    """Forwards TCP from one port to another one of the loopback, as long as it is let."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        #: So many pieces that come down are cut in two, and their connections end; what is cleared, stalls.
        self.cut, self.moves = 0, asyncio.Event()
        self.moves.set()

    async def start(self, port: int) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self, *, abrupt: bool) -> None:
        """Listen no more, and end what there is."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop(1.0, abrupt=abrupt)

    def drop(self, share: float, *, abrupt: bool) -> int:
        """End connections, all or the first of them."""
        chosen = sorted(self._writers, key=id)[: max(1, int(len(self._writers) * share))]
        for one in chosen:
            _end(one, abrupt=abrupt)
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            above, below = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _end(writer, abrupt=True)
            return
        self._writers.add(writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, below, down=False))
                group.create_task(self._copy(above, writer, down=True))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            for one in (below, writer):
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool) -> None:
        while data := await reader.read(1 << 16):
            if down:
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
