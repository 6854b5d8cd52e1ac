"""Heads that came before, byte for byte: reading one costs twice what all the rest of a request does."""

from __future__ import annotations

from spliceway.proxy.http.head import Head

#: Heads that are remembered, and the longest of them, in bytes.
MOST, LONGEST = 1024, 2048
#: Heads that were seen once. Only what comes again is remembered, so that a client whose heads are all different does
#: not drive out those of the others.
_SEEN_ONCE = 8192


class HeadCache:
    """What a head is depends on its bytes alone, so that whoever sends the same bytes may get the same answer.

    Verdicts are remembered in the head together with the rules that gave them (`Judge.judge`).
    """

    __slots__ = ("_heads", "_seen", "hits")

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self._seen: set[int] = set()
        self.hits = 0

    def __repr__(self) -> str:
        return f"<HeadCache {len(self._heads)} heads, {self.hits} hits>"

    def get(self, raw: bytes) -> Head | None:
        """The head, if it is remembered."""
        found = self._heads.get(raw)
        if found is not None:
            self.hits += 1
        return found

    def add(self, raw: bytes, head: Head) -> None:
        """Take note of a head that was read."""
        if len(raw) > LONGEST:
            return
        key = hash(raw)
        if key not in self._seen:
            if len(self._seen) >= _SEEN_ONCE:
                self._seen.clear()
            self._seen.add(key)
            return
        if len(self._heads) >= MOST:
            self._heads.clear()
        self._heads[raw] = head
