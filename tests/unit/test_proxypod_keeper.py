"""The keeper of a proxy's pod: when it starts the proxy, when it waits, and that two of them come to rest."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.proxypod import keeper, place
from spliceway.agent.proxypod.door import Door
from spliceway.agent.proxypod.listener import answers, listener_pid
from spliceway.agent.proxypod.plan import Plan
from spliceway.proxy import __main__ as program
from spliceway.proxy.errors import HANDOVER_REFUSED, ProxyError
from spliceway.proxy.process.handover import HandoverError
from support.waiting import until

#: Stands for a proxy: holds the lock and the admin socket, or hands both over to the next one that says so.
PROXY = """
import fcntl, os, signal, socket, sys, time
directory, = sys.argv[1:]
def listen(name):
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"{directory}/{name}.{os.getpid()}")
    made.listen()
    os.replace(f"{directory}/{name}.{os.getpid()}", f"{directory}/{name}")
    return made
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
lock = open(f"{directory}/proxy-state.bin.lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    with socket.socket(socket.AF_UNIX) as old:
        old.connect(f"{directory}/proxy-handover.sock")
        old.sendall(b"?")
    fcntl.flock(lock, fcntl.LOCK_EX)
admin, handover = listen("proxy-admin.sock"), listen("proxy-handover.sock")
while True:
    peer = handover.accept()[0]
    if peer.recv(1):
        sys.exit(0)
"""


class Pods:
    """Keepers with one shared directory."""

    def __init__(self, directory: Path) -> None:
        self.shared = directory / "proxy"
        self.shared.mkdir()
        self.procs = directory / "cgroup.procs"
        self.procs.touch()
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str] | None = None) -> tuple[subprocess.Popen[bytes], Path]:
        """Another one, and its own directory. `command`: another proxy."""
        own = self._directory / f"own{len(self._started)}"
        own.mkdir()
        plan = Plan(
            kind="embedded",
            version="1",
            directory=self.shared,
            own=own,
            command=command or [sys.executable, "-c", PROXY, str(self.shared)],
            admin=self.shared / place.ADMIN["embedded"],
            drain=1.0,
        )
        (own / "plan.json").write_bytes(msgspec.json.encode(plan, enc_hook=str))
        process = subprocess.Popen([sys.executable, "-m", keeper.__name__, str(own / "plan.json")])
        self._started.append(process)
        return process, own

    @contextlib.contextmanager
    def door(self) -> Iterator[Door]:
        """The agent's side, which lets everybody in."""

        async def admit() -> None:
            pass

        async def serve() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await made.run()

        made = Door(self.shared / place.DOOR, self._directory, admit)
        made.open()
        loop = asyncio.new_event_loop()
        task = loop.create_task(serve())
        thread = threading.Thread(target=loop.run_until_complete, args=(task,))
        thread.start()
        try:
            yield made
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()

    def close(self) -> None:
        for each in self._started:
            if each.poll() is None:
                each.terminate()
                each.wait(20)

    def serving(self) -> int:
        return listener_pid(self.shared / place.ADMIN["embedded"])


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    made = Pods(tmp_path)
    try:
        yield made
    finally:
        made.close()


def ready(own: Path) -> bool:
    return (own / keeper.READY).exists()


def test_it_needs_the_agent_once_and_the_permit(pods: Pods) -> None:
    first, own = pods.start()
    time.sleep(0.5)
    assert not ready(own)
    assert not pods.serving()
    with pods.door():
        # Let in; but the agent runs the proxy itself.
        until(lambda: ready(own))
        assert not pods.serving()
        (pods.shared / place.PERMIT).touch()
        until(lambda: pods.serving() != 0 and ready(own))
    assert pods.procs.read_text() == "0\n", "what the proxy writes to go where the descriptor leads"
    assert not answers(pods.shared / place.DOOR)
    before = pods.serving()
    os.kill(before, signal.SIGKILL)
    until(lambda: pods.serving() not in (0, before))
    # Withdrawn: what runs is ended by somebody else, and it does not come back.
    (pods.shared / place.PERMIT).unlink()
    os.kill(pods.serving(), signal.SIGTERM)
    until(lambda: not pods.serving())
    time.sleep(0.5)
    assert not pods.serving()
    assert ready(own)
    first.terminate()
    assert first.wait(20) == 0
    assert not ready(own)


def test_two_of_them_come_to_rest_and_back(pods: Pods) -> None:
    (pods.shared / place.PERMIT).touch()
    with pods.door():
        _, older = pods.start()
        until(lambda: ready(older) and pods.serving() != 0)
        before = pods.serving()
        newer, own = pods.start()
        until(lambda: ready(own) and pods.serving() not in (0, before))
        after = pods.serving()
        for _ in range(20):
            time.sleep(0.05)
            assert pods.serving() == after, "they take over from each other again and again"
        assert ready(older)
    newer.terminate()
    assert newer.wait(20) == 0
    until(lambda: pods.serving() not in (0, after))


def test_where_nothing_can_be_taken_over_it_stands_by(pods: Pods) -> None:
    """An Envoy, or another kind: it holds the lock, and has no handover socket."""
    (pods.shared / place.PERMIT).touch()
    with (pods.shared / place.LOCK).open("w") as lock, pods.door():
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, own = pods.start()
        until(lambda: ready(own))
        assert not pods.serving()
        fcntl.flock(lock, fcntl.LOCK_UN)
        until(lambda: pods.serving() != 0)


def test_the_door_stays_open_whatever_happens_to_one_that_asks(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    faults: list[Exception] = [LookupError("a bug"), PermissionError("no")]

    async def admit() -> None:
        if faults:
            raise faults.pop()

    async def main() -> None:
        door = Door(tmp_path / place.DOOR, tmp_path, admit)
        door.open()
        task = asyncio.create_task(door.run())
        got = [await asyncio.to_thread(keeper._ask, tmp_path / place.DOOR) for _ in range(3)]
        assert got[:2] == [-1, -1]
        assert got[2] >= 0
        os.close(got[2])
        task.cancel()
        await asyncio.wait({task})
        assert not (tmp_path / place.DOOR).exists()

    asyncio.run(main())


def test_a_link_to_somebody_elses_socket_is_nobodys(tmp_path: Path) -> None:
    """Who has taken a proxy could have the agent end any process that listens somewhere."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "theirs.sock"))
        theirs.listen()
        assert listener_pid(tmp_path / "theirs.sock") == os.getpid()
        assert answers(tmp_path / "theirs.sock")
        (tmp_path / "link").symlink_to(tmp_path / "theirs.sock")
        assert listener_pid(tmp_path / "link") == 0
        assert not answers(tmp_path / "link")
    assert listener_pid(tmp_path / "theirs.sock") == 0
    assert listener_pid(tmp_path / "none.sock") == 0


def test_the_permit_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A pod can write to that directory; the agent can make the kill switch's file."""
    made = place.open_for_pods(tmp_path)
    assert (made / place.PERMIT).exists()
    for name in (place.PERMIT, f"{place.PERMIT}.new"):
        (made / name).unlink(missing_ok=True)
        (made / name).symlink_to(tmp_path / "disabled")
    place.open_for_pods(tmp_path)
    assert not (tmp_path / "disabled").exists()
    assert (made / place.PERMIT).is_file()
    assert not (made / place.PERMIT).is_symlink()
    assert place.left(tmp_path) == [made / place.PERMIT]


def test_without_a_lock_it_is_not_ready(pods: Pods) -> None:
    (pods.shared / place.PERMIT).touch()
    (pods.shared / place.LOCK).symlink_to("elsewhere")
    with pods.door():
        process, own = pods.start()
        time.sleep(1.5)
        assert process.poll() is None
        assert not ready(own)
        (pods.shared / place.LOCK).unlink()
        until(lambda: ready(own) and pods.serving() != 0)


def test_names_are_passed_on_only_where_somebody_listens(tmp_path: Path) -> None:
    """A stale socket, or a lock that nobody holds, must not take the place of those that count."""
    made = place.open_for_pods(tmp_path)
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / place.LOCK).write_text("old")
    (made / place.LOCK).write_text("new")
    place.open_for_pods(tmp_path)
    assert (made / place.LOCK).read_text() == "new"
    place.close_for_pods(tmp_path)
    assert (tmp_path / place.LOCK).read_text() == "old"
    assert not (made / place.PERMIT).exists()
    assert place.left(tmp_path) == [made / place.LOCK]


def test_a_proxy_that_can_not_start_is_no_reason_to_end_the_one_that_serves(pods: Pods) -> None:
    """A roll of an image that is broken: were its pods ready, all nodes would lose their proxy one after the other."""
    (pods.shared / place.PERMIT).touch()
    with pods.door():
        _, older = pods.start()
        until(lambda: ready(older) and pods.serving() != 0)
        before = pods.serving()
        newer, own = pods.start(["/bin/sh", "-c", "exit 3"])
        was_ready = []

        def ended() -> bool:
            was_ready.append(ready(own))
            return newer.poll() is not None

        until(ended)
        assert newer.returncode == 1
        assert not any(was_ready)
        assert pods.serving() == before
        # One that is refused is whole: it serves as soon as it may.
        _, own = pods.start(["/bin/sh", "-c", f"exit {HANDOVER_REFUSED}"])
        until(lambda: ready(own))
        assert pods.serving() == before


@pytest.mark.parametrize(("error", "status"), [(HandoverError("no"), HANDOVER_REFUSED), (ProxyError("no"), 1)])
def test_a_proxy_says_by_its_status_that_it_was_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(program, "run", fail)
    monkeypatch.setattr(sys, "argv", ["proxy", "--config", "none"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == status
