"""One file of the source as objects: what it says, and what is refused of it. Pure."""

from __future__ import annotations

import marshal
import traceback
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any, get_args

import msgspec

from spliceway.agent.configsections import PolicyKind
from spliceway.agent.endpoints import Claim, local_endpoint
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.istio.objects import is_translated
from spliceway.policy.model import EndpointSlice, Node, Object, Pod, Secret, object_key
from spliceway.policy.parse import parse_document
from spliceway.policy.parse_authorization_source import IstioNames
from spliceway.policy.parse_objects import annotation_errors

#: Kind and «namespace/name» of an object; of a clusterwide one the name alone.
Key = tuple[str, str]

#: Kinds whose objects are in no namespace.
CLUSTERWIDE = frozenset(
    (
        "Namespace",
        "Node",
        "CiliumCIDRGroup",
        "CiliumClusterwideNetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
    )
)


#: Kinds of policies: those that `policies.kinds` may leave to others.
POLICY_KINDS: frozenset[str] = frozenset(get_args(PolicyKind))


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One good object, and the document it came in (an item, when that was a List), packed: a cluster has many.

    The document of a Secret is not kept: what is held is written to disk, and a Secret must not be. `errors`: what is
    refused of it and leaves the rest in force. `rank`: of two pods with one address, the one with more has it.
    """

    item: Object
    packed: bytes
    endpoint: LocalEndpoint | None = None
    errors: tuple[PolicyError, ...] = ()
    claim: Claim | None = None
    rank: int = 0

    def document(self) -> dict[str, Any] | None:
        """The document, None where it is not kept."""
        return marshal.loads(self.packed) if self.packed else None  # packed by us, in this process


class Reading(msgspec.Struct, frozen=True):
    """How documents are read. `node`: whose pods are local; `left_out`: kinds that are not looked at, good or bad.

    `istio`: what the mesh calls itself. AuthorizationPolicies that we have made ourselves are never looked at.
    """

    node: str
    left_out: frozenset[str] = frozenset()
    istio: IstioNames | None = None


class Said(msgspec.Struct, frozen=True):
    """What a file says. `refused`: errors with the objects they were meant to be (empty: it can't be told).

    `broken`: the text is no YAML, and says nothing.
    """

    entries: dict[Key, Entry] = {}
    refused: tuple[tuple[PolicyError, tuple[Key, ...]], ...] = ()
    broken: PolicyError | None = None


def read_text(text: str, file: str, reading: Reading) -> Said:
    """Take a file apart."""
    try:
        documents = load_documents(text, file)
    except PolicyError as error:
        return Said(broken=error)
    return read_documents(documents, reading)


def read_documents(documents: Iterable[Document], reading: Reading) -> Said:
    """Take documents of one file apart."""
    said: dict[Key, Entry] = {}
    refused: list[tuple[PolicyError, tuple[Key, ...]]] = []
    for document in documents:
        try:
            if (kept := _without(document, reading.left_out)) is None:
                continue
            document = kept  # what is left out of a List is not refused with it
            entries = _entries(document, reading)
            for kind, name in entries:
                if (kind, name) in said:
                    raise PolicyError(document.file, f"{kind} {name}", "", "appears twice in this file")
        except PolicyError as error:
            refused.append((error, tuple(_meant(document.content))))
        except Exception as error:  # a fault of ours must not end the agent, and with it what all others say
            refused.append((_fault(document, error), tuple(_meant(document.content))))
        else:
            said.update(entries)
    return Said(said, tuple(refused))


def _fault(document: Document, error: Exception) -> PolicyError:
    """Without the error's own words: they may be of a Secret."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{PurePath(where.filename).name}:{where.lineno}"
    what = f"document {document.index} (line {document.line})"
    if len(meant := _meant(document.content)) == 1:
        what = " ".join(meant[0])
    reason = f"can't be read, by a fault of Spliceway's own, which please report ({type(error).__name__} in {place})"
    return PolicyError(document.file, what, "", reason)


def read_object(content: Mapping[str, Any], file: str, shared: Shared, reading: Reading) -> Said:
    """Take one object of a cluster apart. What many have alike is kept once, in `shared`."""
    told = file if ":" in file else f"kubernetes:{content.get('kind')}/{file}"
    said = read_documents((Document(told, 1, 1, content),), reading)
    if len(said.entries) != 1:
        return said
    ((key, entry),) = said.entries.items()
    item, packed = entry.item, entry.packed
    if isinstance(item, Pod):
        item = shared.pod(item)
    # A cluster has many of these, and its API server refuses what is wrong with them: they need not survive a restart.
    if isinstance(item, EndpointSlice) or (isinstance(item, Pod) and item.node != reading.node):
        packed = b""
    return Said({key: msgspec.structs.replace(entry, item=item, packed=packed)})


class Shared:
    """Values that many pods have alike, each kept once. When there are too many it forgets them: equal is enough."""

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._values: dict[Any, Any] = {}

    def pod(self, pod: Pod) -> Pod:
        """A pod that is as good as this one."""
        return msgspec.structs.replace(
            pod,
            namespace=self._one(pod.namespace, pod.namespace),
            name=pod.key,
            file="",  # the inventory knows
            labels=self._one(frozenset(pod.labels.items()), pod.labels),
            node=self._one(pod.node, pod.node),
            service_account=self._one(pod.service_account, pod.service_account),
            ports=self._one(pod.ports, pod.ports),
        )

    def _one(self, key: Any, value: Any) -> Any:
        if len(self._values) >= self._most:
            self._values.clear()
        return self._values.setdefault(key, value)


def _entries(document: Document, reading: Reading) -> dict[Key, Entry]:
    items = parse_document(document, reading.istio)
    is_list = document.content.get("kind") == "List"
    contents = document.content["items"] if is_list else [document.content]
    entries: dict[Key, Entry] = {}
    for item, content in zip(items, contents, strict=True):
        wired = local_endpoint(item, content, reading.node) if isinstance(item, Pod) else None
        packed = b"" if isinstance(item, Secret) else marshal.dumps(content)
        errors = wired.errors if wired else ()
        if isinstance(item, Node):
            errors = annotation_errors(item, content["metadata"].get("annotations"))
        endpoint, claim = (wired.endpoint, wired.claim) if wired else (None, None)
        rank = _rank(content["metadata"]) if isinstance(item, Pod) else 0
        entries[object_key(item)] = Entry(item, packed, endpoint, errors, claim, rank)
    return entries


def _without(document: Document, left_out: Collection[str]) -> Document | None:
    """The document, or what is left of a List, without objects of these kinds and our own; None when it is one."""
    content: object = document.content
    if _is_one_of(content, left_out) or _is_own(content):
        return None
    # What is no mapping is refused by whoever reads it.
    if not _is_one_of(content, ("List",)) or not isinstance(items := document.content.get("items"), list):
        return document
    kept = [item for item in items if not _is_one_of(item, left_out) and not _is_own(item)]
    if len(kept) == len(items):
        return document
    return msgspec.structs.replace(document, content={**document.content, "items": kept})


def _is_own(content: object) -> bool:
    """Whether it is a translation of ours: what it says another policy says already."""
    return isinstance(content, Mapping) and is_translated(content)


def _is_one_of(content: object, kinds: Collection[str]) -> bool:
    kind = content.get("kind") if isinstance(content, Mapping) else None
    return isinstance(kind, str) and kind in kinds


def _rank(metadata: Mapping[str, Any]) -> int:
    """Who has an address that two pods claim: one that stays before one that is being deleted, then the younger one.

    Seconds since 1970, and one bit above them. 0: nothing is known of its age.
    """
    created = metadata.get("creationTimestamp")
    try:
        age = int(datetime.fromisoformat(created).timestamp()) if isinstance(created, str) else 0
    except (ValueError, OverflowError, OSError):
        return 0
    return age if metadata.get("deletionTimestamp") or not age else age | 1 << 40


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
    return [(kind, name if kind in CLUSTERWIDE else f"{namespace}/{name}")]
