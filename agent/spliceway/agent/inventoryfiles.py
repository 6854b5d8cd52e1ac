"""What is in force of each file of the source. Pure.

A cluster has a file for each object, so those that say nothing else than one good object are kept as that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, MutableMapping

import msgspec

from spliceway.agent.manifests import Entry, Key
from spliceway.policy.model import object_key


class Refusal(msgspec.Struct, frozen=True, rename="camel"):
    """A document (or file) that is not in force as it is written. `kept`: an earlier version of it still is."""

    file: str
    document: str
    field: str
    reason: str
    kept: bool

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.file, self.document, self.field, self.reason) if part)
        return f"{text} (the last good version stays in force)" if self.kept else text


class File(msgspec.Struct, frozen=True):
    """What is in force of one file: what it says now, and (`held`) what it said before; and what is refused of it.

    `odd`: entries of which a part is refused.
    """

    entries: Mapping[Key, Entry] = {}
    held: frozenset[Key] = frozenset()
    refusals: tuple[Refusal, ...] = ()
    odd: tuple[Key, ...] = ()

    @classmethod
    def of(
        cls, entries: Mapping[Key, Entry], held: frozenset[Key] = frozenset(), refusals: tuple[Refusal, ...] = ()
    ) -> File:
        """With what is odd of it."""
        return cls(entries, held, refusals, tuple(key for key, entry in entries.items() if entry.errors))


NOTHING = File()


class Owners(MutableMapping[Key, str]):
    """By object, the file that it is in force of. Of pods, of which there are very many, only the name is kept."""

    def __init__(self) -> None:
        self._pods: dict[str, str] = {}
        self._others: dict[Key, str] = {}

    def __repr__(self) -> str:
        return f"Owners({len(self)})"

    def __getitem__(self, key: Key) -> str:
        return self._pods[key[1]] if key[0] == "Pod" else self._others[key]

    def __setitem__(self, key: Key, file: str) -> None:
        if key[0] == "Pod":
            self._pods[key[1]] = file
        else:
            self._others[key] = file

    def __delitem__(self, key: Key) -> None:
        if key[0] == "Pod":
            del self._pods[key[1]]
        else:
            del self._others[key]

    def __iter__(self) -> Iterator[Key]:
        yield from self._others
        yield from (("Pod", name) for name in self._pods)

    def __len__(self) -> int:
        return len(self._pods) + len(self._others)


class Files(Mapping[str, File]):
    """By name. What is not there says nothing, see `of`."""

    def __init__(self) -> None:
        self._all: dict[str, File | Entry] = {}

    def __repr__(self) -> str:
        return f"Files({len(self._all)})"

    def __getitem__(self, name: str) -> File:
        found = self._all[name]
        return File({object_key(found.item): found}) if isinstance(found, Entry) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def keys(self) -> KeysView[str]:
        """Names."""
        return self._all.keys()

    def of(self, name: str) -> File:
        """A file, also one that is not there."""
        return self[name] if name in self._all else NOTHING

    def entry(self, name: str, key: Key) -> Entry:
        """An object that this file has."""
        found = self._all[name]
        return found if isinstance(found, Entry) else found.entries[key]

    def put(self, name: str, file: File) -> None:
        """Say what is in force of a file."""
        ordinary = len(file.entries) == 1 and not (file.held or file.refusals or file.odd)
        self._all[name] = next(iter(file.entries.values())) if ordinary else file

    def drop(self, name: str) -> File:
        """A file goes; what it was."""
        was = self.of(name)
        self._all.pop(name, None)
        return was
