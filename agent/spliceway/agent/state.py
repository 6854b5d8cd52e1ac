"""What must survive a restart of the agent: written atomically, locked by one agent.

The kernel keeps the map rows and the proxy its listeners while the agent is down. Both name things by number, so an
agent that comes back must give everything the number it had: `state.json` holds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.errors import StateError
from spliceway.agent.ports import PortAllocator
from spliceway.policy.numbering import Numbering

#: Raised when a field changes its meaning; an agent refuses the state of a newer one.
STATE_VERSION = 1


class Held(msgspec.Struct, frozen=True):
    """Documents in force whose file now says something that is refused: after a restart they must be in force again.

    `documents`: file → plain documents; `owners`: object → the file that has it, for objects that two files claim.
    """

    documents: dict[str, tuple[dict[str, Any], ...]] = {}
    owners: dict[str, str] = {}


class AgentState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Numbers and held documents.

    `numbering`: what `Numbering.to_dict` gives; `ports`: rule set id → listener port; `freed`: ports in the order in
    which they became free.
    """

    version: int = STATE_VERSION
    node: str = ""
    numbering: dict[str, Any] = msgspec.field(default_factory=dict)
    ports: dict[int, int] = msgspec.field(default_factory=dict)
    freed: tuple[int, ...] = ()
    held: Held = Held()


class StateStore:
    """The state directory. `lock` must be held by whoever writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "state.json"
        self._last: bytes | None = None

    def __repr__(self) -> str:
        return f"StateStore({str(self.directory)!r})"

    def prepare(self) -> None:
        """Make the directory (0700). Raises StateError."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"stateDir {self.directory} can't be made: {error.strerror}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the node for this agent, so that two never fight over one. Raises StateError when another holds it.

        The lock is the kernel's (flock), so it goes with its process, however that ends.
        """
        self.prepare()
        path = self.directory / "agent.lock"
        try:
            # O_CLOEXEC: children (loader, proxy) outlive the agent and must not keep its lock.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"{path} can't be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise StateError(f"{self.directory} belongs to a running agent (pid {owner})") from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def load(self) -> AgentState:
        """Read the state; an absent file is a first start. Raises StateError when it can't be understood."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return AgentState()
        except OSError as error:
            raise StateError(f"{self.path} can't be read: {error.strerror}") from error
        try:
            state = msgspec.json.decode(data, type=AgentState)
        except msgspec.MsgspecError as error:
            # Starting with fresh numbers would give live map rows and listeners another meaning.
            hint = "run `spliceway cleanup --state` to start from nothing"
            raise StateError(f"{self.path} is damaged ({error}); {hint}") from error
        if state.version > STATE_VERSION:
            raise StateError(f"{self.path} has version {state.version}, this agent reads up to {STATE_VERSION}")
        self._last = data
        return state

    def save(self, state: AgentState) -> bool:
        """Write the state so that a crash leaves the old or the new one; False when it is as it was.

        Blocks for an fsync. Raises StateError, and then the old state is still there.
        """
        data = msgspec.json.encode(state)
        if data == self._last:
            return False
        try:
            write_atomic(self.path, data)
        except OSError as error:
            raise StateError(f"{self.path} can't be written: {error.strerror}") from error
        self._last = data
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self._last = None


class Saver:
    """Saves what an agent must not lose, when it changed."""

    def __init__(self, store: StateStore, node: str, numbering: Numbering, given: Callable[[], int]) -> None:
        """`given`: how many numbers were given."""
        self._store, self._node, self._numbering, self._given = store, node, numbering, given
        self._saved: object = None

    def _to_save(self, ports: PortAllocator, held: Held) -> object:
        return self._given(), ports.ports, ports.freed, held

    def unsaved(self, ports: PortAllocator, held: Held) -> bool:
        """Whether there is anything new."""
        # Most changes of pods bring no number: then all the others need not be looked at.
        return self._to_save(ports, held) != self._saved

    def save(self, ports: PortAllocator, held: Held) -> None:
        """Write all of it. Raises StateError."""
        now = self._to_save(ports, held)
        self._store.save(
            AgentState(
                node=self._node,
                numbering=self._numbering.to_dict(),
                ports=ports.ports,
                freed=ports.freed,
                held=held,
            )
        )
        self._saved = now


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file durably: write beside, fsync, rename, fsync the directory. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
