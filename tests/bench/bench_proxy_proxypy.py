"""The filter of the benchmark as a plugin of proxy.py's reverse proxy, which loads this file in its own environment.

proxy.py's own way to name a server (a URL) connects anew for each request. A plugin may hand it a connection instead:
so there is one for each client, kept as long as the client's, as the others have it.
"""

from __future__ import annotations

import os
import re
from typing import Any

from proxy.core.connection import TcpServerConnection
from proxy.http.exception import HttpRequestRejected
from proxy.http.parser import HttpParser
from proxy.http.server import ReverseProxyBasePlugin

_RULES = [
    (method.encode(), re.compile(path.encode()))
    for method, path in (rule.split(" ") for rule in os.environ["RULES"].split(";"))
]
_HOST, _, _PORT = os.environ["UPSTREAM"].rpartition(":")


class Filter(ReverseProxyBasePlugin):  # type: ignore[misc]
    """One for each connection of a client."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._server: TcpServerConnection | None = None

    def routes(self) -> list[str]:
        """Everything comes here."""
        return ["/"]

    def before_routing(self, request: HttpParser) -> HttpParser:
        """Refuse what no rule allows."""
        if not any(method == request.method and path.fullmatch(request.path) for method, path in _RULES):
            raise HttpRequestRejected(status_code=403, reason=b"Forbidden", body=b"Access denied")
        return request

    def handle_route(self, request: HttpParser, pattern: re.Pattern[str]) -> TcpServerConnection:
        """Send the request to the client's own connection to the server."""
        if self._server is None:
            self._server = TcpServerConnection(_HOST, int(_PORT))
            self._server.connect()
            self._server.connection.setblocking(False)
        self._server.queue(memoryview(request.build()))
        return self._server
