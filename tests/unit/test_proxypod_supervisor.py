"""The agent's look at the proxy of a pod: it goes on whatever it finds, and notices each proxy that begins anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from spliceway.agent.proxypod import place
from spliceway.agent.proxypod import supervisor as module
from spliceway.agent.proxypod.supervisor import PodSupervisor
from spliceway.agent.proxyprocess import ProcessHandle
from spliceway.bpf.proxymarks import Listener
from support.agent import until

#: A proxy's admin interface (argv: path, body of each answer), which a new one takes over as a handover does.
ADMIN = r"""
import os, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[1] + ".new")
made.listen()
os.rename(sys.argv[1] + ".new", sys.argv[1])
print("ready", flush=True)
body = sys.argv[2].encode()
while True:
    asked, _ = made.accept()
    if asked.recv(4096):
        asked.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    asked.close()
"""
INFO = {"version": "spliceway-proxy/1.2.3", "command_line_options": {"concurrency": 2}}
PORTS = (23000, 23099)


class Site:
    """A supervisor that looks; `sockets` is what the kernel tells of the proxy's."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.sockets: list[Listener] = []
        self.asked = 0
        self._started: list[subprocess.Popen[bytes]] = []
        cgroup = directory / "cgroup"
        cgroup.mkdir()
        (cgroup / "cgroup.procs").touch()
        self.supervisor = PodSupervisor("embedded", directory, cgroup=cgroup, ports=PORTS, on_exit=self.told.append)
        self._admin = place.shared(directory) / place.ADMIN["embedded"]
        monkeypatch.setattr(module.proxymarks, "listeners", self._listeners)

    def _listeners(self, _map: int) -> list[Listener]:
        self.asked += 1
        return list(self.sockets)

    def proxy(self, info: object = INFO) -> subprocess.Popen[bytes]:
        """One that listens now, and whose sockets were not looked at yet."""
        self.asked = 0
        command = [sys.executable, "-c", ADMIN, str(self._admin), json.dumps(info)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def listens(self, *cookies: bytes) -> None:
        """Sockets at ports from the first on."""
        self.sockets = [
            Listener(ip_address("127.0.0.1"), PORTS[0] + number, cookie, 0, known=True)
            for number, cookie in enumerate(cookies)
        ]

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[asyncio.Task[None]]:
        """As an agent does it, while it lives."""
        await self.supervisor.start(socks=1)
        task = asyncio.create_task(self.supervisor.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until_it_is(self, pid: int) -> None:
        """And it was looked at."""
        await until(lambda: self.supervisor.status().pid == pid and (not pid or self.asked > 0))

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch)
    yield made
    made.end()


def test_it_goes_on_whatever_a_look_raises(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor, say: the agent must not end for it."""

    async def main() -> None:
        async with site.looking() as task:
            right, failed = module.listener_pid, 0

            def fails(_path: Path) -> int:
                nonlocal failed
                failed += 1
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(module, "listener_pid", fails)
            await until(lambda: failed > 1 or task.done())
            assert not task.done()
            (problem,) = (one for one in site.supervisor.status().problems if "looked at" in one)
            assert "Too many open files" in problem
            monkeypatch.setattr(module, "listener_pid", right)
            await site.until_it_is(site.proxy().pid)
            await until(lambda: not any("looked at" in one for one in site.supervisor.status().problems))

    asyncio.run(main())


def test_without_a_free_descriptor_nobody_is_found(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        found = module.listener_pid(tmp_path / "admin.sock"), module.listener(tmp_path / "admin.sock")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == (0, None)


def test_a_process_is_watched_by_any_descriptor() -> None:
    """select(2) knows those below 1024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[0] < 2000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, limits[1]))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        first = os.pidfd_open(process.pid)
        os.dup2(first, 1500, inheritable=False)
        os.close(first)
        handle = ProcessHandle(process.pid, 1500)
        assert not handle.has_ended()
        process.communicate(b"\n", 30)
        assert handle.has_ended()
        handle.close()
    finally:
        process.kill()
        process.communicate()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "info", [[], {"version": 7}, {"version": "x/1.2.3", "command_line_options": {"concurrency": "y"}}]
)
def test_what_a_proxy_says_of_itself_is_not_believed(site: Site, info: object) -> None:
    async def main() -> None:
        async with site.looking() as task:
            pid = site.proxy(info).pid
            await site.until_it_is(pid)
            status = site.supervisor.status()
            assert (status.version, status.workers, task.done()) == ("", 0, False)

    asyncio.run(main())


@pytest.mark.parametrize("again", [True, False])
def test_a_proxy_that_ends_before_its_sockets_were_looked_at(site: Site, again: bool) -> None:
    """What it listened at since the last look has gone with it."""

    async def main() -> None:
        async with site.looking():
            first = site.proxy()
            await site.until_it_is(first.pid)
            second = site.proxy() if again else None
            first.kill()
            first.wait()
            site.listens(b"new")  # only now anybody looks again
            await site.until_it_is(second.pid if second else 0)
            await until(lambda: bool(site.told))
            assert site.supervisor.status().restarts == 1

    asyncio.run(main())


@pytest.mark.parametrize("ended", [False, True])
def test_a_handover(site: Site, ended: bool) -> None:
    """Sockets that were looked at before, and are there still."""

    async def main() -> None:
        site.listens(b"one", b"two")
        async with site.looking():
            first = site.proxy()
            await site.until_it_is(first.pid)
            second = site.proxy()
            if ended:
                first.kill()
                first.wait()
            await site.until_it_is(second.pid)
            await until(lambda: site.asked > 1)  # again, and by then it was told what there was to tell
            status = site.supervisor.status()
            assert (status.restarts, site.told) == (0, [])
            assert [one.pid for one in status.draining] == ([] if ended else [first.pid])

    asyncio.run(main())


def test_one_that_has_no_listeners_yet_is_no_loss(site: Site) -> None:
    async def main() -> None:
        async with site.looking():
            first = site.proxy()
            await site.until_it_is(first.pid)
            second = site.proxy()
            first.kill()
            first.wait()
            await site.until_it_is(second.pid)
            await until(lambda: site.asked > 1)
            assert (site.told, site.supervisor.status().restarts) == ([], 0)

    asyncio.run(main())
