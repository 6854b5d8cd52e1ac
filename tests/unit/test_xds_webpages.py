"""HTTP on the loopback device does not answer what a browser asks for a page of somebody else's."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from spliceway.agent.admin import debug_app
from spliceway.xds.webpages import NoWebPages


async def told(_request: Request) -> Response:
    return Response("told")


ROUTE = Route("/debug/x", told)


def asked(app: ASGIApp, **headers: str) -> int:
    """The status of an answer; `sec_fetch_site` for `Sec-Fetch-Site`."""

    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:9878") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await client.get("/debug/x", headers=named)).status_code

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9878", "localhost", "LOCALHOST:1", "[::1]:80", "127.0.0.2:1"])
def test_whoever_asks_for_loopback_is_answered(host: str) -> None:
    assert asked(debug_app([ROUTE]), host=host) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:9878"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "10.0.0.7:9878"},
        {"host": "[::2]"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_web_pages_are_not(headers: dict[str, str]) -> None:
    assert asked(debug_app([ROUTE]), **headers) == 403


def test_on_a_unix_socket_a_host_says_nothing() -> None:
    app = NoWebPages(Starlette(routes=[ROUTE]), check_host=False)
    assert asked(app, host="admin") == 200
    assert asked(app, host="admin", origin="http://evil.example") == 403
