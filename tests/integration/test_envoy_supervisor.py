"""The supervisor with a real Envoy: start, take over, restart, stop, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from spliceway.agent.envoy import EnvoySettings, EnvoySupervisor
from spliceway.agent.envoyprocess import EnvoyError, envoy_version, find_envoy
from spliceway.agent.proxyprocess import (
    ProxyProcessError,
    is_running,
    load_identity,
    save_identity,
    start_time,
)
from spliceway.agent.testbed import cgroups
from spliceway.xds.resources.settings import BootstrapSettings
from support.waiting import LIMIT, until_async

pytestmark = pytest.mark.envoy


def supervisor(
    directory: Path, *, node: str = "n", cgroup: Path | None = None, binary: Path | None = None
) -> EnvoySupervisor:
    return EnvoySupervisor(
        EnvoySettings(binary=binary, state_dir=directory / "state", cgroup=cgroup, concurrency=1, stop_timeout=3.0),
        BootstrapSettings(node_id=node, xds_socket=directory / "xds.sock", admin_socket=directory / "admin.sock"),
    )


def run(directory: Path, work: Callable[[], Awaitable[None]], loop: str = "asyncio") -> None:
    """Run, and leave no Envoy behind whatever happens."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
            runner.run(asyncio.wait_for(work(), 2 * LIMIT))  # type: ignore[arg-type]
    finally:
        identity = load_identity(directory / "state" / "envoy.json")
        if identity is not None and is_running(identity):
            os.kill(identity.pid, signal.SIGKILL)


def open_files(pid: int) -> list[str]:
    """Soft and hard limit of open files."""
    return Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1].split()[:2]


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    mounted = cgroups.mounted(not_below=tmp_path)
    if mounted is None:
        pytest.skip("no cgroup2 is mounted")
    path = cgroups.create(mounted / f"spliceway-test-{os.getpid()}")
    yield path
    cgroups.remove(path)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_starts_and_stops(tmp_path: Path, loop: str) -> None:
    async def work() -> None:
        envoy = supervisor(tmp_path)
        await envoy.start()
        task = asyncio.create_task(envoy.run())
        await envoy.wait_ready(LIMIT)
        status = envoy.status()
        assert (status.running, status.adopted, status.restarts, status.problems) == (True, False, 0, ())
        assert status.version == "1.40.0"
        assert os.getsid(status.pid) == status.pid
        assert (await envoy.logs_written())[1] == 0
        await envoy.stop()
        await asyncio.wait_for(task, LIMIT)
        assert start_time(status.pid) is None
        assert envoy.status().problems == ("Envoy is not running (not started)",)
        assert not (tmp_path / "state" / "envoy.json").exists()

    run(tmp_path, work, loop)


@pytest.mark.kernel
def test_it_is_in_its_cgroup_before_it_is_envoy(tmp_path: Path, cgroup: Path) -> None:
    async def work() -> None:
        envoy = supervisor(tmp_path, cgroup=cgroup)
        await envoy.start()
        await envoy.wait_ready(LIMIT)
        pid = envoy.status().pid
        assert (cgroup / "cgroup.procs").read_text().split() == [str(pid)]
        soft, hard = open_files(pid)
        assert soft == hard
        await envoy.stop()

    run(tmp_path, work)


def test_another_agent_takes_it_over(tmp_path: Path) -> None:
    async def work() -> None:
        first = supervisor(tmp_path)
        await first.start()
        task = asyncio.create_task(first.run())
        await first.wait_ready(LIMIT)
        task.cancel()  # the agent goes, Envoy stays
        second = supervisor(tmp_path)
        await second.start()
        assert second.status().adopted
        assert second.status().pid == first.status().pid
        assert second.status().since == first.status().since
        assert second.status().problems == ()
        other = supervisor(tmp_path, node="another")
        await other.start()
        assert other.status().problems == (
            "Envoy's bootstrap or command line changed since it was started: "
            f"end it (pid {other.status().pid}), and the agent starts it anew",
        )
        await second.stop()

    run(tmp_path, work)


def test_what_runs_is_taken_over_also_when_its_binary_has_gone(tmp_path: Path) -> None:
    async def work() -> None:
        first = supervisor(tmp_path)
        await first.start()
        await first.wait_ready(LIMIT)
        second = supervisor(tmp_path, binary=tmp_path / "gone")
        await second.start()
        status = second.status()
        assert (status.adopted, status.pid) == (True, first.status().pid)
        assert len(status.problems) == 1
        assert "Envoy could not be started again: proxy.binary" in status.problems[0]
        task = asyncio.create_task(second.run())
        os.kill(status.pid, signal.SIGKILL)
        await until_async(lambda: "proxy.binary" in second.status().last_exit)
        assert "proxy.binary" in second.status().problems[0]
        await second.stop()
        task.cancel()

    run(tmp_path, work)


def test_it_outlives_an_agent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from spliceway.agent.envoy import EnvoySettings, EnvoySupervisor
        from spliceway.xds.resources.settings import BootstrapSettings

        async def main():
            at = Path(sys.argv[1])
            envoy = EnvoySupervisor(
                EnvoySettings(state_dir=at / "state", concurrency=1),
                BootstrapSettings(node_id="n", xds_socket=at / "xds.sock", admin_socket=at / "admin.sock"),
            )
            await envoy.start()
            await envoy.wait_ready(60)
            print("ready", flush=True)
            await envoy.run()

        asyncio.run(main())
        """
    )

    async def work() -> None:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert agent.stdout is not None
        while b"ready" not in (line := await agent.stdout.readline()):
            assert line, "the agent ended"
        agent.kill()
        await agent.wait()
        envoy = supervisor(tmp_path)
        await envoy.start()
        task = asyncio.create_task(envoy.run())
        assert envoy.status().adopted
        # It is not our child, and is watched all the same.
        os.kill(envoy.status().pid, signal.SIGKILL)
        await until_async(lambda: envoy.status().restarts == 1)
        assert "ended" in envoy.status().last_exit
        assert not envoy.status().adopted
        await envoy.stop()
        await task

    run(tmp_path, work)


def test_it_is_started_again_when_it_dies(tmp_path: Path) -> None:
    async def work() -> None:
        ended: list[str] = []
        envoy = supervisor(tmp_path)
        envoy.on_exit = ended.append
        await envoy.start()
        task = asyncio.create_task(envoy.run())
        for restarts in (1, 2):
            await envoy.wait_ready(LIMIT)
            pid = envoy.status().pid
            os.kill(pid, signal.SIGKILL)
            await until_async(lambda count=restarts: envoy.status().restarts == count)  # type: ignore[misc]
            assert envoy.status().pid != pid
        assert len(ended) == 2
        assert "killed by signal 9" in ended[0]
        await envoy.stop()
        await task

    run(tmp_path, work)


def test_a_crash_loop_backs_off_and_says_why(tmp_path: Path) -> None:
    async def work() -> None:
        binary = tmp_path / "envoy"
        binary.write_text(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'envoy version: x/1.40.0/Clean/RELEASE/B' && exit\n"
            "echo something broke >&2\nexit 3\n"
        )
        binary.chmod(0o755)
        envoy = supervisor(tmp_path, binary=binary)
        await envoy.start()
        task = asyncio.create_task(envoy.run())
        await until_async(lambda: envoy.status().restarts == 2)
        await until_async(lambda: not envoy.status().running)
        assert "exit status 3" in envoy.status().last_exit
        assert "something broke" in envoy.status().problems[0]
        with pytest.raises(ProxyProcessError, match="something broke"):
            await envoy.wait_ready(0.2)
        task.cancel()

    run(tmp_path, work)


def test_a_pid_that_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    async def work() -> None:
        first = supervisor(tmp_path)
        await first.start()
        await first.wait_ready(LIMIT)
        file = tmp_path / "state" / "envoy.json"
        identity = load_identity(file)
        assert identity is not None
        await first.stop()
        own = start_time(os.getpid())
        assert own is not None
        stranger = type(identity)(os.getpid(), own, identity.boot, identity.binary, "1.40.0", "", 0.0)
        assert not is_running(stranger)
        assert not is_running(type(identity)(os.getpid(), own + 1, identity.boot, sys.executable, "1.40.0", "", 0.0))
        save_identity(file, stranger)
        second = supervisor(tmp_path)
        await second.start()
        assert not second.status().adopted
        assert second.status().pid != os.getpid()
        await second.stop()

    run(tmp_path, work)


@pytest.mark.parametrize("content", ["", "nonsense", '{"pid": 1}'])
def test_a_state_file_that_is_none_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "envoy.json").write_text(content)
    assert load_identity(tmp_path / "envoy.json") is None


def test_envoy_missing_names_the_extra_and_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import envoy

    monkeypatch.setattr(envoy, "__path__", [str(tmp_path)])
    with pytest.raises(EnvoyError, match=r"extra `envoy` .* config field proxy\.binary"):
        find_envoy()
    with pytest.raises(EnvoyError, match=r"proxy\.binary: .*/nowhere is not an executable file"):
        find_envoy(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("envoy version: x/1.39.0/Clean/RELEASE/B", "1.39.0 lets requests past path rules"),
        ("nginx/1.22.1", "does not say which version of Envoy it is"),
    ],
)
def test_a_binary_that_will_not_do(tmp_path: Path, says: str, message: str) -> None:
    binary = tmp_path / "envoy"
    binary.write_text(f"#!/bin/sh\necho '{says}'\n")
    binary.chmod(0o755)
    with pytest.raises(EnvoyError, match=message):
        asyncio.run(envoy_version(binary))


def test_a_cgroup_that_is_none(tmp_path: Path) -> None:
    async def work() -> None:
        envoy = supervisor(tmp_path, cgroup=tmp_path)
        with pytest.raises(ProxyProcessError, match=r"is not a cgroup2 directory \(no cgroup\.procs\)"):
            await envoy.start()

    run(tmp_path, work)
