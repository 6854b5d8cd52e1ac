"""The status objects as the API server has them: read by typed decoding, kept small, changed by revision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.conditions import Status
from spliceway.agent.policystatus.ledger import Written
from spliceway.agent.policystatus.naming import status_name
from spliceway.agent.policystatus.resources import API_VERSION

Json = dict[str, Any]


class Held(msgspec.Struct, frozen=True):
    """One of them. `owner`: the uid of the policy; `status` None: not written yet, or not to be read by us."""

    uid: str
    revision: str
    owner: str
    status: Status | None


class _Owner(msgspec.Struct):
    uid: str = ""


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    owner_references: list[_Owner] = []


class _Object(msgspec.Struct):
    metadata: _Metadata
    status: Any = None


def read(content: Mapping[str, Any]) -> tuple[str, str, Held]:
    """Namespace, name, and what there is. Raises msgspec.ValidationError."""
    found = msgspec.convert(content, type=_Object)
    metadata = found.metadata
    owner = metadata.owner_references[0].uid if metadata.owner_references else ""
    try:
        status = msgspec.convert(found.status, type=Status) if found.status else None
    except msgspec.ValidationError:  # of another version of us: written anew
        status = None
    return metadata.namespace, metadata.name, Held(metadata.uid, metadata.resource_version, owner, status)


def new_object(key: Key, policy: Written) -> Json:
    """The status object of a policy, without a status. It belongs to the policy, and is collected with it."""
    resource, namespace, name = status_name(key)
    kind, path = key
    named = {"kind": kind, "name": path.rpartition("/")[2], "uid": policy.version.uid}
    about = {"apiVersion": policy.api_version, **named}
    metadata: Json = {"name": name, "ownerReferences": [about]}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": API_VERSION, "kind": resource.kind, "metadata": metadata, "spec": {"policy": about}}


def with_status(made: Json, held: Held, status: Status) -> Json:
    """The object with this status, to be put in place of that revision and of no other."""
    metadata = {**made["metadata"], "resourceVersion": held.revision, "uid": held.uid}
    return {**made, "metadata": metadata, "status": msgspec.to_builtins(status)}
