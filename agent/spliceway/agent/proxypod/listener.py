"""Who listens on a Unix socket."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path


def listener_pid(path: Path) -> int:
    """Which process listens on a Unix socket; 0 for none, and for one of another PID namespace that is not ours.

    Source: unix(7), SO_PEERCRED.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _connect(sock, path)
            pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return 0
    return int(pid)


def answers(path: Path) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _connect(sock, path)
        except OSError:
            return False
    return True


def _connect(sock: socket.socket, path: Path) -> None:
    """Through no symbolic link: a pod can write to this directory, and the agent ends who listens. Raises OSError."""
    sock.settimeout(1.0)
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
