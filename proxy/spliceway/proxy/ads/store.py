"""The last good configuration on a disk, so that a proxy that starts while its agent is away serves at once.

The file is a digest and what it is of, msgpack of `_Document`. It says what the rules are, and is read only if it
belongs to this user and nobody else can write it; whatever is wrong with it, the proxy starts without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.values import Resources
from spliceway.proxy.model import ProxySettings

#: The first bytes of the file. The number counts what it may look like.
_MAGIC = b"spliceway-proxy-state 1\n"
_DIGEST = 32
#: Changes that come within so many seconds are written together; after each writing there is a pause of so many times
#: as long as it took, so that a busy agent doesn't keep the disk busy.
_GATHER, _REST = 0.1, 10.0

log = structlog.get_logger(__name__)


class _Document(msgspec.Struct, frozen=True, array_like=True):
    node: str
    cluster: str
    resources: Resources


class _UnusableError(Exception):
    """Why the file can't be used."""


class StateStore:
    """Writes what `state` has accepted, soon after `touch`; `run` is the task that does it."""

    def __init__(self, settings: ProxySettings, state: AdsState, volatile: Callable[[str, str], bool]) -> None:
        """`volatile`: whether a resource (type URL, name) must not be on a disk."""
        self.path = settings.state_file
        self._owner = (settings.node_id, settings.cluster)
        self._state = state
        self._volatile = volatile
        self._touched = asyncio.Event()
        # A thread goes on when its task is cancelled, and may come late.
        self._writing = threading.Lock()
        self._turn = self._last_turn = 0
        self._written = b""

    def __repr__(self) -> str:
        return f"StateStore({str(self.path)!r})"

    def load(self) -> Resources:
        """What was written last; nothing if there is no file, or none that can be trusted."""
        try:
            return self._read()
        except FileNotFoundError:
            return {}
        except (OSError, _UnusableError, msgspec.DecodeError) as error:
            log.warning(
                "the last configuration can't be used, waiting for the agent", file=str(self.path), why=str(error)
            )
            return {}

    def touch(self) -> None:
        """Something was accepted or removed."""
        self._touched.set()

    async def run(self) -> None:
        """Write what changes, until cancelled."""
        while True:
            await self._touched.wait()
            await asyncio.sleep(_GATHER)
            began = time.monotonic()
            await self.flush()
            await asyncio.sleep(_REST * (time.monotonic() - began))

    async def flush(self) -> None:
        """Write now what is not written yet. If the disk doesn't take it, the next change is the next attempt."""
        if not self._touched.is_set():
            return
        self._touched.clear()
        resources = {
            url: {name: value for name, value in named.items() if not self._volatile(url, name)}
            for url, named in self._state.accepted.items()
        }
        self._turn += 1
        await asyncio.to_thread(self._write, self._turn, resources)

    def _read(self) -> Resources:
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise _UnusableError("it is no file of this user's own")
            content = file.read()
        if not content.startswith(_MAGIC):
            raise _UnusableError("it is of another version, or something else")
        digest, body = content[len(_MAGIC) :][:_DIGEST], content[len(_MAGIC) + _DIGEST :]
        if _digest(body) != digest:
            raise _UnusableError("its digest is wrong")
        document = msgspec.msgpack.decode(body, type=_Document)
        if (document.node, document.cluster) != self._owner:
            raise _UnusableError(f"it belongs to node {document.node!r} of cluster {document.cluster!r}")
        return document.resources

    def _write(self, turn: int, resources: Resources) -> None:
        body = msgspec.msgpack.encode(_Document(*self._owner, resources))
        digest = _digest(body)
        # Two proxies share the file while one takes over from the other.
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with self._writing:
            if turn < self._last_turn or digest == self._written:
                return
            self._last_turn = turn
            try:
                _write_whole(beside, _MAGIC + digest + body)
                beside.replace(self.path)
                _sync(self.path.parent)
            except OSError as error:
                log.error("the configuration can't be written, a restart waits for the agent", error=str(error))
                with contextlib.suppress(OSError):
                    beside.unlink()
                return
            self._written = digest


def _write_whole(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, person=b"spliceway-state").digest()


def _sync(directory: Path) -> None:
    """The new name is on the disk, too."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
