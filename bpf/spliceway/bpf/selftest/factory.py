"""A process that makes sockets in another cgroup and network namespace and hands them over.

A socket belongs to the cgroup and the namespace of the process that made it, for good: so the self-test, one process,
can hold the sockets of a pod's application and those of a proxy.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from spliceway.bpf.parent import end_with
from spliceway.bpf.selftest import syscalls

#: Most descriptors that one message may carry (SCM_MAX_FD).
_AT_ONCE = 250
_READY = b"ready"


class SocketFactory:
    """TCP sockets of one cgroup and one network namespace. Make it before any thread is started: it forks."""

    def __init__(self, cgroup: Path, netns: int) -> None:
        """`netns`: an open file of the namespace. Raises OSError when the process can't get there."""
        self._wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        us = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            self._wire.close()
            _serve(theirs, cgroup, netns, us)
        theirs.close()
        word = self._wire.recv(4096)
        if word != _READY:
            raise OSError(f"{cgroup}: {word.decode() or 'the process that makes its sockets has ended'}")

    def make(self, family: int, count: int = 1) -> list[socket.socket]:
        """New sockets, non-blocking. Raises OSError."""
        made: list[socket.socket] = []
        while len(made) < count:
            batch = min(count - len(made), _AT_ONCE)
            self._wire.send(bytes((family, batch)))
            error, descriptors, _, _ = socket.recv_fds(self._wire, 4096, batch)
            if len(descriptors) != batch:
                raise OSError(f"no socket: {error.decode()}")
            for descriptor in descriptors:
                one = socket.socket(fileno=descriptor)
                one.setblocking(False)
                made.append(one)
        return made

    def close(self) -> None:
        """End the process. Sockets that it has made stay."""
        self._wire.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _serve(wire: socket.socket, cgroup: Path, netns: int, parent: int) -> None:
    """The process: `count` sockets for each request, until the parent ends it, or ends."""
    try:
        end_with(parent)
        (cgroup / "cgroup.procs").write_text("0")
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        wire.send(_READY)
        while request := wire.recv(2):
            family, count = request
            made: list[socket.socket] = []
            try:
                made.extend(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) for _ in range(count))
            except OSError as error:
                wire.send(str(error).encode())
            else:
                socket.send_fds(wire, [_READY], [one.fileno() for one in made])
            for one in made:
                one.close()
    except BaseException as error:  # the parent learns of it here, or by the end of this process
        os.write(wire.fileno(), str(error).encode())
    finally:
        os._exit(0)
