"""Bodies in protobuf, which clients in Go send of the server's own kinds: those of them that are needed here.

Source: apimachinery pkg/runtime/serializer/protobuf and generated.proto of runtime, meta/v1 and core/v1.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
KIND = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"

#: Field number → name and type: text, bytes (base64 in JSON), int, bool, a message, or a map of text to one of these.
_Fields = Mapping[int, tuple[str, Any]]
_UNKNOWN: _Fields = {1: ("type", {1: ("apiVersion", str), 2: ("kind", str)}), 2: ("raw", None)}
_META: _Fields = {
    1: ("name", str),
    2: ("generateName", str),
    3: ("namespace", str),
    5: ("uid", str),
    6: ("resourceVersion", str),
    11: ("labels", (str,)),
    12: ("annotations", (str,)),
}
_MESSAGES: Mapping[str, _Fields] = {
    "Secret": {1: ("metadata", _META), 2: ("data", (bytes,)), 3: ("type", str), 5: ("immutable", bool)},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", int),
        2: ("preconditions", {1: ("uid", str), 2: ("resourceVersion", str)}),
        4: ("propagationPolicy", str),
    },
}


def decoded(body: bytes) -> Json:
    """As JSON has it. Raises ValueError for what is no such body, LookupError for kinds that are not known here."""
    if not body.startswith(_MAGIC):
        raise ValueError("a body in protobuf begins with k8s")
    outer = _message(body[len(_MAGIC) :], _UNKNOWN)
    found = _message(outer["raw"], _MESSAGES[outer["type"]["kind"]])
    return {**outer["type"], **found}


def _message(data: bytes, fields: _Fields) -> Json:
    found: Json = {}
    for number, value in _wire(data):
        if number not in fields:
            continue
        name, kind = fields[number]
        if isinstance(kind, tuple):
            entry = _message(bytes(value), {1: ("key", str), 2: ("value", kind[0])})
            found.setdefault(name, {})[entry.get("key", "")] = entry.get("value", "")
        elif value or kind not in (str, int, bool):
            found[name] = _value(value, kind)
    return found


def _value(value: Any, kind: Any) -> Any:
    if kind is None:
        return value
    if kind is str:
        return value.decode()
    if kind is bytes:
        return base64.b64encode(value).decode()
    return _message(value, kind) if isinstance(kind, Mapping) else kind(value)


def _wire(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields: bytes, or int."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        elif tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        else:
            raise ValueError(f"wire type {tag & 7}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
