"""Watches: what is sent of the past, what of each change, and when bookmarks come. Time is its reader's.

Source: apiserver pkg/storage/cacher (cache_watcher.go, watch_cache.go), KEP-3157 (WatchList).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import msgspec

from support.kubeapi.errors import ApiError, expired, too_large
from support.kubeapi.listing import Options
from support.kubeapi.resources import Served
from support.kubeapi.store import Change, Item, Store

_LINE = b'{"type":"%s","object":%s}\n'


class Watch:
    """One watch. Take `lines` whenever `woken` is set; `close` it."""

    def __init__(self, store: Store, served: Served, options: Options, *, oldest: int = 0) -> None:
        """`oldest`: the server has no history before this revision. Raises ApiError."""
        self._store = store
        self.served = served
        self._options = options
        self._lines: deque[bytes] = deque()
        self.revision = store.revision
        self.woken = asyncio.Event()
        self.ended = False
        if options.initial_events or options.revision <= 0:
            if options.revision > store.revision:
                raise too_large(options.revision, store.revision)
            self._begin()
        elif not self._resume(max(store.compacted, oldest)):
            return
        store.listeners.append(self._changed)

    def lines(self) -> Iterator[bytes]:
        """What there is to send now."""
        self.woken.clear()
        while self._lines:
            yield self._lines.popleft()

    def bookmark(self) -> None:
        """Say how far it is, if the client wants that and is not further."""
        if self._options.bookmarks and self._store.revision >= self._options.revision:
            self._add(b"BOOKMARK", self._bookmark({}))

    def error(self, error: ApiError) -> None:
        """Say what is wrong, and end."""
        self._add(b"ERROR", msgspec.json.encode(error.body))
        self.ended = True

    def end(self) -> None:
        """End in good order."""
        self.ended = True
        self.woken.set()

    def close(self) -> None:
        """Hear of nothing any more."""
        if self._changed in self._store.listeners:
            self._store.listeners.remove(self._changed)

    def _begin(self) -> None:
        """All that is there, as additions: wanted with `sendInitialEvents`, and of old where no revision is given."""
        objects = self._store.objects(self.served.resource)
        if self._options.initial_events or self._options.revision <= 0:
            for name, item in sorted(objects.items()):
                if self._options.selects(name, item):
                    self._add(b"ADDED", item.text(self.served.api_version))
        if self._options.initial_events and self._options.bookmarks:
            self._add(b"BOOKMARK", self._bookmark({"k8s.io/initial-events-end": "true"}))

    def _resume(self, oldest: int) -> bool:
        try:
            if self._options.revision < oldest:
                raise KeyError(self._options.revision)
            changes = self._store.since(self.served.resource, self._options.revision)
        except KeyError:
            self.error(expired(f"too old resource version: {self._options.revision} ({oldest})"))
            return False
        for change in changes:
            self._changed(change)
        return True

    def _changed(self, change: Change) -> None:
        if change.resource != self.served.resource or change.revision <= self._options.revision:
            return  # one that goes on at a later revision (of a server that was set back) hears of nothing
        self.revision = change.revision
        was = self._options.selects(change.name, change.before)
        now = self._options.selects(change.name, change.after)
        version = self.served.api_version
        if now:
            assert change.after is not None
            self._add(b"MODIFIED" if was else b"ADDED", change.after.text(version))
        elif was:
            # What has left the selection is told as it was, with the revision at which it left.
            assert change.before is not None
            gone = change.last or Item(_at(change.before, change.revision), change.revision)
            self._add(b"DELETED", gone.text(version))

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        metadata: dict[str, object] = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        return msgspec.json.encode(
            {"kind": self.served.kind, "apiVersion": self.served.api_version, "metadata": metadata}
        )

    def _add(self, kind: bytes, content: bytes) -> None:
        self._lines.append(_LINE % (kind, content))
        self.woken.set()


def _at(item: Item, revision: int) -> dict[str, object]:
    return {**item.content, "metadata": {**item.content["metadata"], "resourceVersion": str(revision)}}
