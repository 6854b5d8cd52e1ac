"""Reading Kubernetes manifests for a testbed, and writing them as the agent's directory source expects them.

Only what builds a node is read here (kind, metadata, a few fields of spec and status); policies, Services and whatever
else the agent knows are passed on as they are, because judging them is the agent's task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from spliceway.agent.testbed.errors import TestbedError
from spliceway.policy.documents import Document, load_documents
from spliceway.policy.errors import PolicyError
from spliceway.policy.parse import READERS, parse_document

Object = Mapping[str, Any]

#: Kinds that the cluster is made of. They go to `pods/`.
CLUSTER_KINDS = frozenset({"Namespace", "Node", "Pod"})
#: What else the agent reads: policies and what they refer to. They go to `policies/`, unread.
POLICY_KINDS = frozenset(kind for _version, kind in READERS) - CLUSTER_KINDS
#: Of these, what a cluster's controllers and its kube-proxy would look at.
_OF_SERVICES = frozenset({"Service", "EndpointSlice"})


class Manifest(msgspec.Struct, frozen=True):
    """One document and where it was written: `pods.yaml[2]`."""

    document: Object
    where: str

    @property
    def kind(self) -> str:
        """Kubernetes kind."""
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        """metadata.name."""
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """metadata.namespace, «default» when not given."""
        return str(self.document["metadata"].get("namespace", "default"))

    def mapping(self, *path: str) -> Object:
        """The mapping at `path`; empty when any part is missing.

        Raises TestbedError when something else is there.
        """
        value: Any = self.document
        for key in path:
            value = value.get(key)
            if value is None:
                return {}
            if not isinstance(value, Mapping):
                raise TestbedError(f"{self.where}: {'.'.join(path)}: must be a mapping")
        found: Object = value
        return found

    def items(self, *path: str) -> list[Object]:
        """The list of mappings at `path`; empty when it is missing. Raises TestbedError for anything else."""
        value = self.mapping(*path[:-1]).get(path[-1])
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise TestbedError(f"{self.where}: {'.'.join(path)}: must be a list of mappings")
        return value


def load(sources: Iterable[Path | Object]) -> list[Manifest]:
    """Read manifests from YAML files (any number of documents each), directories of them, or ready documents.

    Namespaces, Nodes and Pods are checked by the parser that the agent reads them with, so that it will not refuse what
    was built. Raises TestbedError with file and field when one can't be used.
    """
    found: list[Manifest] = []
    for position, source in enumerate(sources, 1):
        if isinstance(source, Mapping):
            found.append(_checked(Document(f"document {position}", position, 0, source), f"document {position}"))
            continue
        for file in files(source):
            found += [_checked(document, f"{file}[{document.index}]") for document in _documents(file)]
    return found


def described(paths: Iterable[Path]) -> list[Manifest]:
    """Services and EndpointSlices of files that the agent will read, without what it will refuse."""
    found = []
    for path in paths:
        try:
            documents = load_documents(path.read_text(), str(path))
        except (PolicyError, OSError, UnicodeDecodeError):
            continue
        for document in documents:
            if not isinstance(document.content, Mapping) or document.content.get("kind") not in _OF_SERVICES:
                continue
            found.append(Manifest(document=document.content, where=f"{path}[{document.index}]"))
    return list(filter(is_sound, found))


def is_sound(manifest: Manifest) -> bool:
    """Whether the agent will take it."""
    try:
        parse_document(Document(manifest.where, 1, 0, manifest.document))
    except PolicyError:
        return False
    return True


def files(path: Path) -> list[Path]:
    """`path` itself, or the YAML files directly in it when it is a directory, sorted by name."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())
    return [path]


def dump(documents: Iterable[Object]) -> str:
    """YAML text of documents, keys in the order given."""
    return yaml.safe_dump_all(documents, sort_keys=False, default_flow_style=False)


def write(path: Path, text: str) -> None:
    """Put a file in place in one step, as an editor or the kubelet does: the reader sees the old or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.rename(path)


def _documents(file: Path) -> list[Document]:
    try:
        return load_documents(file.read_text(), str(file))
    except OSError as error:
        raise TestbedError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TestbedError(f"{file}: is not UTF-8") from error
    except PolicyError as error:
        raise TestbedError(str(error)) from error


def _checked(document: Document, where: str) -> Manifest:
    content = document.content
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if kind in POLICY_KINDS:
        name = content.get("metadata", {}).get("name") if isinstance(content.get("metadata", {}), Mapping) else None
        if not isinstance(name, str) or not name:
            raise TestbedError(f"{where}: metadata.name: is missing")
        return Manifest(document=content, where=where)
    if kind not in CLUSTER_KINDS:
        known = ", ".join(sorted(CLUSTER_KINDS | POLICY_KINDS))
        raise TestbedError(f"{where}: kind: {kind!r} is not something a testbed is built from ({known})")
    try:
        parse_document(document)
    except PolicyError as error:
        raise TestbedError(str(error)) from error
    return Manifest(document=content, where=where)
