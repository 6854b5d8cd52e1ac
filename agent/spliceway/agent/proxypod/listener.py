"""Who listens on a Unix socket."""

from __future__ import annotations

import socket
import struct
from pathlib import Path


def listener_pid(path: Path) -> int:
    """Which process listens on a Unix socket; 0 for none, and for one of another PID namespace that is not ours.

    Source: unix(7), SO_PEERCRED.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
            pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return 0
    return int(pid)


def answers(path: Path) -> bool:
    """Whether anybody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True
