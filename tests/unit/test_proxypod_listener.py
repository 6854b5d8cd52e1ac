"""Who listens on a Unix socket is known by a handle of that very process, whatever becomes of its number."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spliceway.agent.proxypod import listener as module
from spliceway.agent.proxypod.listener import listener, listener_pid

#: Listens (argv: path); with «child», by a child that has its socket and ends when its input does.
LISTEN = """
import os, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[1])
made.listen()
if sys.argv[2:] and os.fork():
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""
#: None such: as kernels before 6.5 answer.
UNKNOWN = 0x7FFF


@pytest.fixture(params=["6.5", "before"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "before":
        monkeypatch.setattr(module, "_SO_PEERPIDFD", UNKNOWN)
    return str(request.param)


def started(path: Path, *how: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, str(path), *how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_the_handle_is_of_who_listens(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "admin.sock"
    with started(path) as process:
        handle = listener(path)
        assert handle is not None
        assert handle.pid == process.pid == listener_pid(path)
        assert not handle.has_ended()
        handle.send(signal.SIGKILL)
        asyncio.run(asyncio.wait_for(handle.wait(), 30))
        assert process.wait(30) == -signal.SIGKILL
        handle.close()
    assert listener(path) is None
    assert listener(tmp_path / "none.sock") is None


def test_who_has_left_its_socket_to_a_child_is_nobody(tmp_path: Path, kernel: str) -> None:
    """The number that the kernel still tells may be another process's by now."""
    path = tmp_path / "admin.sock"
    with started(path, "child") as process:
        assert process.wait(30) == 0
        assert listener_pid(path) == process.pid
        assert listener(path) is None


def test_a_number_that_another_process_has_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Between the answer and the handle: its own handle is right all the same, and a number alone is not enough."""
    path = tmp_path / "admin.sock"
    with started(path) as process:
        times = iter([1, 2])
        monkeypatch.setattr(module, "start_time", lambda _pid: next(times))
        handle = listener(path)
        assert (handle is not None) is (kernel == "6.5")
        if handle is not None:
            handle.close()
        process.kill()


def test_the_handle_is_not_inherited(tmp_path: Path, kernel: str) -> None:
    path = tmp_path / "admin.sock"
    with started(path) as process:
        handle = listener(path)
        assert handle is not None
        assert not os.get_inheritable(handle._fd)
        handle.close()
        process.kill()
