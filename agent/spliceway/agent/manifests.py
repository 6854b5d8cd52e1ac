"""One file of the source as objects: what it says, and what is refused of it. Pure."""

from __future__ import annotations

import marshal
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

import msgspec

from spliceway.agent.configsections import PolicyKind
from spliceway.agent.endpoints import Claim, local_endpoint
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Node, Object, Pod, Secret, object_key
from spliceway.policy.parse import parse_document
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


class Entry(msgspec.Struct, frozen=True):
    """One good object, and the document it came in (an item, when that was a List), packed: a cluster has many.

    The document of a Secret is not kept: what is held is written to disk, and a Secret must not be. `errors`: what is
    refused of it and leaves the rest in force.
    """

    item: Object
    packed: bytes
    endpoint: LocalEndpoint | None = None
    errors: tuple[PolicyError, ...] = ()
    claim: Claim | None = None

    def document(self) -> dict[str, Any] | None:
        """The document, None where it is not kept."""
        return marshal.loads(self.packed) if self.packed else None  # packed by us, in this process


class Said(msgspec.Struct, frozen=True):
    """What a file says. `refused`: errors with the objects they were meant to be (empty: it can't be told).

    `broken`: the text is no YAML, and says nothing.
    """

    entries: dict[Key, Entry] = {}
    refused: tuple[tuple[PolicyError, tuple[Key, ...]], ...] = ()
    broken: PolicyError | None = None


def read_text(text: str, file: str, node: str, left_out: Collection[str] = ()) -> Said:
    """Take a file apart. `node`: whose pods are local; `left_out`: kinds that are not looked at, good or bad."""
    try:
        documents = load_documents(text, file)
    except PolicyError as error:
        return Said(broken=error)
    return read_documents(documents, node, left_out)


def read_documents(documents: Iterable[Document], node: str, left_out: Collection[str] = ()) -> Said:
    """Take documents of one file apart."""
    said: dict[Key, Entry] = {}
    refused: list[tuple[PolicyError, tuple[Key, ...]]] = []
    for each in documents:
        document = _without(each, left_out) if left_out else each
        if document is None:
            continue
        try:
            entries = _entries(document, node)
            for kind, name in entries:
                if (kind, name) in said:
                    raise PolicyError(document.file, f"{kind} {name}", "", "appears twice in this file")
        except PolicyError as error:
            refused.append((error, tuple(_meant(document.content))))
        else:
            said.update(entries)
    return Said(said, tuple(refused))


def _entries(document: Document, node: str) -> dict[Key, Entry]:
    items = parse_document(document)
    is_list = document.content.get("kind") == "List"
    contents = document.content["items"] if is_list else [document.content]
    entries: dict[Key, Entry] = {}
    for item, content in zip(items, contents, strict=True):
        wired = local_endpoint(item, content, node) if isinstance(item, Pod) else None
        packed = b"" if isinstance(item, Secret) else marshal.dumps(content)
        errors = wired.errors if wired else ()
        if isinstance(item, Node):
            errors = annotation_errors(item, content["metadata"].get("annotations"))
        endpoint, claim = (wired.endpoint, wired.claim) if wired else (None, None)
        entries[object_key(item)] = Entry(item, packed, endpoint, errors, claim)
    return entries


def _without(document: Document, left_out: Collection[str]) -> Document | None:
    """The document, or what is left of a List, without objects of these kinds; None when it is one."""
    content = document.content
    if content.get("kind") in left_out:
        return None
    items = content.get("items")
    if content.get("kind") != "List" or not isinstance(items, list):
        return document
    kept = [item for item in items if not (isinstance(item, Mapping) and item.get("kind") in left_out)]
    return msgspec.structs.replace(document, content={**content, "items": kept}) if len(kept) < len(items) else document


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
