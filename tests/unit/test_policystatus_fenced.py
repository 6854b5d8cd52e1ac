"""Writes of the one that is elected: none once its term is over, and none of an object that is another one by now."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from spliceway.agent.policystatus import fenced
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.fenced import FencedWrites, is_general
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
        self.failing: dict[str, ApiFailure] = {}  # by namespace
        self.sent: list[tuple[str, str, Any, float]] = []

    async def send(self, method: str, path: str, content: object, *, seconds: float) -> bytes:
        self.sent.append((method, path, content, seconds))
        if self._code:
            raise ApiFailure(self._code, "", "refused")
        for namespace, failure in self.failing.items():
            if f"/namespaces/{namespace}/" in path:
                raise failure
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


async def general(writing: FencedWrites, namespace: str, kind: str = "policystatuses") -> bool | None:
    """Whether a write there ends the round; None: it goes well."""
    try:
        await writing.send("POST", f"/apis/spliceway.io/v1alpha1/namespaces/{namespace}/{kind}", {})
    except ApiFailure as failure:
        return is_general(failure)
    return None


@pytest.mark.parametrize("code", [0, 401, 429, 503, 504])
def test_what_fails_in_one_namespace_is_passed_over_and_in_two_it_is_the_server(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fenced, "_SLOWLY", 0.0)
    monkeypatch.setattr(fenced, "_HUNG", (0.0, 0.0))

    async def main() -> None:
        server = _Server()
        writing = writes(server, _Term())
        failure = ApiFailure(code, "" if code else "Idle", "no", 7.0)
        server.failing = dict.fromkeys(("a1", "a2", "b", "c"), failure)
        writing.begin()
        assert await general(writing, "a1") is False
        assert await general(writing, "a1") is False
        assert await general(writing, "fine") is None
        assert await general(writing, "a2") is True
        # Both are known by now: who has them ends no other round.
        writing.begin()
        assert await general(writing, "a1") is False
        assert await general(writing, "a2") is False
        # In all others it is as before.
        assert await general(writing, "b") is False
        assert await general(writing, "c") is True
        writing.begin()
        with pytest.raises(ApiFailure) as caught:
            await writing.send("DELETE", "/apis/spliceway.io/v1alpha1/namespaces/a1/policystatuses/x", {})
        assert caught.value.wait == 7.0, "the server's own pause is kept"

    asyncio.run(main())


def test_no_answer_and_no_lease_is_the_server() -> None:
    async def main() -> None:
        server, term = _Server(), _Term()
        writing = writes(server, term)
        writing.begin()
        server.failing = {"a": ApiFailure(0, "", "connection refused")}
        assert await general(writing, "a") is True
        send = server.send

        async def silent(*arguments: Any, **options: Any) -> bytes:
            term.left = 0.0
            return await send(*arguments, **options)

        server.send = silent  # type: ignore[method-assign]
        server.failing = {"a": ApiFailure(0, "Idle", "silent")}
        assert await general(writing, "a") is True

    asyncio.run(main())


def test_where_a_write_hung_nothing_more_of_that_kind_is_tried_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fenced, "_HUNG", (0.05, 60.0))

    async def main() -> None:
        server = _Server()
        writing = writes(server, _Term())
        server.failing = {"a": ApiFailure(0, "Idle", "silent")}
        writing.begin()
        assert await general(writing, "a") is False
        assert await general(writing, "a") is False
        assert len(server.sent) == 1, "it is not sent"
        assert await general(writing, "a", "events") is False
        assert len(server.sent) == 2, "another kind"
        assert await general(writing, "b") is None
        await asyncio.sleep(0.06)
        assert await general(writing, "a") is False
        assert len(server.sent) == 4
        await asyncio.sleep(0.06)
        assert await general(writing, "a") is False
        assert len(server.sent) == 4, "its pause grows"

    asyncio.run(main())
