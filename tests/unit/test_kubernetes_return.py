"""The API server comes back: no kind waits for what was before, and a server that struggles is not asked more often."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import httpx2
import msgspec
import pytest

from spliceway.agent.sources.kubernetes import connection, reflector
from spliceway.agent.sources.kubernetes.beside import reflectors
from spliceway.agent.sources.kubernetes.connection import MOST_WAIT, ApiFailure, Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.pauses import Pauses
from spliceway.agent.sources.kubernetes.reflector import Reflector
from spliceway.agent.sources.kubernetes.resources import RESOURCES
from support.agent import run, until
from support.certificates import Authority
from support.kubeapi import KubeApi
from support.kubesource import CILIUM, CRDS, QUICK, Followed, ask, followed, pod, policy

#: Nobody waits so long in a test.
LONG = msgspec.structs.replace(QUICK, retry=(0.02, 600.0))
ALL = ("api", "apis")  # first parts of every path


def follow(tmp_path: Path, body: Callable[[KubeApi, Followed], Awaitable[None]], timing: Timing = QUICK) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, pod("a", "10.0.0.1"), policy("web"))
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: it.inventory.synced)
                await body(api, it)

    run(main)


def kinds(it: Followed) -> tuple[Reflector, ...]:
    return it.source._reflectors


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_when_one_kind_is_answered_none_waits_for_long(tmp_path: Path, code: int) -> None:
    """And history that is gone meanwhile is no further failure of the many."""

    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.faults, refuse=dict.fromkeys(ALL, (code, 0)))
        await ask(api.drop_watches)
        await until(lambda: all(f": {code} " in one.error for one in kinds(it)))
        for one in kinds(it):  # as after hours
            one._pauses.tries = 1000
        await until(lambda: all(one._pauses._until > asyncio.get_running_loop().time() + 100 for one in kinds(it)))
        await ask(api.put, pod("b", "10.0.0.2"), policy("more"))
        await ask(api.compact)
        await ask(api.faults, refuse={})
        first = kinds(it)[0]._pauses
        first._until = 0.0
        first._sooner.set()
        await until(lambda: it.names() == ["default/a", "default/b"])
        await until(lambda: it.names("CiliumNetworkPolicy") == ["default/more", "default/web"])
        await until(lambda: not any(one.error for one in kinds(it)))

    follow(tmp_path, body, LONG)


def test_answers_that_come_to_nothing_wake_nobody_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind is answered and cut off, again and again: each would have all others try at once."""
    stream, asked = Connection.stream, [0]

    async def cut(self: Connection, path: str, query: Any, *_rest: Any) -> AsyncIterator[bytes]:
        if "watch" not in query:
            async for piece in stream(self, path, query, *_rest):
                yield piece
            return
        asked[0] += 1
        yield b""
        await asyncio.sleep(0)
        raise ApiFailure(0, "", "cut off")

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "stream", cut)
        await ask(api.drop_watches)
        await until(lambda: min(one._pauses.tries for one in kinds(it)) > 5)
        assert asked[0] < 30 * len(kinds(it)), f"{asked[0]} requests"
        await until(lambda: it.source.status().lost)
        since = [one.failing_since for one in kinds(it)]
        asked[0] = 0
        await until(lambda: asked[0] > len(kinds(it)))
        assert [one.failing_since for one in kinds(it)] == since, "what is cut off at once is no answer"
        monkeypatch.setattr(Connection, "stream", stream)
        await ask(api.put, pod("b", "10.0.0.2"))
        await until(lambda: it.names() == ["default/a", "default/b"])
        await until(lambda: not it.source.status().lost)

    follow(tmp_path, body, msgspec.structs.replace(QUICK, retry=(0.02, 1.0), lost=0.5))


def test_watches_that_end_as_soon_as_they_begin_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In good order, and without a word: nothing that changes is heard of."""
    stream = Connection.stream

    async def empty(_self: Connection, _path: str, _query: Any, *_rest: Any) -> AsyncIterator[bytes]:
        yield b""

    def chosen(self: Connection, path: str, query: Any, *rest: Any) -> Any:
        return (empty if "watch" in query else stream)(self, path, query, *rest)

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "stream", chosen)
        await ask(api.drop_watches)
        await until(lambda: "end as soon as they begin" in it.source.status().lost)
        monkeypatch.setattr(Connection, "stream", stream)
        await until(lambda: not it.source.status().lost)

    follow(tmp_path, body)


def test_what_a_server_that_is_not_ready_does_not_serve_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(pod("a", "10.0.0.1"))
            api.faults(refuse={"readyz": (500, 0)})
            async with followed(api.kubeconfig(tmp_path / "kubeconfig")) as it:
                await until(lambda: "not served yet: the API server is not ready" in it.source.status().lost)
                assert not it.inventory.synced
                await ask(api.put, CILIUM, policy("web"))
                await ask(api.faults, refuse={})
                await until(lambda: it.inventory.synced and not it.source.status().lost)
                assert it.names("CiliumNetworkPolicy") == ["default/web"]

    run(main)


@pytest.mark.parametrize(
    ("text", "wait"),
    [("1", 1.0), ("86400", MOST_WAIT), ("-5", 0.0), ("soon", 0.0), ("inf", 0.0), ("nan", 0.0), ("1e9", 0.0), ("", 0.0)],
)
def test_how_long_a_server_may_ask_us_to_wait(text: str, wait: float) -> None:
    answer = httpx2.Response(429, headers={"retry-after": text})
    assert connection._refused(answer, b"").wait == wait


def test_what_the_server_asks_for_is_waited_for_whoever_is_answered() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def wait(name: str, pauses: Pauses, firm: float) -> None:
            await pauses.wait(firm or 600.0, firm)
            ended.append(name)

        free, asked = Pauses(QUICK), Pauses(QUICK)
        async with asyncio.TaskGroup() as group:
            for name, one, firm in (("asked", asked, 0.5), ("free", free, 0.0)):
                group.create_task(wait(name, one, firm))
            await asyncio.sleep(0)
            for one in (asked, free):
                one.wake()
        assert ended == ["free", "asked"]

    asyncio.run(main())


def test_a_server_that_answers_by_turns_is_asked_ever_more_rarely() -> None:
    pauses = Pauses(Timing())
    pauses.tries = 1000
    eased = []
    for _ in range(8):
        eased.append((pauses.ease(), pauses.tries))
        pauses.tries = 1000
    assert [tries for _pause, tries in eased] == list(range(1, 9))
    assert eased[0][0] <= 0.25
    assert eased[-1][0] >= 5.0
    pauses.well()
    assert pauses.ease() <= 0.25


class _Server:
    """In place of a connection: answers by path once `go` is set, and counts."""

    def __init__(self) -> None:
        self.go: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []

    async def get(self, path: str, query: Any = None, seconds: float = 0.0) -> bytes:
        assert query is None
        assert seconds <= connection.BEGIN_SECONDS, "what is served is not waited for like a list"
        self.asked.append(path)
        await self.go.setdefault(path, asyncio.Event()).wait()
        raise ApiFailure(0, "", f"{path}: away")


def test_kinds_do_not_queue_for_what_is_served() -> None:
    """Eight questions of a minute each, one after the other, were eight minutes."""

    async def main() -> None:
        server = _Server()
        discovery = Discovery(cast(Connection, server))
        custom = {one.kind: one for one in RESOURCES if not one.built_in}
        tasks = {kind: asyncio.create_task(discovery.version(one)) for kind, one in custom.items()}
        paths = {f"/apis/{one.group}/{one.versions[0]}" for one in custom.values()}
        await until(lambda: set(server.asked) == paths)
        assert len(server.asked) == len(paths), "one question for all kinds of a version"
        server.go["/apis/cilium.io/v2"].set()
        await asyncio.wait([tasks["CiliumNetworkPolicy"], tasks["CiliumClusterwideNetworkPolicy"]], timeout=5)
        for kind in ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"):
            assert isinstance(tasks[kind].exception(), ApiFailure)
        assert len(server.asked) == len(paths), "who has waited for it does not ask once more"
        for kind, task in tasks.items():
            assert task.done() == (custom[kind].group == "cilium.io")
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert not discovery._asking

    run(main)


def test_who_waits_for_an_answer_with_somebody_that_leaves_is_told() -> None:
    async def main() -> None:
        server = _Server()
        discovery = Discovery(cast(Connection, server))
        one = next(one for one in RESOURCES if one.kind == "CiliumNetworkPolicy")
        asks, waits = (asyncio.create_task(discovery.version(one)) for _ in range(2))
        await until(lambda: bool(server.asked))
        asks.cancel()
        await asyncio.wait([waits], timeout=5)
        assert isinstance(waits.exception(), ApiFailure)

    run(main)


def test_a_request_without_an_answer_is_given_up_when_others_are_answered(tmp_path: Path) -> None:
    """Of the task that is named alone. And silence before an answer is not the silence of a watch that has begun."""
    begins, talks = asyncio.Event(), [0]

    async def on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[0] += 1
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/begins" in head:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        begins.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        talks[0] -= 1

    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
        server = await asyncio.start_server(on, "127.0.0.1", api.port)
        async with server:
            ours = Connection(place, "")
            hurried, other = (asyncio.create_task(ours.get(path)) for path in ("/a", "/b"))
            await begins.wait()
            await until(lambda: len(ours._unanswered) == 2)
            assert not ours.hurry(None, 0.0)
            while not hurried.done():  # others may be answered, too, before it has ended
                ours.hurry(hurried, 0.0)
                await asyncio.sleep(0)
            failure = hurried.exception()
            assert isinstance(failure, ApiFailure)
            assert (failure.code, failure.reason) == (0, "")
            assert not other.done()
            other.cancel()
            with pytest.raises(ApiFailure) as silent:
                await ours.get("/begins", seconds=0.1)
            assert silent.value.reason == "Idle"
            await asyncio.gather(other, return_exceptions=True)
            assert not ours._unanswered
            await ours.close()
            await until(lambda: not talks[0])

    run(main)


def test_kinds_do_not_all_wait_equally_long_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server takes requests and says nothing, nobody else tells that it does so again."""
    stream, begins = Connection.stream, list[float]()

    def told(self: Connection, path: str, query: Any, idle: Any, begin: float = 0.0) -> Any:
        if "watch" in query:
            begins.append(begin)
        return stream(self, path, query, idle, begin)

    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.drop_watches)
        await until(lambda: len(begins) >= 2 * len(kinds(it)))
        assert len(set(begins)) == len(begins)
        assert max(begins) <= connection.BEGIN_SECONDS

    monkeypatch.setattr(Connection, "stream", told)
    follow(tmp_path, body)


def test_what_takes_long_to_begin_is_not_given_up_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another kind is answered and cut off all the time."""
    monkeypatch.setattr(reflector, "HANGS", 0.1)
    bookmark = {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "true"}}
    line = msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": bookmark}}) + b"\n"
    body = msgspec.json.encode({"metadata": {"resourceVersion": "5"}, "items": []})
    given_up, talks = [0], [0]

    async def on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[0] += 1
        head = b"watch"
        with contextlib.suppress(asyncio.IncompleteReadError):  # who is cancelled may leave before it has asked
            head = await reader.readuntil(b"\r\n\r\n")
        if b"/nodes" in head:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(line), line))
            await asyncio.sleep(0.1)
        elif b"sendInitialEvents" in head:
            writer.write(b"HTTP/1.1 422 x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        elif b"watch" not in head:
            try:
                async with asyncio.timeout(0.6):  # a page of a busy server
                    await reader.read()
                given_up[0] += 1
            except TimeoutError:
                head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
                writer.write(head + body)
        writer.close()
        await asyncio.wait([asyncio.create_task(writer.wait_closed())])
        talks[0] -= 1

    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
        async with await asyncio.start_server(on, "127.0.0.1", api.port):
            ours, by_kind = Connection(place, ""), {one.kind: one for one in RESOURCES}

            async def sink(_events: Any) -> None:
                pass

            kinds = [by_kind["Pod"], by_kind["Node"]]
            timing = msgspec.structs.replace(QUICK, retry=(0.02, 0.05))
            pods, nodes = reflectors(kinds, ours, sink, node="n", timing=timing, woken=asyncio.Event())
            pods._failed(ApiFailure(503, "", "not now"))
            tasks = [asyncio.create_task(one.run()) for one in (pods, nodes)]
            await until(lambda: pods.state == "listed", seconds=8)
            assert given_up[0] <= 3  # after 0.1, 0.2, and 0.4 seconds
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ours.close()
            await until(lambda: not talks[0])

    run(main)


def test_kinds_that_writers_follow_wake_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
        ours, woken = Connection(place, ""), asyncio.Event()

        async def sink(_events: Any) -> None:
            raise AssertionError

        one, other = reflectors(RESOURCES[:2], ours, sink, node="n", timing=Timing(), woken=woken)
        for each in (one, other):
            each._failed(ApiFailure(503, "", "not now"))
            each._pauses.tries = 1000
        woken.clear()
        one._answered("listed")
        assert woken.is_set()
        assert other._pauses.tries == 1
        await ours.close()

    asyncio.run(main())


def test_what_is_given_up_in_its_handshake_is_closed(tmp_path: Path) -> None:
    """At once, not when the garbage collector comes: who takes connections and says nothing is asked often."""
    ended: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)  # of its hello
        begun.set()
        while await reader.read(4096):
            pass
        ended.append(b"")
        writer.close()

    async def main() -> None:
        authority = Authority(tmp_path / "pki")
        server = await asyncio.start_server(silent, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        config = tmp_path / "kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority.path)}
        entry = {"cluster": "c", "user": "u"}
        document = {
            **{"apiVersion": "v1", "kind": "Config", "current-context": "x"},
            "clusters": [{"name": "c", "cluster": cluster}],
            **{"users": [{"name": "u", "user": {}}], "contexts": [{"name": "x", "context": entry}]},
        }
        config.write_text(json.dumps(document))
        client = Connection(config, "")
        task = asyncio.create_task(client.get("/version"))
        await begun.wait()
        gc.disable()
        try:
            task.cancel()
            await asyncio.wait([task])
            await until(lambda: ended)
        finally:
            gc.enable()
        await client.close()
        server.close()

    begun = asyncio.Event()
    run(main)
