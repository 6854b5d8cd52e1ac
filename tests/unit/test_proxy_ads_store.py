"""The last good configuration on a disk: what is written is read again, and what is wrong is never fatal."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.store import StateStore
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch, Resources, ResourceValue
from spliceway.proxy.model import ProxySettings
from support.adsbed import listener, settings_for


def filled() -> AdsState:
    state = AdsState()
    state.take(Batch(CLUSTER, {"c": ResourceValue("1", b"cluster")}), {})
    state.take(Batch(LISTENER, {name: ResourceValue("1", listener(name)) for name in "ab"}), {})
    state.take(Batch(ROUTE, {"a": ResourceValue("1", b"\x00\xff"), "b": ResourceValue("2", b"a Secret's value")}), {})
    return state


def store_of(settings: ProxySettings, state: AdsState | None = None) -> StateStore:
    return StateStore(settings, state or AdsState(), lambda url, name: (url, name) == (ROUTE, "b"))


def write(settings: ProxySettings, state: AdsState) -> None:
    store = store_of(settings, state)
    store.touch()
    asyncio.run(store.flush())


def test_what_was_accepted_comes_back_without_what_is_volatile(tmp_path: Path) -> None:
    settings, state = settings_for(tmp_path), filled()
    write(settings, state)
    expected = {**state.accepted, ROUTE: {"a": state.accepted[ROUTE]["a"]}}
    assert store_of(settings).load() == expected
    assert b"Secret" not in settings.state_file.read_bytes()
    assert stat.S_IMODE(settings.state_file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [settings.state_file]


def test_no_file_is_nothing_to_speak_of(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert store_of(settings_for(tmp_path)).load() == {}
    assert logs == []


def replaced(path: Path, make: Callable[[bytes], bytes]) -> None:
    path.write_bytes(make(path.read_bytes()))


def in_another_directory(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def of_somebody_else(path: Path) -> None:
    path.chmod(0o602)


def as_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def as_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"something else"),
        lambda path: replaced(path, lambda content: content[:-1]),
        lambda path: replaced(path, lambda content: content[:40]),
        lambda path: replaced(path, lambda content: content + b"x"),
        lambda path: replaced(path, lambda content: content.replace(b"cluster", b"klustor")),
        lambda path: replaced(path, lambda content: content.replace(b"state 1", b"state 2")),
        in_another_directory,
        of_somebody_else,
        as_a_pipe,
        as_a_directory,
    ],
)
def test_what_can_not_be_trusted_is_left_alone(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    settings = settings_for(tmp_path)
    write(settings, filled())
    spoil(settings.state_file)
    with capture_logs() as logs:
        assert store_of(settings).load() == {}
    [line] = logs
    assert (line["log_level"], line["file"]) == ("warning", str(settings.state_file))
    assert line["why"]


@pytest.mark.parametrize("other", [{"node_id": "node-2"}, {"cluster": "another"}])
def test_another_node_s_file_is_left_alone(tmp_path: Path, other: dict[str, str]) -> None:
    settings = settings_for(tmp_path)
    write(msgspec.structs.replace(settings, **other), filled())
    with capture_logs() as logs:
        assert store_of(settings).load() == {}
    assert "belongs to node" in logs[0]["why"]


def test_a_disk_that_does_not_take_it_is_logged_and_tried_again(tmp_path: Path) -> None:
    settings, state = settings_for(tmp_path), filled()
    settings = msgspec.structs.replace(settings, state_file=tmp_path / "not there" / "state")
    store = store_of(settings, state)

    async def work() -> None:
        store.touch()
        with capture_logs() as logs:
            await store.flush()
        assert [line["log_level"] for line in logs] == ["error"]
        settings.state_file.parent.mkdir()
        store.touch()
        await store.flush()
        assert store.load()[CLUSTER] == state.accepted[CLUSTER]

    asyncio.run(work())


def test_changes_are_written_together_and_soon(tmp_path: Path) -> None:
    settings, state = settings_for(tmp_path), filled()
    store = store_of(settings, state)
    written: asyncio.Queue[int] = asyncio.Queue()
    write_it = store._write

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def counted(turn: int, resources: Resources) -> None:
            write_it(turn, resources)
            loop.call_soon_threadsafe(written.put_nowait, len(resources[CLUSTER]))

        store._write = counted  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            task = asyncio.create_task(store.run())
            for number in range(100):
                state.take(Batch(CLUSTER, {f"c{number}": ResourceValue("1", b"")}), {})
                store.touch()
            assert await written.get() == 101
            assert len(store.load()[CLUSTER]) == 101
            state.take(Batch(CLUSTER, {}, ("c",)), {})
            store.touch()
            assert await written.get() == 100
            assert len(store.load()[CLUSTER]) == 100
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert written.empty()


def test_a_write_that_was_left_does_not_meet_the_last_one(tmp_path: Path) -> None:
    settings, state = settings_for(tmp_path), filled()
    store = store_of(settings, state)

    async def work() -> None:
        for number in range(30):
            state.take(Batch(CLUSTER, {"c": ResourceValue(str(number), b"")}), {})
            store.touch()
            task = asyncio.create_task(store.flush())
            await asyncio.sleep(0)
            task.cancel()
        store.touch()
        await store.flush()

    asyncio.run(work())
    assert store.load()[CLUSTER]["c"].version == "29"
    assert list(tmp_path.iterdir()) == [settings.state_file]
