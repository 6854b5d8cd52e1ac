"""Which kinds had objects when an agent of this node ran last: what is missing of these may be missing for a moment.

A server that has no such kind says the same as one that has not read its definition yet, or whose definition is made
anew. An agent that starts then has nothing to compare with, and would take the node's policies for gone.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
import structlog

from spliceway.agent.state import write_atomic

FILE = "kinds.json"

log = structlog.get_logger(__name__)


class _File(msgspec.Struct, frozen=True):
    kinds: frozenset[str]


class Kinds:
    """Kept in the state directory, over reboots, too. Blocking."""

    def __init__(self, directory: Path, every: Collection[str]) -> None:
        """`every`: what may have been there when the file can't be read."""
        self._path = directory / FILE
        self._every = frozenset(every)
        self._saved: frozenset[str] | None = None
        self._told = False  # that it can't be written

    def __repr__(self) -> str:
        return f"Kinds({self._path}, {sorted(self._saved or ())})"

    def load(self) -> frozenset[str]:
        """Those of the last agent; none when there was none."""
        try:
            self._saved = msgspec.json.decode(self._path.read_bytes(), type=_File).kinds
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the file of the kinds that had objects can't be read", error=str(error))
            return self._every
        return self._saved & self._every

    def differ(self, kinds: frozenset[str]) -> bool:
        """Whether others were saved last."""
        return kinds != (self._saved or frozenset())

    def save(self, kinds: frozenset[str]) -> None:
        """Write them down before anything of theirs comes into force. A full disk is no reason to stay behind."""
        try:
            write_atomic(self._path, msgspec.json.encode(_File(kinds)))
        except OSError as error:
            if not self._told:  # it is tried again with every change of the cluster
                log.warning("which kinds have objects can't be written", file=str(self._path), error=error.strerror)
            self._told = True
            return
        self._saved, self._told = kinds, False
