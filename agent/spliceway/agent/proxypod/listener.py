"""Who listens on a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from spliceway.agent.proxyprocess import ProcessHandle, start_time

#: Linux 6.5 (7b26952a91cf); Python does not name it.
_SO_PEERPIDFD = 77


def listener_pid(path: Path) -> int:
    """Which process listens on a Unix socket; 0 for none, and for one of another PID namespace that is not ours.

    Source: unix(7), SO_PEERCRED.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _connect(sock, path)
            return _pid(sock)
    except OSError:
        return 0


def listener(path: Path) -> ProcessHandle | None:
    """The process that listens there; None for none, as above. Never another one, which has got its pid since then.

    Before Linux 6.5 the kernel gives no handle of it, so it is asked again once there is one: it must be the same pid,
    of a process that began when the first one did. (One whose child has its socket, and that has ended, can't be told.)
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _connect(sock, path)
            pid = _pid(sock)
            return _alive(ProcessHandle(pid, sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))) if pid else None
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return None
    began = start_time(pid)
    try:
        handle = ProcessHandle(pid)
    except OSError:
        return None
    if began is None or listener_pid(path) != pid or start_time(pid) != began:
        handle.close()
        return None
    return _alive(handle)


def _alive(handle: ProcessHandle) -> ProcessHandle | None:
    """Linux 6.16 gives handles of processes that have ended, too."""
    if handle.has_ended():
        handle.close()
        return None
    return handle


def answers(path: Path) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _connect(sock, path)
        except OSError:
            return False
    return True


def _pid(sock: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _connect(sock: socket.socket, path: Path) -> None:
    """Through no symbolic link: a pod can write to this directory, and the agent ends who listens. Raises OSError."""
    sock.settimeout(1.0)
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
