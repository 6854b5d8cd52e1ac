"""Makes sockets for another process: `python -m support.socketmaker`, with a SOCK_SEQPACKET socket as descriptor 3.

A socket belongs for ever to the network namespace and the cgroup in which it was made. So a test that gets its sockets
from a maker in a pod, and one in the proxy's cgroup, holds all ends of a connection itself, each as if it were there.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parents[1]
_CHANNEL = 3


class SocketMaker:
    """The maker in one place. `spawn` starts a program there: `Pod.spawn`, say."""

    def __init__(self, spawn: Callable[..., subprocess.Popen[Any]]) -> None:
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            code = (
                f"import os, runpy, sys; os.dup2({there.fileno()}, {_CHANNEL}); sys.path.insert(0, {str(_TESTS)!r});"
                "runpy.run_module('support.socketmaker', run_name='__main__')"
            )
            self._process = spawn([sys.executable, "-c", code], pass_fds=(there.fileno(),))

    def make(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that was made there."""
        self._here.send(json.dumps([family, kind, protocol]).encode())
        data, descriptors, _, _ = socket.recv_fds(self._here, 1, 1)
        assert data, "the maker has ended"
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        """End it. The sockets that it made stay."""
        self._here.close()
        self._process.wait(10)


def main() -> None:
    """Make what is asked for, until nobody can ask any more."""
    with socket.socket(fileno=_CHANNEL) as channel:
        while request := channel.recv(1024):
            with socket.socket(*json.loads(request)) as made:
                socket.send_fds(channel, [b"."], [made.fileno()])


if __name__ == "__main__":
    main()
