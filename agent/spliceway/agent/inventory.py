"""From source events to objects in force, and to what changed of them. Pure.

A refused document changes nothing; its last good version stays.
Which object a refused document was meant to be is read from its kind and metadata; when not even that can be read, or
the file is no YAML at all, nothing that the file said before goes away. So a typo never removes a policy. What is held
in this way survives a restart of the agent (`Held`), and is given up when the file says it well, or goes. Secrets are
held in memory only: after a restart a refused one is missing, and header matches that need it match nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from spliceway.agent.endpoints import INTERFACE, Claim
from spliceway.agent.hbone import HboneSide
from spliceway.agent.inventoryfiles import NOTHING, File, Files, Owners, Refusal
from spliceway.agent.lefttoistio import LeftToIstio
from spliceway.agent.localpods import LocalPods
from spliceway.agent.manifests import (
    POLICY_KINDS,
    Entry,
    Key,
    Reading,
    Said,
    Shared,
    read_documents,
    read_object,
    read_text,
)
from spliceway.agent.podaddresses import PodAddresses
from spliceway.agent.sources.events import (
    Batch,
    FileChanged,
    FileEvent,
    FileRefused,
    FileRemoved,
    MoreToCome,
    ObjectChanged,
    SourceLost,
)
from spliceway.agent.state import Held
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster, NetworkPolicy, Object
from spliceway.policy.parse_authorization_source import IstioNames

#: Object by kind and name; None: it went.
Changes = Mapping[Key, Object | None]


class Inventory:
    """All objects of the source. Feed it batches, take `changes`; look at `endpoints`, `refusals` and `held`.

    A batch costs what its files hold, whatever else there is.
    """

    def __init__(
        self,
        node: str,
        held: Held | None = None,
        kinds: Collection[str] = tuple(sorted(POLICY_KINDS)),
        istio: IstioNames | None = None,
    ) -> None:
        """`node`: whose pods are local; `held`: what the last agent held; `kinds`: of the policies that are read.

        `istio`: what the mesh calls itself.
        """
        held = held or Held()
        self._reading = Reading(node, POLICY_KINDS - set(kinds), istio)
        self._files = Files()
        self._owners = Owners()
        self._rivals: dict[Key, set[str]] = {}  # other files that have an object, too
        self._wired: dict[str, LocalEndpoint] = {}
        self._claims: dict[str, Claim] = {}
        self._in_audit: set[Key] = set()
        self._policies = 0
        self._changes: dict[Key, Object | None] = {}
        self._lost = ""
        self._synced = False
        self._seen: set[str] | None = set()  # files of the first look, until it is whole
        self._special: set[str] = set()  # files of which more is to be told than their objects
        self._shared = Shared()
        self._addresses = PodAddresses(self.entry)
        self._local = LocalPods(node)
        self.hbone, self.left = HboneSide(self._local), LeftToIstio(self._local)
        self._restored_owners = held.owners
        for file, contents in held.documents.items():
            documents = (Document(file, index, 1, content) for index, content in enumerate(contents, start=1))
            said = read_documents(documents, self._reading).entries
            self._files.put(file, File.of(said, frozenset(said)))
        self._settle(dict.fromkeys(self._files, NOTHING))

    def __repr__(self) -> str:
        return f"Inventory(files={len(self._files)}, objects={len(self._owners)}, refused={len(self.refusals)})"

    def read(self, batch: Batch) -> dict[str, Said]:
        """Take the files of a batch apart: what takes long of `feed`, and may run in a thread."""
        said = {}
        for event in batch:
            if isinstance(event, FileChanged):
                said[event.file] = read_text(event.text, event.file, self._reading)
            elif isinstance(event, ObjectChanged):
                said[event.file] = read_object(event.content, event.file, self._shared, self._reading)
        return said

    def feed(self, batch: Batch, read: Mapping[str, Said] | None = None) -> bool:
        """Take in one change (`read`: its files). False when objects, refusals and what is held are as they were."""
        said = self.read(batch) if read is None else read
        before = {event.file: self._files.of(event.file) for event in batch if isinstance(event, FileEvent)}
        told = (self._refusals, self._held, self._lost)
        if self._seen is not None:
            self._seen.update(before)
            lost = any(isinstance(event, SourceLost) and event.reason for event in batch)
            if not lost and not any(isinstance(event, MoreToCome) for event in batch):
                # The first look names every file that is there: what an earlier agent held of others is gone.
                for file in self._files.keys() - self._seen:
                    before[file] = self._files.drop(file)
                self._synced, self._seen = True, None
        for event in batch:
            match event:
                case FileRemoved(file=file):
                    self._files.drop(file)
                case FileRefused(file=file, reason=reason):
                    self._keep(file, PolicyError(file, "", "", reason))
                case SourceLost(reason=reason):
                    self._lost = reason
                case FileChanged(file=file) | ObjectChanged(file=file):
                    self._change(file, said[file])
        changed = self._settle(before)
        return changed or told != (self._refusals, self._held, self._lost)

    def changes(self) -> Changes:
        """What changed since this was asked last; at first everything. Each address is one pod's (`podaddresses`).

        Policies are as they are enforced where ports are hidden (`hbone`), and HTTP rules are Istio's (`left`).
        """
        taken, self._changes = self._changes, {}
        self._addresses.complete(taken)
        self._local.complete(taken)
        self.hbone.complete(taken)
        self.left.complete(taken)
        return taken

    def warnings(self) -> tuple[str, ...]:
        """What policies don't do as they say, for pods of Istio's on this node."""
        return *self.hbone.warnings(), *self.left.warnings()

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
    def policies(self) -> tuple[int, int]:
        """How many policies there are, and how many of them are in audit mode by their annotation."""
        return self._policies, len(self._in_audit)

    @property
    def cluster(self) -> Cluster:
        """Everything in force."""
        return Cluster().with_objects(self._files.entry(file, key).item for key, file in self._owners.items())

    def annotation(self, key: Key, name: str) -> object:
        """The value of an annotation of an object that is in force; None where there is none."""
        file = self._owners.get(key)
        document = self._files.entry(file, key).document() if file is not None else None
        annotations = ((document or {}).get("metadata") or {}).get("annotations")
        return annotations.get(name) if isinstance(annotations, Mapping) else None

    def names(self, kind: str) -> list[str]:
        """Of all objects of a kind that are in force: «namespace/name», or a name alone."""
        return [name for of, name in self._owners if of == kind]

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """This node's pods that are wired. Of two that claim one interface, the first by name has it."""
        return self._addresses.endpoints(self._endpoints)

    @property
    def claims(self) -> Mapping[str, Claim]:
        """This node's pods that say nothing of their wiring, by «namespace/name»."""
        return self._claims

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is not in force as written, by file."""
        lost = (Refusal("", "", "", self._lost, kept=bool(self._owners)),) if self._lost else ()
        return (*self._refusals, *lost)

    @property
    def held(self) -> Held:
        """What a restart must not lose."""
        return self._held

    def entry(self, key: Key) -> Entry | None:
        """An object that is in force, as it was read."""
        owner = self._owners.get(key)
        return None if owner is None else self._files.entry(owner, key)

    def file_of(self, key: Key) -> str:
        """The file that an object is in force of; empty when it is not."""
        return self._owners.get(key, "")

    def _change(self, file: str, said: Said) -> None:
        if said.broken is not None:
            self._keep(file, said.broken)
            return
        before = self._files.of(file).entries
        meant = {key for _error, keys in said.refused for key in keys}
        # A refused document that was not there before may be one that was, under a new name: then nothing goes.
        unknown = any(not keys or not before.keys() >= set(keys) for _error, keys in said.refused)
        held = {key: entry for key, entry in before.items() if key not in said.entries and (unknown or key in meant)}
        refusals = tuple(
            _refusal(error, kept=bool(held) if unknown else any(key in held for key in keys))
            for error, keys in said.refused
        )
        self._files.put(file, File.of({**held, **said.entries}, frozenset(held), refusals))

    def _keep(self, file: str, error: PolicyError) -> None:
        before = self._files.of(file).entries
        self._files.put(file, File.of(before, frozenset(before), (_refusal(error, kept=bool(before)),)))

    def _settle(self, before: Mapping[str, File]) -> bool:
        """Take in that these files were different: owners, changes, endpoints and what is said of them."""
        claims: dict[Key, set[str]] = {}
        for file, old in before.items():
            new = self._files.of(file).entries
            for key in _differing(old.entries, new):
                claims.setdefault(key, set()).update((file,) if key in new else ())
        for file in before:
            one = self._files.of(file)
            if one.held or one.refusals or one.odd:
                self._special.add(file)
            else:
                self._special.discard(file)
        changed = False
        for key in sorted(claims):
            owner = self._owners.get(key)
            was = before.get(owner, self._files.of(owner)).entries[key] if owner is not None else None
            changed |= self._own(key, was, self._claimants(key, claims[key]))
        if self._synced:
            self._restored_owners = {}
        self._tell()
        return changed

    def _claimants(self, key: Key, new: Iterable[str]) -> set[str]:
        """Files that have an object: of those that had it, and `new` ones."""
        known = {*self._rivals.get(key, ()), *new}
        if key in self._owners:
            known.add(self._owners[key])
        return {file for file in known if key in self._files.of(file).entries}

    def _own(self, key: Key, was: Entry | None, claimants: set[str]) -> bool:
        """Decide which file an object belongs to: the one that had it, else the first by name. Whether it changed."""
        self._rivals.pop(key, None)
        if not claimants:
            self._owners.pop(key, None)
            return self._put(key, was, None)
        preferred = (self._restored_owners.get(f"{key[0]} {key[1]}"), self._owners.get(key))
        owner = next((file for file in preferred if file in claimants), min(claimants))
        assert owner is not None
        self._owners[key] = owner
        if len(claimants) > 1:
            self._rivals[key] = claimants - {owner}
        return self._put(key, was, self._files.entry(owner, key))

    def _put(self, key: Key, was: Entry | None, now: Entry | None) -> bool:
        old, new = was.item if was else None, now.item if now else None
        if _of_node(was) != _of_node(now):
            self._wired.pop(key[1], None)
            self._claims.pop(key[1], None)
            if now and now.endpoint:
                self._wired[key[1]] = now.endpoint
            if now and now.claim:
                self._claims[key[1]] = now.claim
        elif old == new and (was and was.rank) == (now and now.rank):
            return False
        self._changes[key] = new
        self._policies += isinstance(new, NetworkPolicy) - isinstance(old, NetworkPolicy)
        self._in_audit.discard(key)
        if isinstance(new, NetworkPolicy) and new.audit:
            self._in_audit.add(key)
        return True

    def _tell(self) -> None:
        """Make anew what is told of all: endpoints, refusals, what is held. Costs what there is of these."""
        wired: dict[str, LocalEndpoint] = {}
        doubled: list[tuple[str, str]] = []
        for name in sorted(self._wired):
            endpoint = self._wired[name]
            owner = wired.setdefault(endpoint.interface, endpoint)
            if owner is not endpoint:
                doubled.append((name, owner.name))
        self._endpoints = tuple(sorted(wired.values(), key=lambda endpoint: endpoint.name))
        special = {file: self._files[file] for file in sorted(self._special)}
        found = [refusal for one in special.values() for refusal in one.refusals]
        for kind, name in sorted(self._rivals):
            reason = f"is already in {self._owners[kind, name]}, which stays"
            found += [Refusal(file, f"{kind} {name}", "", reason, False) for file in sorted(self._rivals[kind, name])]
        for name, owner_name in doubled:
            reason = f"{self._wired[name].interface} is already that of {owner_name}"
            field = f"metadata.annotations[{INTERFACE}]"
            found.append(Refusal(self._owners["Pod", name], f"Pod {name}", field, reason, False))
        for file, one in special.items():
            own = (key for key in one.odd if self._owners.get(key) == file)
            found += [_refusal(error, kept=False) for key in own for error in one.entries[key].errors]
        self._refusals = tuple(found)
        documents: dict[str, tuple[dict[str, Any], ...]] = {}
        for file, one in special.items():
            held = [one.entries[key].document() for key in sorted(one.held)]
            if kept := tuple(document for document in held if document is not None):
                documents[file] = kept
        owners = {f"{kind} {name}": self._owners[kind, name] for kind, name in sorted(self._rivals)}
        self._held = Held(documents=documents, owners=owners)


def _of_node(entry: Entry | None) -> tuple[LocalEndpoint | None, Claim | None]:
    """What of an entry counts on its own node only."""
    return (entry.endpoint, entry.claim) if entry else (None, None)


def _differing(old: Mapping[Key, Entry], new: Mapping[Key, Entry]) -> Iterable[Key]:
    """Objects that one of the two does not have, or has differently."""
    yield from (key for key in old if key not in new)
    for key, entry in new.items():
        was = old.get(key)
        if was is not entry and (was is None or _said(was) != _said(entry)):
            yield key


def _said(entry: Entry) -> tuple[object, ...]:
    """What of it matters to others."""
    return entry.item, entry.endpoint, entry.claim, entry.rank


def _refusal(error: PolicyError, *, kept: bool) -> Refusal:
    return Refusal(error.file, error.document, error.field, error.reason, kept)
