"""HTTP on the loopback device is within reach of every web page that somebody looks at on the machine."""

from __future__ import annotations

import ipaddress

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

#: What a browser says of requests that a page of another site has it make.
_FOREIGN = (b"cross-site", b"same-site")


class NoWebPages:
    """Refuses what a web page sends through somebody's browser.

    It has an Origin, or comes from another site, or has the Host of a name that was made to mean 127.0.0.1 (DNS
    rebinding). `check_host`: the application listens on loopback; on a Unix socket a Host says nothing.
    """

    def __init__(self, app: ASGIApp, *, check_host: bool) -> None:
        self._app = app
        self._check_host = check_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or hand it on."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            foreign = b"origin" in headers or headers.get(b"sec-fetch-site") in _FOREIGN
            if foreign or (self._check_host and not _is_loopback(headers.get(b"host", b"").decode("latin-1"))):
                await Response("not for web pages", status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_loopback(host: str) -> bool:
    """Whether a Host is `localhost` or a loopback address, with or without a port."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
