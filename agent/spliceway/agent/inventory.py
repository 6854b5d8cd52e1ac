"""From source events to one immutable Cluster. A refused document changes nothing; its last good version stays. Pure.

Which object a refused document was meant to be is read from its kind and metadata; when not even that can be read, or
the file is no YAML at all, nothing that the file said before goes away. So a typo never removes a policy. What is held
in this way survives a restart of the agent (`Held`), and is given up when the file says it well, or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from spliceway.agent.endpoints import INTERFACE, local_endpoint
from spliceway.agent.sources.events import Batch, FileChanged, FileRefused, FileRemoved, SourceLost
from spliceway.agent.state import Held
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster, Object, Pod, object_key
from spliceway.policy.parse import parse_document

#: Kind and «namespace/name» of an object.
Key = tuple[str, str]


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


class _Entry(msgspec.Struct, frozen=True):
    """One good object, and the document it came in (an item, when that was a List)."""

    item: Object
    content: dict[str, Any]
    endpoint: LocalEndpoint | None = None


class _File(msgspec.Struct, frozen=True):
    """What is in force of one file: what it says now, and (`held`) what it said before; and what is refused of it."""

    entries: dict[Key, _Entry] = {}
    held: frozenset[Key] = frozenset()
    refusals: tuple[Refusal, ...] = ()


class Inventory:
    """All objects of the source. Feed it batches; then look at `cluster`, `endpoints`, `refusals` and `held`."""

    def __init__(self, node: str, held: Held | None = None) -> None:
        """`node`: whose pods are local; `held`: what the last agent held."""
        held = held or Held()
        self._node = node
        self._files: dict[str, _File] = {}
        self._owners: dict[Key, str] = {}
        self._claims: dict[Key, int] = {}
        self._lost = ""
        self._synced = False
        self._restored_owners = held.owners
        for file, contents in held.documents.items():
            said, _refused = self._parse(
                Document(file, index, 1, content) for index, content in enumerate(contents, start=1)
            )
            self._files[file] = _File(said, frozenset(said))
        self._resolve()

    def __repr__(self) -> str:
        return f"Inventory(files={len(self._files)}, objects={len(self._owners)}, refused={len(self.refusals)})"

    def feed(self, batch: Batch) -> bool:
        """Take in one change. False when it changes neither objects nor refusals."""
        before = (self._in_force(), self.refusals)
        if not self._synced and not any(isinstance(event, SourceLost) and event.reason for event in batch):
            # The first look names every file that is there: what an earlier agent held of others is gone.
            there = {event.file for event in batch if not isinstance(event, SourceLost)}
            self._files = {file: known for file, known in self._files.items() if file in there}
            self._synced = True
        for event in batch:
            match event:
                case FileRemoved(file=file):
                    self._files.pop(file, None)
                case FileRefused(file=file, reason=reason):
                    self._keep(file, PolicyError(file, "", "", reason))
                case SourceLost(reason=reason):
                    self._lost = reason
                case FileChanged(file=file, text=text):
                    self._change(file, text)
        self._resolve()
        return before != (self._in_force(), self.refusals)

    @property
    def synced(self) -> bool:
        """Whether the source was seen whole at least once."""
        return self._synced

    @property
    def files(self) -> int:
        """How many files are known."""
        return len(self._files)

    @property
    def objects(self) -> int:
        """How many objects are in force."""
        return len(self._owners)

    @property
    def cluster(self) -> Cluster:
        """Everything in force."""
        return Cluster().with_objects(entry.item for entry in self._in_force().values())

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """This node's pods that are wired. Of two that claim one interface, the first by name has it."""
        found: dict[str, LocalEndpoint] = {}
        for endpoint in self._wired():
            found.setdefault(endpoint.interface, endpoint)
        return tuple(sorted(found.values(), key=lambda endpoint: endpoint.name))

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is not in force as written, by file."""
        found = [refusal for file in sorted(self._files) for refusal in self._files[file].refusals]
        if self._lost:
            found.append(Refusal("", "", "", self._lost, kept=bool(self._owners)))
        for file in sorted(self._files):
            for kind, name in self._files[file].entries:
                owner = self._owners[kind, name]
                if owner != file:
                    found.append(Refusal(file, f"{kind} {name}", "", f"is already in {owner}, which stays", kept=False))
        owners: dict[str, str] = {}
        for endpoint in self._wired():
            owner = owners.setdefault(endpoint.interface, endpoint.name)
            if owner != endpoint.name:
                file = self._owners["Pod", endpoint.name]
                reason = f"{endpoint.interface} is already that of {owner}"
                found.append(Refusal(file, f"Pod {endpoint.name}", f"metadata.annotations[{INTERFACE}]", reason, False))
        return tuple(found)

    @property
    def held(self) -> Held:
        """What a restart must not lose."""
        return Held(
            documents={
                file: tuple(known.entries[key].content for key in sorted(known.held))
                for file, known in sorted(self._files.items())
                if known.held
            },
            owners={
                f"{kind} {name}": owner
                for (kind, name), owner in sorted(self._owners.items())
                if self._claims[kind, name] > 1
            },
        )

    def _wired(self) -> list[LocalEndpoint]:
        found = [entry.endpoint for entry in self._in_force().values() if entry.endpoint is not None]
        return sorted(found, key=lambda endpoint: endpoint.name)

    def _in_force(self) -> dict[Key, _Entry]:
        return {key: self._files[file].entries[key] for key, file in self._owners.items()}

    def _change(self, file: str, text: str) -> None:
        before = self._files.get(file, _File()).entries
        try:
            documents = load_documents(text, file)
        except PolicyError as error:
            self._keep(file, error)
            return
        said, refused = self._parse(documents)
        meant = {key for _error, keys in refused for key in keys}
        # A refused document that was not there before may be one that was, under a new name: then nothing goes.
        unknown = any(not keys or not before.keys() >= set(keys) for _error, keys in refused)
        held = {key: entry for key, entry in before.items() if key not in said and (unknown or key in meant)}
        refusals = tuple(
            _refusal(error, kept=bool(held) if unknown else any(key in held for key in keys)) for error, keys in refused
        )
        self._files[file] = _File({**held, **said}, frozenset(held), refusals)

    def _keep(self, file: str, error: PolicyError) -> None:
        before = self._files.get(file, _File()).entries
        self._files[file] = _File(before, frozenset(before), (_refusal(error, kept=bool(before)),))

    def _parse(self, documents: Iterable[Document]) -> tuple[dict[Key, _Entry], list[tuple[PolicyError, list[Key]]]]:
        """Good entries, and refused documents with the objects they were meant to be (empty: it can't be told)."""
        said: dict[Key, _Entry] = {}
        refused: list[tuple[PolicyError, list[Key]]] = []
        for document in documents:
            try:
                entries = self._entries(document)
                for kind, name in entries:
                    if (kind, name) in said:
                        raise PolicyError(document.file, f"{kind} {name}", "", "appears twice in this file")
            except PolicyError as error:
                refused.append((error, _meant(document.content)))
            else:
                said.update(entries)
        return said, refused

    def _entries(self, document: Document) -> dict[Key, _Entry]:
        items = parse_document(document)
        is_list = document.content.get("kind") == "List"
        contents = document.content["items"] if is_list else [document.content]
        entries: dict[Key, _Entry] = {}
        for item, content in zip(items, contents, strict=True):
            endpoint = local_endpoint(item, content, self._node) if isinstance(item, Pod) else None
            entries[object_key(item)] = _Entry(item, content, endpoint)
        return entries

    def _resolve(self) -> None:
        """Decide which file an object belongs to when several have it: the one that had it, else the first by name."""
        owners: dict[Key, str] = {}
        self._claims = {}
        for file in sorted(self._files):
            for key in self._files[file].entries:
                self._claims[key] = self._claims.get(key, 0) + 1
                restored = self._restored_owners.get(f"{key[0]} {key[1]}")
                if key not in owners or file in (self._owners.get(key), restored):
                    owners[key] = file
        self._owners = owners
        if self._synced:
            self._restored_owners = {}


def _refusal(error: PolicyError, *, kept: bool) -> Refusal:
    return Refusal(error.file, error.document, error.field, error.reason, kept)


def _meant(content: Any) -> list[Key]:
    """Which objects a refused document was meant to be; empty when that can't be told of all of it."""
    if not isinstance(content, Mapping):
        return []
    if content.get("kind") == "List":
        items = content.get("items")
        if not isinstance(items, list):
            return []
        keys = [_meant(item) for item in items]
        return [key for found in keys for key in found] if all(keys) else []
    kind, metadata = content.get("kind"), content.get("metadata")
    if not isinstance(kind, str) or not isinstance(metadata, Mapping):
        return []
    name, namespace = metadata.get("name"), metadata.get("namespace", "default")
    if not isinstance(name, str) or not isinstance(namespace, str):
        return []
    return [(kind, name if kind in ("Namespace", "Node") else f"{namespace}/{name}")]
