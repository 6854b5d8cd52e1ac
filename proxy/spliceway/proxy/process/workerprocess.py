"""One worker process as the supervisor sees it: started, fed, heard, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from spliceway.proxy.process.channel import Channel
from spliceway.proxy.process.messages import Up

#: What a worker runs; FD is added.
COMMAND = (sys.executable, "-P", "-m", "spliceway.proxy.process.worker")


class WorkerProcess:
    """A child with a channel. `ended` is set, with words, when the process has ended; its channel is closed then.

    A channel that closes, or on which something comes that is no message, is the end of the process: it is killed.
    """

    def __init__(self, on_message: Callable[[WorkerProcess, Up], None], command: tuple[str, ...] = COMMAND) -> None:
        """Start it. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError:
                ours.close()
                raise
        self.pid = self._process.pid
        self.ended: asyncio.Future[str] = loop.create_future()
        self._handle = os.pidfd_open(self.pid)
        self._loop = loop
        loop.add_reader(self._handle, self._on_end)
        self._why = ""
        self._on_message = on_message
        self._channel: Channel[Up] = Channel(loop, ours, Up, self._take, self._lost)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid}{' ended' if self.ended.done() else ''}>"

    def send(self, message: Any, descriptors: Iterable[int] = ()) -> None:
        """Send a message; nothing when it has ended."""
        self._channel.send(message, descriptors)

    def kill(self, why: str) -> None:
        """End it at once."""
        self._why = self._why or why
        if not self.ended.done():
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def _take(self, message: Up, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self._on_message(self, message)

    def _lost(self, why: str) -> None:
        # It closes its channel when it ends by itself, too; then there is nothing left to kill.
        if self._process.poll() is None:
            self._loop.call_later(0.2, self._kill_if_there, f"its channel: {why}")

    def _kill_if_there(self, why: str) -> None:
        if not self.ended.done():
            self.kill(why)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._handle)
        code = self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        os.close(self._handle)
        self._channel.read_rest()
        self._channel.close()
        self.ended.set_result(f"{how} ({self._why})" if self._why else how)
