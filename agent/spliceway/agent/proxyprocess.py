"""One process of a proxy: starting it so that it outlives the agent, knowing it again, ending it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from pathlib import Path

import msgspec

from spliceway.policy.errors import SplicewayError

_SHELL = "/bin/sh"
_SHELLS = (_SHELL, os.path.realpath(_SHELL))
# The process joins its cgroup before it is the proxy, so that no socket of the proxy's is ever outside of it; and it
# may open as many files as it is allowed to: each connection takes two.
_ENTER = 'ulimit -n "$(ulimit -H -n)"; if [ -n "$0" ]; then echo $$ >"$0" || exit 125; fi; exec "$@"'


class ProxyProcessError(SplicewayError):
    """The proxy can't be found, used or started. The message says what to do."""


class ProxyIdentity(msgspec.Struct, frozen=True):
    """A running proxy, as the state file tells it. Together they name one process, also after a reboot.

    `start_time`: /proc/PID/stat field 22, clock ticks since boot. `boot`: the kernel's boot id. `binary` is the
    resolved path, `version` the proxy's, `config` a digest of all that it was started with, `since` CLOCK_REALTIME in
    seconds. `socks`: id of the kernel's map that knew its sockets from their birth, 0 when nobody said.
    """

    pid: int
    start_time: int
    boot: str
    binary: str
    version: str
    config: str
    since: float
    kind: str = "envoy"
    socks: int = 0


def spawn(command: list[str], log_file: Path, cgroup: Path | None) -> int:
    """Start `command` in its own session and cgroup (a cgroup2 directory), output appended to `log_file`; its pid.

    Raises:
        ProxyProcessError: the cgroup isn't one, or the process can't be made.
    """
    procs = cgroup / "cgroup.procs" if cgroup else None
    if procs is not None and not procs.is_file():
        raise ProxyProcessError(f"{cgroup}: is not a cgroup2 directory (no cgroup.procs)")
    # Not subprocess.Popen, which complains about a process that is left running, as this one is meant to be.
    try:
        return os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", _ENTER, str(procs or ""), *command],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these two, and exec would pass that on
        )
    except OSError as error:
        raise ProxyProcessError(f"can't start {command[0]} with its log in {log_file}: {error.strerror}") from error


def identify(pid: int, binary: Path, version: str, config: str, kind: str) -> ProxyIdentity | None:
    """Identity of a process that was just started; None when it has already gone."""
    start = start_time(pid)
    if start is None:
        return None
    return ProxyIdentity(pid, start, _boot_id(), str(binary), version, config, time.time(), kind)


def is_running(identity: ProxyIdentity) -> bool:
    """Whether that very process still runs, and still is that program."""
    if identity.boot != _boot_id() or start_time(identity.pid) != identity.start_time:
        return False
    try:
        exe = str(Path(f"/proc/{identity.pid}/exe").readlink())
    except OSError:
        return False
    # One that was started a moment ago is still the shell that becomes the proxy; an upgrade removes the file under it.
    return exe in _SHELLS or exe.removesuffix(" (deleted)") == identity.binary


def start_time(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None for none, and for a zombie. Source: proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class ProcessHandle:
    """A process by pidfd: child or not, its end is seen at once, and no signal hits another with the same pid."""

    def __init__(self, pid: int, pidfd: int = -1) -> None:
        """`pidfd`: one of it, if the caller has one; it is given away. Raises OSError."""
        self.pid = pid
        self._fd = os.pidfd_open(pid) if pidfd < 0 else pidfd
        self._ended: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<ProcessHandle {self.pid}>"

    async def wait(self) -> None:
        """Wait for its end; any number of tasks may."""
        if self._ended is None:
            self._ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(self._fd, self._on_end)
        await self._ended.wait()

    def has_ended(self) -> bool:
        """Whether it has, whoever its parent is."""
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def reap(self) -> str:
        """How it ended, in words; of another's child nobody tells."""
        try:
            result = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "ended"
        if result is None:
            return "running"
        how = "exit status" if result.si_code == os.CLD_EXITED else "killed by signal"
        return f"{how} {result.si_status}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Give up the handle, not the process."""
        if self._ended is not None and not self._ended.is_set():
            asyncio.get_running_loop().remove_reader(self._fd)
            self._ended.set()
        os.close(self._fd)

    def _on_end(self) -> None:
        assert self._ended is not None
        asyncio.get_running_loop().remove_reader(self._fd)
        self._ended.set()


async def end(handle: ProcessHandle, grace: float) -> str:
    """End a process: SIGTERM, and SIGKILL after `grace` seconds; how it ended, in words. Closes the handle."""
    handle.send(signal.SIGTERM)
    try:
        await asyncio.wait_for(handle.wait(), grace)
    except TimeoutError:
        handle.send(signal.SIGKILL)
        await handle.wait()
    how = handle.reap()
    handle.close()
    return how


def running(file: Path) -> tuple[ProxyIdentity, ProcessHandle] | None:
    """The process that a state file names, if it runs. The handle is the caller's to close."""
    identity = load_identity(file)
    if identity is None or not is_running(identity):
        return None
    try:
        handle = ProcessHandle(identity.pid)
    except ProcessLookupError:
        return None
    if not is_running(identity):  # ended, and the pid was given away, before the handle was there
        handle.close()
        return None
    return identity, handle


def load_identity(file: Path) -> ProxyIdentity | None:
    """The identity in the state file; None when there is none, or it is not one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=ProxyIdentity)
    except (OSError, msgspec.DecodeError):
        return None


def save_identity(file: Path, identity: ProxyIdentity) -> None:
    """Write the state file in one step."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(identity))
    fresh.rename(file)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
