"""Writes of the one that is elected: none once its term is over, and none of an object that is another one by now."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.fenced import FencedWrites
from spliceway.agent.policystatus.pacing import Bucket
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection


class _Term:
    """In place of an election."""

    def __init__(self) -> None:
        self.left = 3.0


class _Server:
    """In place of a connection: keeps what is sent, and refuses it with `code`."""

    def __init__(self, code: int = 0) -> None:
        self._code = code
        self.sent: list[tuple[str, str, Any, float]] = []

    async def send(self, method: str, path: str, content: object, *, seconds: float) -> bytes:
        self.sent.append((method, path, content, seconds))
        if self._code:
            raise ApiFailure(self._code, "", "refused")
        return b"{}"


def writes(server: _Server, term: _Term, rate: float = 1000) -> FencedWrites:
    return FencedWrites(cast(Connection, server), cast(Election, term), Bucket(rate, 1))


def test_no_write_takes_longer_than_the_term() -> None:
    async def main() -> None:
        server, term = _Server(), _Term()
        await writes(server, term).send("PATCH", "/a", {"b": 1})
        assert server.sent == [("PATCH", "/a", {"b": 1}, 3.0)]

    asyncio.run(main())


def test_a_term_that_ends_while_it_waits_for_its_turn_writes_nothing() -> None:
    async def main() -> None:
        server, term = _Server(), _Term()
        fenced = writes(server, term, rate=20)
        await fenced.send("PUT", "/first", {})
        second = asyncio.ensure_future(fenced.send("PUT", "/second", {}))
        await asyncio.sleep(0)  # it waits for its turn
        term.left = 0.0
        with pytest.raises(ApiFailure, match="not elected any more"):
            await second
        with pytest.raises(ApiFailure, match="not elected any more"):
            await fenced.delete("/third", "u", "7")
        assert [path for _, path, _, _ in server.sent] == ["/first"]

    asyncio.run(main())


def test_one_revision_is_deleted_and_no_other() -> None:
    async def main() -> None:
        server = _Server()
        await writes(server, _Term()).delete("/a", "u", "7")
        ((method, path, content, _),) = server.sent
        assert (method, path) == ("DELETE", "/a")
        assert content["preconditions"] == {"uid": "u", "resourceVersion": "7"}
        assert await writes(_Server(404), _Term()).delete("/a", "u", "7") == b"{}", "it has gone"
        for code in (409, 403, 500):
            with pytest.raises(ApiFailure):
                await writes(_Server(code), _Term()).delete("/a", "u", "7")

    asyncio.run(main())
