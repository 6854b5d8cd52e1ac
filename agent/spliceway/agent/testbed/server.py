"""A small HTTP/1.1 server for pods: `python -m spliceway.agent.testbed.server --port 80`.

It answers every method and path with 200 and one line that names pod, method and path; a POST or PUT to a path that
ends in `/echo` gets its body back, piece by piece as it comes. It reads no file and dials nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket

import h11
import uvloop

READ_SIZE = 256 * 1024
BACKLOG = 4096


class Connection:
    """One client's connection; requests on it are answered one after another."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Answer requests until the client or the protocol ends the connection."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
        except ConnectionError:
            pass  # the client has gone
        finally:
            self._writer.close()

    async def _exchange(self) -> bool:
        """Answer one request. Returns whether another may follow."""
        event = await self._next()
        if not isinstance(event, h11.Request):
            return False
        if event.method in (b"POST", b"PUT") and _path(event).endswith(b"/echo"):
            await self._echo(event)
        else:
            await self._describe(event)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _describe(self, request: h11.Request) -> None:
        while not isinstance(await self._next(), h11.EndOfMessage):
            pass  # a body nobody asked for
        body = b"%s %s %s\n" % (self._name.encode(), request.method, request.target)
        headers = [("content-type", "text/plain"), ("content-length", str(len(body)))]
        out = self._http.send(h11.Response(status_code=200, headers=headers))
        if request.method != b"HEAD":
            out = _join(out, self._http.send(h11.Data(data=body)))
        await self._send(_join(out, self._http.send(h11.EndOfMessage())))

    async def _echo(self, request: h11.Request) -> None:
        length = dict(request.headers).get(b"content-length")
        headers = [(b"content-type", b"application/octet-stream")]
        headers.append((b"content-length", length) if length is not None else (b"transfer-encoding", b"chunked"))
        pending: bytes | None = self._http.send(h11.Response(status_code=200, headers=headers))
        while isinstance(event := await self._next(), h11.Data):
            await self._send(_join(pending, self._http.send(h11.Data(data=event.data))))
            pending = None
        await self._send(_join(pending, self._http.send(h11.EndOfMessage())))

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._http.receive_data(await self._reader.read(READ_SIZE))

    async def _send(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"{error}\n".encode()
        headers = [("content-length", str(len(body))), ("connection", "close")]
        out = self._http.send(h11.Response(status_code=error.error_status_hint, headers=headers))
        await self._send(_join(out, self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())))


async def serve(name: str, port: int) -> None:
    """Serve on every address of both families until cancelled."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await Connection(name, reader, writer).serve()

    hosts = ["0.0.0.0", "::"]
    server = await asyncio.start_server(connected, hosts, port, backlog=BACKLOG, limit=READ_SIZE)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=80, help="TCP port to listen on (default: 80)")
    default = os.environ.get("POD_NAME", socket.gethostname())
    parser.add_argument("--name", default=default, help="name in answers (default: $POD_NAME)")
    options = parser.parse_args()
    uvloop.run(serve(options.name, options.port))


def _path(request: h11.Request) -> bytes:
    return bytes(request.target).split(b"?", 1)[0]


def _join(*parts: bytes | None) -> bytes:
    return b"".join(part for part in parts if part)


if __name__ == "__main__":
    main()
