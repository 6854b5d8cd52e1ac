"""Which version of each policy the source has, and which is in force here. Pure.

What is in force is told by a digest of what counts of a policy, beside uid and generation: what annotations say
(enforcement, HTTP rules) is no new generation, and a policy that is made anew may begin with the same one.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from spliceway.agent.manifests import POLICY_KINDS, Key
from spliceway.agent.sources.events import Batch, FileRemoved, ObjectChanged
from spliceway.policy.istio.objects import is_translated
from spliceway.policy.parse_metadata import ENFORCEMENT, HTTP_RULES

Json = Mapping[str, Any]
_SOURCE = "kubernetes:"


class Version(msgspec.Struct, frozen=True):
    """A version of a policy, the same on every node."""

    uid: str
    generation: int
    digest: str

    @property
    def text(self) -> str:
        """As reports have it."""
        return f"{self.uid}/{self.generation}/{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """The other way. Raises ValueError."""
        uid, generation, digest = text.split("/")
        return cls(uid, int(generation), digest)


class Written(msgspec.Struct, frozen=True):
    """A policy as the source has it. `since`: the resourceVersion in which this version was seen first."""

    version: Version
    api_version: str
    since: int


class Ledger:
    """Follows batches of a Kubernetes source. `saw` each, `asked` when it is wanted, `reached` when it is in force."""

    def __init__(self) -> None:
        self.written: dict[Key, Written] = {}
        self.in_force: dict[Key, Version] = {}
        #: Kind → the highest resourceVersion of it that is in force (or refused).
        self.positions: dict[str, int] = {}
        #: Nodes of the cluster, with their uids.
        self.nodes: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._heard: dict[str, int] = {}
        self._dirty: dict[Key, None] = {}
        self._waiting: deque[tuple[int, dict[Key, Version | None], dict[str, int]]] = deque()

    def __repr__(self) -> str:
        return f"Ledger(policies={len(self.written)}, in_force={len(self.in_force)}, waiting={len(self._waiting)})"

    @property
    def heard(self) -> dict[str, int]:
        """`positions`, and beyond them what others have written into policies.

        That is no news to anybody, and no reason to report; but an agent that has come later, and writes for all, has
        seen the policy first as it was left then.
        """
        return self.positions if self._dirty or self._waiting else {**self.positions, **self._heard}

    def saw(self, batch: Batch) -> None:
        """Take in what the source says."""
        for event in batch:
            if isinstance(event, ObjectChanged):
                kind, name = _key(event.file)
                if is_translated(event.content):  # it says again what another policy says
                    self._went((kind, name))
                elif kind in POLICY_KINDS:
                    self._policy((kind, name), event.content)
                elif kind == "Node":
                    self.nodes[name] = str(event.content["metadata"].get("uid", ""))
            elif isinstance(event, FileRemoved):
                kind, name = _key(event.file)
                if kind == "Node":
                    self.nodes.pop(name, None)
                else:
                    self._went((kind, name))

    def asked(self, number: int, document: Callable[[Key], Json | None]) -> None:
        """All that was seen is in force when the intent of this number is. `document`: a policy's last good one."""
        if not self._dirty:
            return
        found = {key: version_of(told) if (told := document(key)) is not None else None for key in self._dirty}
        self._dirty = {}
        self._waiting.append((number, found, dict(self._seen)))

    def reached(self, number: int) -> None:
        """Intents up to this one are in force."""
        while self._waiting and self._waiting[0][0] <= number:
            _number, found, self.positions = self._waiting.popleft()
            for key, version in found.items():
                if version is None:
                    self.in_force.pop(key, None)
                else:
                    self.in_force[key] = version

    def _went(self, key: Key) -> None:
        if self.written.pop(key, None) is not None:
            self._dirty[key] = None

    def _policy(self, key: Key, content: Json) -> None:
        version = version_of(content)
        revision = _number(content["metadata"].get("resourceVersion", ""))
        before = self.written.get(key)
        if before is None or before.version != version:
            self.written[key] = Written(version, str(content.get("apiVersion", "")), revision)
            self._dirty[key] = None
            self._seen[key[0]] = max(revision, self._seen.get(key[0], 0))
        self._heard[key[0]] = max(revision, self._heard.get(key[0], 0))


def version_of(content: Json) -> Version:
    """Of a policy's document."""
    metadata = content.get("metadata") or {}
    counts: dict[str, Any] = {
        name: value for name, value in content.items() if name not in ("apiVersion", "kind", "metadata", "status")
    }
    annotations = metadata.get("annotations")
    if isinstance(annotations, Mapping):
        counts.update((name, annotations[name]) for name in (ENFORCEMENT, HTTP_RULES) if name in annotations)
    text = msgspec.json.encode(counts, order="deterministic")
    generation = metadata.get("generation")
    return Version(
        str(metadata.get("uid", "")),
        generation if isinstance(generation, int) else 0,
        hashlib.sha256(text).hexdigest()[:16],
    )


def file_of(key: Key) -> str:
    """What the source calls an object."""
    return f"{_SOURCE}{key[0]}/{key[1]}"


def _key(file: str) -> Key:
    kind, _, name = file.removeprefix(_SOURCE).partition("/")
    return kind, name


def _number(revision: object) -> int:
    """Revisions of one kind can be compared as numbers (KEP-5504); one that is none is older than all."""
    return int(revision) if isinstance(revision, str) and revision.isdecimal() else 0
