"""Patches: JSON merge patch (RFC 7386), JSON patch (RFC 6902) and server-side apply.

Source: kubernetes.io/docs/reference/using-api/server-side-apply. Lists are atomic here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from support.kubeapi.errors import ApiError, bad_request

Json = dict[str, Any]
MERGE, JSON_PATCH, STRATEGIC, APPLY = (
    f"application/{kind}"
    for kind in ("merge-patch+json", "json-patch+json", "strategic-merge-patch+json", "apply-patch+yaml")
)


def merged(value: Any, patch: Any) -> Any:
    """A value with a merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), part)
    return result


def json_patched(content: Json, operations: Any) -> Json:
    """An object with a JSON patch. Raises ApiError."""
    root = {"": copy.deepcopy(content)}
    for operation in operations:
        try:
            parent, key = _find(root, operation["path"])
            _operate(parent, key, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ApiError(
                422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
            ) from error
    return root[""]


def _find(root: Any, path: str) -> tuple[Any, Any]:
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in ["", *path.split("/")[1:]])
    for part in parents:
        root = root[int(part)] if isinstance(root, list) else root[part]
    return root, (last if not isinstance(root, list) else len(root) if last == "-" else int(last))


def _operate(parent: Any, key: Any, operation: Json) -> None:
    match operation["op"]:
        case "add" if isinstance(parent, list):
            parent.insert(key, operation["value"])
        case "add":
            parent[key] = operation["value"]
        case "replace":
            parent[key]
            parent[key] = operation["value"]
        case "remove":
            del parent[key]
        case "test":
            if parent[key] != operation["value"]:
                raise ValueError(f"testing value {operation['path']} failed")
        case other:
            raise ValueError(f"unexpected kind: {other}")


def applied(content: Json, text: bytes, manager: str, *, force: bool) -> Json:
    """An object with what a manager applies: what it said before and does not say now goes. Raises ApiError (409)."""
    try:
        wanted = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding YAML: {error}") from error
    metadata = wanted.setdefault("metadata", {})
    if metadata.pop("managedFields", None):
        raise bad_request("metadata.managedFields must be nil")
    mine = {path for path, _value in _leaves(wanted) if path[:1] not in (("apiVersion",), ("kind",))}
    mine -= {("metadata", "name"), ("metadata", "namespace")}
    entries = content["metadata"].get("managedFields", [])
    result = copy.deepcopy(content)
    others: list[Json] = []
    for entry in entries:
        theirs = set(_paths(entry["fieldsV1"]))
        if entry["manager"] == manager:
            for path in theirs - mine:
                _remove(result, path)
            continue
        clash = {path for path in theirs & mine if _get(content, path) != _get(wanted, path)}
        if clash and not force:
            where = ", ".join("." + ".".join(path) for path in sorted(clash))
            message = f'Apply failed with {len(clash)} conflict: conflict with "{entry["manager"]}": {where}'
            raise ApiError(409, "Conflict", message)
        others.append({**entry, "fieldsV1": _tree(theirs - clash)})
    result = {**merged(result, wanted)}
    own = {
        "manager": manager,
        "operation": "Apply",
        "apiVersion": wanted.get("apiVersion", ""),
        "fieldsType": "FieldsV1",
        "fieldsV1": _tree(mine),
    }
    result["metadata"]["managedFields"] = [*others, own]
    return result


def body_of(kind: str, body: bytes) -> Any:
    """The patch of a request. Raises ApiError (415, 400)."""
    if kind not in (MERGE, JSON_PATCH, STRATEGIC, APPLY):
        raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {kind}")
    if kind == APPLY:
        return body
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise bad_request(f"error decoding patch: {error}") from error


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif path:
        yield path, value


def _tree(paths: set[tuple[str, ...]]) -> Json:
    tree: Json = {}
    for path in sorted(paths):
        at = tree
        for part in path:
            at = at.setdefault(f"f:{part}", {})
    return tree


def _paths(tree: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, below in tree.items():
        here = (*path, key.removeprefix("f:"))
        if below:
            yield from _paths(below, here)
        else:
            yield here


def _get(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _remove(value: Any, path: tuple[str, ...]) -> None:
    for part in path[:-1]:
        value = value.get(part, {})
    if isinstance(value, dict):
        value.pop(path[-1], None)
