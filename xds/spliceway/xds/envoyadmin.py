"""The admin interface of the proxy (Envoy, or what answers as Envoy does) on its Unix socket, one request at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import h11

from spliceway.xds.errors import AdminError


async def admin_get(socket: Path, target: str, wait: float = 5.0, *, method: str = "GET") -> bytes:
    """Body of `GET target` (or another method) on the admin socket, in at most `wait` seconds.

    Raises:
        AdminError: no connection, no answer in time, or a status other than 200.
    """
    try:
        async with asyncio.timeout(wait):
            return await _ask(socket, method, target)
    except TimeoutError:
        raise AdminError(f"{socket}: the proxy's admin interface did not answer {target} within {wait:g} s") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise AdminError(f"{socket}: the proxy's admin interface failed on {target}: {error}") from error


async def admin_stats(socket: Path, prefix: str, wait: float = 5.0) -> dict[str, int]:
    """Counters and gauges whose names contain `prefix`, by name.

    Raises:
        AdminError: as `admin_get`, or the answer isn't JSON.
    """
    body = await admin_get(socket, f"/stats?format=json&filter={prefix}", wait)
    try:
        stats = json.loads(body)["stats"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdminError(f"{socket}: the proxy's statistics are not what was expected: {error}") from error
    return {item["name"]: item["value"] for item in stats if isinstance(item.get("value"), int)}


async def _ask(socket: Path, method: str, target: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        client = h11.Connection(h11.CLIENT)
        head = h11.Request(method=method, target=target, headers=[("Host", "admin"), ("Connection", "close")])
        writer.write(client.send(head) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        body = bytearray()
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise AdminError(f"{socket}: the proxy's admin interface answered {target} with {event.status_code}")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return bytes(body)
    finally:
        writer.close()
        await writer.wait_closed()
