"""The first process of a proxy's pod: gets the proxy into the node's cgroup, starts it, and starts it again.

It has no sockets but to look with, stays in the cgroup that the kubelet made, and has next to nothing in memory. The
proxy is its child, in the cgroup at which the kernel's programs know it: the agent gives the descriptor by which it
goes there, once, so that the keeper needs no rights for that and no agent later.

Of several keepers on one node one has the turn: its proxy holds the lock in the shared directory. The first start of a
keeper takes over from an embedded proxy that runs (`spliceway.proxy.process.handover`). After that a keeper begins only
when the lock is free: or two pods would take over from each other for ever, each started again when it was done. Who
waits for the lock stands by, and counts as ready: then the kubelet may end the other one. Not so a keeper whose proxy
was to take over and ended instead, though it was not refused: it ends, and the kubelet starts it again from the
beginning. An image that can't serve must not have the one ended that does, on one node after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.proxypod import place
from spliceway.agent.proxypod.listener import answers, listener_pid
from spliceway.proxy.errors import HANDOVER_REFUSED

#: The file in the pod's own directory that the readiness probe looks for.
READY = "ready"
#: How often it is looked, in seconds: whether the turn has come, the proxy serves, an Envoy's connections have ended.
_LOOK, _STEADY_LOOK = 0.1, 1.0
_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 5.0
#: A proxy that ran this long (seconds) has earned a quick restart.
_STEADY = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
#: Joins the cgroup by descriptor 9 (0 is «who writes»), opens as many files as it may, and lets no more be given to it.
_ENTER = 'ulimit -n "$(ulimit -H -n)"; echo 0 >&9 || exit 125; exec "$@" 9>&-'
_NOT_JOINED = 125
#: How one ends that was not kept from taking over by a fault of its own: told to, or refused.
_WHOLE = ("exit status 0", f"exit status {HANDOVER_REFUSED}")
_PR_SET_NO_NEW_PRIVS = 38


class _Plan(msgspec.Struct, frozen=True):
    """As `plan.Plan`, without what that imports."""

    kind: str
    version: str
    directory: Path
    own: Path
    command: list[str]
    admin: Path
    drain: float


class _Ended(Exception):  # noqa: N818
    """SIGTERM or SIGINT."""


class Keeper:
    """One keeper. `run` is its life."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._cgroup = -1
        self._lock = -1
        self._first = True
        self._takes_over = False
        self._child = 0
        self._served = False
        self._told = ""
        self._ready_file = plan.own / READY

    def __repr__(self) -> str:
        return f"<Keeper {self._plan.kind} child={self._child} {self._told!r}>"

    def run(self) -> None:
        """Until SIGTERM; then the proxy has ended, too."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._set_ready(False)
        pause = _BACKOFF_FIRST
        try:
            while True:
                self._wait_for_turn()
                self._first = False
                began = time.monotonic()
                self._start()
                how = self._watch()
                self._unlock()
                self._tell("the proxy ended", how=how)
                if self._takes_over and not self._served and how not in _WHOLE:
                    sys.exit(1)
                pause = _BACKOFF_FIRST if time.monotonic() - began > _STEADY else min(pause * 2, _BACKOFF_LAST)
                if how == f"exit status {_NOT_JOINED}":  # that cgroup is gone: the agent has another one
                    os.close(self._cgroup)
                    self._cgroup = -1
                if how != "exit status 0":
                    self._pause(pause)
        except _Ended:
            self._set_ready(False)
            self._end()

    def _wait_for_turn(self) -> None:
        while True:
            why, ready = self._obstacle()
            self._set_ready(ready)
            if not why:
                return
            if why != self._told:
                self._told = why
                _log("waiting", why=why, ready=ready)
            self._pause(_LOOK)

    def _obstacle(self) -> tuple[str, bool]:
        """Why the proxy is not to be started now, and whether that is a reason for others to wait for this pod."""
        directory = self._plan.directory
        if self._cgroup < 0:
            self._cgroup = _ask(directory / place.DOOR)
            if self._cgroup < 0:
                return f"no agent has opened {directory / place.DOOR} yet", False
        if not (directory / place.PERMIT).exists():
            return "the agent does not leave the proxy to pods", True
        try:
            lock = _try_lock(directory / place.LOCK)
        except OSError as error:  # who can't even look must not have another one ended
            return f"{directory / place.LOCK}: {error.strerror}", False
        if lock < 0:
            self._takes_over = self._first and self._plan.kind == "embedded" and answers(directory / place.HANDOVER)
            return ("", False) if self._takes_over else ("another proxy has the turn", True)
        self._takes_over = False
        if self._plan.kind == "embedded":  # it takes the lock itself, or shares that of the one before
            os.close(lock)
        else:
            self._lock = lock
        return "", False

    def _start(self) -> None:
        self._told = ""
        self._child = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _ENTER, "sh", *self._plan.command],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, self._cgroup, 9)],
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these two, and exec would pass that on
        )
        _log("started the proxy", kind=self._plan.kind, version=self._plan.version, pid=self._child)

    def _watch(self) -> str:
        """Until the child has ended: how, in words."""
        serves = self._served = False
        while True:
            if (how := self._reaped()) is not None:
                return how
            # The path of the admin socket goes over to whoever takes over.
            serves = listener_pid(self._plan.admin) == self._child
            # An embedded one that another has taken over from drains; its pod may go whenever that is done.
            self._served |= serves
            self._set_ready(self._served)
            self._tick(_STEADY_LOOK if serves else _LOOK)

    def _end(self) -> None:
        """Let connections end as they may, then the proxy."""
        if not self._child:
            return
        # One that was taken over from lets its connections end already: a SIGTERM tells such a one to wait no longer.
        superseded = self._served and listener_pid(self._plan.admin) != self._child
        with contextlib.suppress(_Ended):
            if self._plan.kind == "envoy":
                self._drain_envoy()
        how = None
        if not superseded:
            os.kill(self._child, signal.SIGTERM)
        while how is None:
            try:
                how = self._reaped()
                if how is None:
                    self._tick(_STEADY_LOOK)
            except _Ended:
                os.kill(self._child, signal.SIGTERM)  # twice: at once
        _log("the proxy ended", how=how)

    def _drain_envoy(self) -> None:
        """New connections are another pod's. Those that are there get answers, with `connection: close`."""
        # One connection for all: the next proxy takes the path of the admin socket.
        with contextlib.closing(_Admin(self._plan.admin)) as admin:
            try:
                admin.connect()
                admin.ask("POST", "/healthcheck/fail")
                admin.ask("POST", "/drain_listeners")
                self._unlock()
                deadline = time.monotonic() + self._plan.drain
                while time.monotonic() < deadline and self._child_runs() and admin.connections():
                    self._tick(_LOOK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                _log("Envoy does not say whether it still has connections", error=repr(error))

    def _child_runs(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        return False

    def _reaped(self) -> str | None:
        """How the child ended; None while it runs. The first process of a pod has others' orphans to bury, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._child = 0
                return "ended"
            if not pid:
                return None
            if pid == self._child:
                self._child = 0
                code = os.waitstatus_to_exitcode(status)
                return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._tick(left)

    def _tick(self, seconds: float) -> None:
        """Wait; less when a child has ended. Raises _Ended."""
        info = signal.sigtimedwait(_SIGNALS, seconds)
        if info is not None and info.si_signo != signal.SIGCHLD:
            raise _Ended

    def _set_ready(self, ready: bool) -> None:
        if ready:
            self._ready_file.touch()
        else:
            self._ready_file.unlink(missing_ok=True)

    def _tell(self, what: str, **more: Any) -> None:
        self._told = ""
        _log(what, **more)


def _ask(door: Path) -> int:
    """A descriptor of the cgroup's `cgroup.procs`, from the agent; -1 when none answers. See `door`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # The agent may have to end a proxy of its own first.
        sock.settimeout(30.0)
        try:
            sock.connect(str(door))
            data, descriptors, *_ = socket.recv_fds(sock, 1024, 4)
        except OSError:
            return -1
    if not data or len(descriptors) != 1:
        for each in descriptors:
            os.close(each)
        return -1
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _try_lock(file: Path) -> int:
    """A descriptor that holds the lock, -1 if another process has it. Raises OSError."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    return handle


class _Admin(http.client.HTTPConnection):
    """Envoy's admin interface, on one connection, to one process."""

    auto_open = 0

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=5.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, target: str) -> bytes:
        """Body of the answer. Raises OSError or HTTPException."""
        self.request(method, target)
        answer = self.getresponse()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"{target}: {answer.status}")
        return answer.read()

    def connections(self) -> int:
        """How many of pods there are. Raises OSError, HTTPException or ValueError."""
        text = self.ask("GET", "/stats?filter=^http\\.spliceway.*downstream_cx_active$").decode()
        return sum(int(line.rpartition(":")[2]) for line in text.splitlines() if line)


def _log(event: str, **more: Any) -> None:
    """As the proxy's own log: one JSON object a line."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = msgspec.json.encode({**more, "event": event, "level": "info", "timestamp": now}).decode()
    print(line, file=sys.stderr, flush=True)


def _convert(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def main() -> None:
    """`python -m spliceway.agent.proxypod.keeper PLAN`."""
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=_Plan, dec_hook=_convert)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    Keeper(plan).run()


if __name__ == "__main__":
    main()
