"""A server that was set back: etcd from a backup, or one that lost its last writes with the power.

It counts its revisions on from there, and an object of the same resourceVersion need not be the same. A watch that goes
on at a later revision is silent until the server has come so far, since only what is newer is sent (apiserver,
pkg/storage/cacher/cache_watcher.go), and tells nothing of what was lost then. So who comes back after a failure has the
server tell the last things once more, and looks at all where these are others, or too old for it.
"""

from __future__ import annotations

from collections import deque

from spliceway.agent.sources.kubernetes.connection import ApiFailure

#: The reason of such a failure.
SET_BACK = "SetBack"
#: So many objects are told again at most: one would do, and servers forget soon what is before many.
_MOST = 8


def is_older(one: str, other: str) -> bool:
    """Whether a revision is older than another one; what is no number says nothing."""
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)


def set_back(revision: str) -> ApiFailure:
    """The history that is known is not the server's."""
    return ApiFailure(410, SET_BACK, f"the API server was set back: {revision} is not of the history that it had")


class Past:
    """What was told of a kind since the bookmark before the last one, or the last few objects of it."""

    def __init__(self) -> None:
        self._told: list[tuple[str, str]] = []  # revision, object («» for a bookmark); what came before the first
        self._left: deque[tuple[str, str]] | None = None  # to be told again
        self._is_doubted = self._was_silent = False

    def __repr__(self) -> str:
        return f"Past(told={self._told}, left={self._left})"

    def begin(self, revision: str) -> None:
        """All was seen, as of this revision."""
        self._told, self._left = [(revision, "")], None
        self._is_doubted = self._was_silent = False

    def tell(self, revision: str, file: str = "") -> None:
        """A bookmark, or a change of this object, came."""
        if not revision.isdecimal():
            self._told = []
            return
        if not file:
            bookmarks = [number for number, one in enumerate(self._told) if not one[1]]
            del self._told[: bookmarks[-1] if bookmarks else 0]
        self._told.append((revision, file))
        del self._told[: -1 - _MOST]

    def doubt(self, *, silent: bool) -> None:
        """Something has failed; `silent`: an answer that did not go on."""
        self._is_doubted = True
        self._was_silent |= silent

    def rewind(self, revision: str) -> str:
        """Where to go on so that the last things are told again; this revision, when that is not needed."""
        self._left = None
        if not self._is_doubted or not self._told or self._told[-1][0] != revision:
            return revision
        self._left = deque(one for one in self._told[1:] if one[1])
        return self._told[0][0]

    @property
    def doubted(self) -> tuple[str, ...]:
        """Objects that a server that was set back may have in another version of the same number."""
        return tuple(file for _, file in self._told if file) if self._is_doubted else ()

    @property
    def is_asked(self) -> bool:
        """Whether what comes may have been told before."""
        return self._left is not None

    @property
    def must_be_asked(self) -> bool:
        """Whether what is told again can't show that the server was set back, or did not."""
        return self._was_silent or (self._is_doubted and not self._left)

    def asked(self) -> None:
        """The server has said how far it is."""
        self._was_silent = False

    def repeats(self, revision: str, file: str = "") -> bool:
        """Whether this (no file: a bookmark) was told before. Raises ApiFailure where it should have been."""
        if self._left is None:
            return False
        last = self._told[-1][0]
        if file and not is_older(last, revision):
            if not self._left or self._left.popleft() != (revision, file):
                raise set_back(revision)
            return True
        if any(not is_older(revision, one[0]) for one in self._left):
            raise set_back(revision)
        if is_older(revision, last):
            return True
        self._left, self._is_doubted = None, False
        return False
