"""Unix sockets at a path that a successor takes over, and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

from spliceway.proxy.errors import ProxyError

_CREDENTIALS = struct.Struct("iII")


class UnixListener:
    """A listening Unix socket, mode 0600. It takes the path from whoever had it, in one step."""

    def __init__(self, path: Path) -> None:
        """Listen.

        Raises:
            ProxyError: the path can't be had.
        """
        self.path = path
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        if len(os.fsencode(fresh)) > 107:  # sockaddr_un has 108 bytes, one of them for the final NUL
            raise ProxyError(f"{path}: too long for a Unix socket, 98 bytes are fine")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            fresh.unlink(missing_ok=True)
            # fchmod on the unbound socket sets the mode that bind() gives the file: it is never open to others.
            os.fchmod(self.socket.fileno(), 0o600)
            self.socket.bind(str(fresh))
            fresh.chmod(0o600)
            self.socket.listen(128)
            self._inode = fresh.stat().st_ino
            fresh.replace(path)
        except OSError as error:
            self.socket.close()
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise ProxyError(f"{path}: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"UnixListener({str(self.path)!r})"

    def close(self, *, successor: bool = False) -> None:
        """Close it, and remove the path, which a `successor` takes over instead."""
        self.socket.close()
        if not successor:
            with contextlib.suppress(OSError):
                if self.path.lstat().st_ino == self._inode:
                    self.path.unlink()


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Pid and user id of the process at the other end, as they were when it connected or began to listen."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
