"""A server that was set back: noticed however soon it has come as far again; one that was not is not looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.setback import SET_BACK, Past
from support.agent import run, until
from support.kubeapi import KubeApi
from support.kubesource import CRDS, QUICK, Followed, ask, followed, fresh, pod, policy

BEFORE = (*CRDS, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), policy("web"))


def follow(tmp_path: Path, body: Callable[[KubeApi, Followed], Awaitable[None]], timing: Timing = QUICK) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*BEFORE)
            async with followed(api.kubeconfig(tmp_path / "kubeconfig"), timing) as it:
                await until(lambda: it.inventory.synced)
                await body(api, it)

    run(main)


def away(api: KubeApi, *documents: Any, ahead: int) -> KubeApi:
    """Ends a server; the one in its place, with these objects, is so far ahead of it when it can be reached."""
    api.stop(abrupt=True)
    with KubeApi() as earlier:
        earlier.put(*documents)
        for number in range(api.revision + ahead - earlier.revision):
            earlier.put(pod("x", "10.0.0.7", labels={"n": str(number)}))
    return KubeApi(port=api.port, stored=earlier, bookmark_seconds=0.3)


def addresses(it: Followed, name: str) -> list[str]:
    return [str(one) for one in it.item("Pod", name).addresses]  # type: ignore[union-attr]


@pytest.mark.parametrize("ahead", [1, 20])
def test_what_was_written_last_is_lost(tmp_path: Path, ahead: int) -> None:
    """An object, the address of another one, and that a third was deleted."""

    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.put, pod("c", "10.0.0.3"), pod("a", "10.0.0.9"))
        await ask(api.drop, "v1", "Pod", "default/b")
        await until(lambda: it.names() == ["default/a", "default/c"])
        with await ask(away, api, *BEFORE, ahead=ahead) as restored:
            await until(lambda: it.names() == ["default/a", "default/b", "default/x"])
            assert addresses(it, "default/a") == ["10.0.0.1"]
            await ask(restored.put, pod("d", "10.0.0.4"))
            await until(lambda: "default/d" in it.names())

    follow(tmp_path, body)


def test_a_deletion_is_lost(tmp_path: Path) -> None:
    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await until(lambda: not it.names("CiliumNetworkPolicy"))
        with await ask(away, api, *BEFORE, ahead=20):
            await until(lambda: it.names("CiliumNetworkPolicy") == ["default/web"])

    follow(tmp_path, body)


def test_what_a_first_look_has_seen_is_lost(tmp_path: Path) -> None:
    """Nothing was told since then: the newest object says it."""

    async def body(api: KubeApi, it: Followed) -> None:
        with await ask(away, api, *CRDS, pod("a", "10.0.0.9"), policy("other"), ahead=20):
            await until(lambda: it.names() == ["default/a", "default/x"])
            assert addresses(it, "default/a") == ["10.0.0.9"]
            await until(lambda: it.names("CiliumNetworkPolicy") == ["default/other"])

    follow(tmp_path, body)


def test_what_a_bookmark_has_passed_is_lost(tmp_path: Path) -> None:
    """Nothing was told of that kind between two bookmarks, and now there is something."""

    async def body(api: KubeApi, it: Followed) -> None:
        before = [*BEFORE]
        for number in range(2):
            before.append(pod("y", "10.0.0.8", labels={"n": str(number)}))
            await ask(api.put, before[-1])
            heard = it.figures("CiliumNetworkPolicy").heard
            await ask(api.bookmark)
            await until(lambda heard=heard: it.figures("CiliumNetworkPolicy").heard > heard)  # type: ignore[misc]
        with await ask(away, api, *before[:-1], policy("new"), ahead=20):
            await until(lambda: it.names("CiliumNetworkPolicy") == ["default/new", "default/web"])

    follow(tmp_path, body)


def test_who_was_away_and_is_as_before_is_not_looked_at(tmp_path: Path) -> None:
    """Nor does what is told once more change anything."""

    async def body(api: KubeApi, it: Followed) -> None:
        await ask(api.put, pod("c", "10.0.0.3"), pod("a", "10.0.0.9"))
        await ask(api.drop, "v1", "Pod", "default/b")
        await until(lambda: it.names() == ["default/a", "default/c"])
        batches = len(it.batches)
        for number in map(str, range(3)):
            await ask(api.restart)
            await ask(api.put, pod("d", "10.0.0.4", labels={"n": number}))
            await until(lambda number=number: number in _labels(it, "default/d"))  # type: ignore[misc]
            assert "/api/v1/pods" not in fresh(api)
        events = [event for batch in it.batches[batches:] for event in batch if getattr(event, "file", "")]
        assert {event.file for event in events} == {"default/d"}  # type: ignore[union-attr]
        assert len(events) == 3

    follow(tmp_path, body)


def _labels(it: Followed, name: str) -> tuple[str, ...]:
    return tuple(it.item("Pod", name).labels.values()) if name in it.names() else ()  # type: ignore[union-attr]


def told(*what: tuple[int, str]) -> Past:
    past = Past()
    past.begin("10")
    for revision, file in what:
        past.tell(str(revision), file)
    past.doubt(silent=False)
    return past


def again(past: Past, *what: tuple[int, str]) -> list[bool]:
    return [past.repeats(str(revision), file) for revision, file in what]


def test_what_is_told_again() -> None:
    """From the bookmark before the last one on, or the last few objects."""
    past = told((11, "a"), (15, ""), (17, "b"), (20, ""), (22, "c"))
    assert past.rewind("22") == "15"
    assert again(past, (17, "b"), (20, ""), (22, "c"), (23, "d"), (23, "d")) == [True, True, True, False, False]
    assert not past.is_asked
    assert past.rewind("22") == "22", "nobody doubts any more"
    many = told(*((number, "a") for number in range(11, 40)))
    assert many.rewind("39") == "31"
    assert told((11, "a"), (15, ""), (20, "")).rewind("20") == "15"
    assert told((11, "a"), (20, "")).rewind("20") == "10"
    assert told((11, "a")).rewind("12") == "12", "something was told that nobody could read"
    assert told((11, "a")).rewind("") == ""


@pytest.mark.parametrize(
    "what",
    [
        [(11, "b")],
        [(12, "a")],
        [(13, "b")],
        [(11, "a"), (12, "c")],
        [(11, "a"), (14, "b")],
        [(11, "a"), (12, "b"), (13, "c")],
        [(15, "c")],
        [(14, "")],
        [(12, "")],
        [(11, "a"), (16, "")],
    ],
)
def test_another_history(what: list[tuple[int, str]]) -> None:
    past = told((11, "a"), (12, "b"), (14, ""))
    past.rewind("14")
    with pytest.raises(ApiFailure) as failure:
        again(past, *what)
    assert failure.value.is_expired
    assert failure.value.reason == SET_BACK


def test_when_the_server_is_asked() -> None:
    """When nothing is told again, or the watch was silent all the same: the server may be behind."""
    past = told((11, "a"))
    past.rewind("11")
    assert not past.must_be_asked
    past.doubt(silent=True)
    past.rewind("11")
    assert past.must_be_asked
    past.asked()
    assert not past.must_be_asked
    quiet = told((12, ""), (14, ""))
    quiet.rewind("14")
    assert quiet.must_be_asked
    assert again(quiet, (14, "")) == [False]
    assert not quiet.must_be_asked


@pytest.mark.parametrize("watch_list", [True, False], ids=["watch-list", "pages"])
def test_a_server_that_was_set_back_is_looked_at_again(tmp_path: Path, watch_list: bool) -> None:
    """What has the same resourceVersion as before is another object, and a watch at a later one is silent."""

    async def main() -> None:
        with KubeApi() as api:
            place = api.kubeconfig(tmp_path / "kubeconfig")
            api.put(pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
            api.put(*(pod("b", "10.0.0.2", labels={"app": str(n)}) for n in range(20)))
            timing = msgspec.structs.replace(QUICK, idle=0.5)
            async with followed(place, timing) as it:
                await until(lambda: it.inventory.synced)
                revision = api.revision
                await ask(api.stop, abrupt=True)
                with KubeApi(port=api.port) as restored:
                    restored.watch_list(watch_list)
                    restored.put(pod("a", "10.0.0.9"), pod("c", "10.0.0.3"))
                    assert restored.revision < revision
                    await until(lambda: it.names() == ["default/a", "default/c"])
                    assert addresses(it, "default/a") == ["10.0.0.9"]
                    await ask(restored.put, pod("d", "10.0.0.4"))
                    await until(lambda: it.names() == ["default/a", "default/c", "default/d"])

    run(main)


def test_who_can_not_be_asked_for_a_revision_is_watched_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that answer begins and does not go on: it is silent, but no watch."""
    get, asked = Connection.get, [0]

    async def stalls(self: Connection, path: str, query: Any = None, *rest: Any, **more: Any) -> bytes:
        if not query:
            return await get(self, path, query, *rest, **more)
        asked[0] += path.endswith("/pods")
        raise ApiFailure(0, "Idle", "silent for too long")

    async def body(api: KubeApi, it: Followed) -> None:
        monkeypatch.setattr(Connection, "get", stalls)
        await until(lambda: asked[0])
        await ask(api.put, pod("c", "10.0.0.3"))
        await until(lambda: "default/c" in it.names())

    follow(tmp_path, body, msgspec.structs.replace(QUICK, idle=0.5))
