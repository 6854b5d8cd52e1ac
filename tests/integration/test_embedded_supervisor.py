"""The agent's side of an embedded proxy: start, take over, replace while it serves, end, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.embedded import EmbeddedSupervisor
from spliceway.agent.envoy import EnvoySettings, EnvoySupervisor
from spliceway.agent.proxyprocess import is_running, load_identity, start_time
from spliceway.agent.proxysupervisor import (
    KINDS,
    PROXY_STATE,
    ROLES,
    ProxySupervisor,
    end_kind,
    identity_file,
    running_pids,
)
from spliceway.proxy.model import Limits, ProxySettings
from spliceway.xds.resources.settings import BootstrapSettings
from support.waiting import LIMIT, until_async


def settings(directory: Path, **changed: object) -> ProxySettings:
    made = ProxySettings(
        node_id="n",
        xds_socket=directory / "xds.sock",
        admin_socket=directory / "admin.sock",
        handover_socket=directory / "handover.sock",
        state_file=directory / "state" / PROXY_STATE,
        workers=1,
        limits=Limits(drain=2.0),
    )
    return msgspec.structs.replace(made, **changed)


def supervisor(directory: Path, **changed: object) -> EmbeddedSupervisor:
    return EmbeddedSupervisor(settings(directory, **changed), directory / "state", stop_timeout=3.0)


def run(directory: Path, work: Callable[[], Awaitable[None]]) -> None:
    """Run, and leave no proxy behind whatever happens."""
    state = directory / "state"
    try:
        asyncio.run(asyncio.wait_for(work(), 2 * LIMIT))  # type: ignore[arg-type]
    finally:
        for file in (identity_file(state, kind, role) for kind in KINDS for role in ROLES):
            if (identity := load_identity(file)) is not None and is_running(identity):
                os.kill(identity.pid, signal.SIGKILL)


async def gone(task: asyncio.Task[None]) -> None:
    """The agent ends; its proxy does not."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def started(directory: Path, **changed: object) -> tuple[EmbeddedSupervisor, asyncio.Task[None]]:
    """An agent's supervisor that runs. Its proxy may not be ready yet."""
    made = supervisor(directory, **changed)
    await made.start()
    return made, asyncio.create_task(made.run())


async def left_behind(directory: Path) -> EmbeddedSupervisor:
    """The supervisor of an agent that has ended; its proxy goes on."""
    made, task = await started(directory)
    await made.wait_ready(LIMIT)
    await gone(task)
    return made


def test_it_starts_and_stops(tmp_path: Path) -> None:
    async def work() -> None:
        proxy, task = await started(tmp_path)
        await proxy.wait_ready(LIMIT)
        status = proxy.status()
        assert (status.kind, status.running, status.adopted, status.problems) == ("embedded", True, False, ())
        assert (status.version, status.workers) == ("0.1.0", 1)
        assert os.getsid(status.pid) == status.pid
        assert (await proxy.logs_written())[1] == 0
        await proxy.log_share(250_000)
        assert running_pids(tmp_path / "state") == {status.pid: "embedded"}
        await proxy.stop()
        await asyncio.wait_for(task, LIMIT)
        assert start_time(status.pid) is None
        assert not list((tmp_path / "state").glob("embedded*.json"))
        assert not (tmp_path / "state" / PROXY_STATE).exists()

    run(tmp_path, work)


def test_one_with_the_same_settings_is_taken_over_as_it_is(tmp_path: Path) -> None:
    async def work() -> None:
        first = await left_behind(tmp_path)
        second, task = await started(tmp_path)
        await second.wait_ready(LIMIT)
        assert second.status().adopted
        assert second.status().pid == first.status().pid
        assert second.status().problems == ()
        os.kill(second.status().pid, signal.SIGKILL)
        await until_async(lambda: second.status().restarts == 1)
        assert not second.status().adopted
        await second.stop()
        await task

    run(tmp_path, work)


def test_one_whose_sockets_the_kernel_does_not_know_is_ended(tmp_path: Path) -> None:
    async def work() -> None:
        first = supervisor(tmp_path)
        await first.start(socks=7)
        await first.wait_ready(LIMIT)
        old = first.status().pid
        second = supervisor(tmp_path, limits=Limits(drain=1.0))
        await second.start(socks=7)
        assert (second.status().pid, second.status().adopted) == (old, True)
        third = supervisor(tmp_path, limits=Limits(drain=1.0))  # a handover would give it the same sockets
        await third.start(socks=8)
        await third.wait_ready(LIMIT)
        status = third.status()
        assert (status.running, status.adopted, status.draining) == (True, False, ())
        assert start_time(old) is None
        assert running_pids(tmp_path / "state") == {status.pid: "embedded"}
        await third.stop()

    run(tmp_path, work)


def test_one_with_other_settings_is_replaced_while_it_serves(tmp_path: Path) -> None:
    async def work() -> None:
        first = await left_behind(tmp_path)
        old = first.status().pid
        ended: list[str] = []
        second = supervisor(tmp_path, limits=Limits(drain=1.0))
        second.on_exit = ended.append
        await second.start()
        assert second.status().pid == old
        task = asyncio.create_task(second.run())
        await until_async(lambda: second.status().pid != old)
        await until_async(lambda: start_time(old) is None)
        status = second.status()
        assert (status.running, status.restarts, status.problems) == (True, 0, ())
        assert ended == []  # nothing went away: its sockets went on to the new one
        await until_async(lambda: running_pids(tmp_path / "state") == {status.pid: "embedded"})
        await until_async(lambda: not identity_file(tmp_path / "state", "embedded", "-last").exists())
        await second.wait_ready(LIMIT)
        await second.stop()
        await task

    run(tmp_path, work)


def test_one_that_drains_ends_with_the_rest(tmp_path: Path) -> None:
    async def work() -> None:
        first = await left_behind(tmp_path)
        old = first.status().pid
        os.kill(old, signal.SIGSTOP)  # it drains for long
        try:
            # As if it had handed over: what comes of that is another test's.
            identity_file(tmp_path / "state", "embedded").rename(identity_file(tmp_path / "state", "embedded", "-last"))
            assert running_pids(tmp_path / "state") == {old: "embedded"}
            second = supervisor(tmp_path)
            assert not second._adopt()
            assert [each.pid for each in second.status().draining] == [old]
            await end_kind(tmp_path / "state", "embedded", 0.2)
            assert start_time(old) is None
            await until_async(lambda: second.status().draining == ())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(old, signal.SIGCONT)

    run(tmp_path, work)


def test_the_old_one_stays_when_the_new_one_cannot_start(tmp_path: Path) -> None:
    async def work() -> None:
        first = await left_behind(tmp_path)
        # Not a directory: it can keep no configuration there.
        (tmp_path / "file").touch()
        second, task = await started(tmp_path, handover_socket=tmp_path / "file" / "handover.sock")
        await until_async(lambda: bool(second.status().problems), 30)
        status = second.status()
        assert (status.running, status.pid) == (True, first.status().pid)
        assert "a new one could not take over" in status.problems[0]
        assert running_pids(tmp_path / "state") == {status.pid: "embedded"}
        await second.wait_ready(LIMIT)
        await second.stop()
        await task

    run(tmp_path, work)


def test_an_agent_that_ended_in_the_middle_of_a_handover_left_two(tmp_path: Path) -> None:
    async def work() -> None:
        first = await left_behind(tmp_path)
        old = first.status().pid
        _, task = await started(tmp_path, limits=Limits(drain=1.0))
        await until_async(identity_file(tmp_path / "state", "embedded", "-next").exists)
        await gone(task)
        third, task = await started(tmp_path, limits=Limits(drain=1.0))
        await until_async(lambda: third.status().pid != old)
        await until_async(lambda: len(running_pids(tmp_path / "state")) == 1)
        assert third.status().problems == ()
        await third.stop()
        await task

    run(tmp_path, work)


@pytest.mark.envoy
@pytest.mark.parametrize("first_kind", KINDS)
def test_another_kind_ends_the_one_that_runs(tmp_path: Path, first_kind: str) -> None:
    state = tmp_path / "state"

    def made(kind: str) -> ProxySupervisor:
        if kind == "embedded":
            return supervisor(tmp_path)
        bootstrap = BootstrapSettings(
            node_id="n", xds_socket=tmp_path / "xds.sock", admin_socket=tmp_path / "envoy.sock"
        )
        return EnvoySupervisor(EnvoySettings(state_dir=state, concurrency=1), bootstrap)

    async def work() -> None:
        first, second = (made(kind) for kind in sorted(KINDS, key=lambda kind: kind != first_kind))
        await first.start()
        await first.wait_ready(LIMIT)
        (state / PROXY_STATE).touch()
        old = first.status().pid
        await second.start()
        assert start_time(old) is None
        await second.wait_ready(LIMIT)
        pid = second.status().pid
        assert running_pids(state) == {pid: second.program.kind}
        # What an embedded proxy remembers must not come back when its kind does.
        assert (state / PROXY_STATE).exists() == (first_kind == "envoy")
        assert (state / "envoy-bootstrap.json").exists() == (first_kind == "embedded")
        assert (state / "proxy.json").exists() == (first_kind == "envoy")
        await end_kind(state, second.program.kind, 3.0)
        assert start_time(pid) is None
        assert running_pids(state) == {}

    run(tmp_path, work)
