"""What must not be shown of a message: private keys, passwords, tokens and values of Secrets. Pure.

Two sources say what that is. Envoy's own types mark fields as sensitive (option `udpa.annotations.sensitive`), and what
is below such a field becomes `[redacted]`, as in Envoy's own config_dump. And a snapshot tells which texts in a
resource are values of Secrets: these become `(secret)`, wherever they stand, also in the middle of a longer text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any as Anything

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import StringValue
from udpa.annotations import sensitive_pb2

from spliceway.xds.protocol.refusal import HIDDEN
from spliceway.xds.resources.messagetypes import message_class

#: Instead of what Envoy's types call sensitive: Envoy's own word.
REDACTED = "[redacted]"
#: Shorter ones are replaced only where they are the whole text: `1` in the middle of a text says nothing, and replacing
#: it would leave nothing to read.
_MIN_PART = 4
#: Structs that stand for a message of another type.
_TYPED_STRUCTS = frozenset({"xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"})
#: Around the type URL in what stands for an Any of an unknown type while it becomes JSON.
_MARK = "\0any\0"


class Hider:
    """Replaces the given texts in texts and bytes."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._whole = frozenset(value for value in secrets if value)
        # The longest first: one may be part of another.
        self._parts = sorted((value for value in self._whole if len(value) >= _MIN_PART), key=len, reverse=True)
        self._bytes = sorted({form for value in self._whole for form in _encoded(value)}, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"<Hider of {len(self._whole)} texts>"

    def text(self, value: str) -> str:
        """The text without secrets."""
        if value in self._whole:
            return HIDDEN
        for part in self._parts:
            if part in value:
                value = value.replace(part, HIDDEN)
        return value

    def data(self, value: bytes) -> bytes:
        """The bytes without secrets."""
        for form in self._bytes:
            if value == form:
                return HIDDEN.encode()
            if len(form) >= _MIN_PART and form in value:
                value = value.replace(form, HIDDEN.encode())
        return value


def decoded(url: str, body: bytes) -> Message | None:
    """The message of that type URL; None when the type isn't known here or the bytes aren't one."""
    kind = message_class(url.rpartition("/")[2])
    if kind is None:
        return None
    try:
        return kind.FromString(body)
    except DecodeError:
        return None


def redact(message: Message, hider: Hider, *, stand_in: bool = False) -> None:
    """Take out of `message` what must not be shown, in place, also in every Any and TypedStruct inside.

    An Any of a type that isn't known here can't be looked into: its value is taken out whole. With `stand_in` another
    message takes its place, of which `as_json` makes a note.
    """
    _walk(message, hider, sensitive=False, stand_in=stand_in)


def as_json(message: Message) -> dict[str, Anything]:
    """A message that is redacted, with `stand_in`, as a JSON object with the field names of its type.

    Envoy's tools can read it again. An Any of a type that isn't known here has a note instead of its content.
    """
    try:
        value = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (json_format.Error, ValueError) as error:  # numbers in a Struct that JSON doesn't have
        return {"(not shown)": str(error)}
    found: dict[str, Anything] = _unmarked(value) if _MARK.encode() in message.SerializeToString() else value
    return found


def _walk(message: Message, hider: Hider, *, sensitive: bool, stand_in: bool) -> None:
    name = message.DESCRIPTOR.full_name
    if name == Any.DESCRIPTOR.full_name:
        _any(message, hider, sensitive=sensitive, stand_in=stand_in)
        return
    if name in _TYPED_STRUCTS and not sensitive:
        _typed_struct(message, hider)
    for field, value in message.ListFields():
        hidden = sensitive or _is_sensitive(field)
        if isinstance(value, Message):
            _walk(value, hider, sensitive=hidden, stand_in=stand_in)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            _map(value, hider, sensitive=hidden, stand_in=stand_in)
        elif field.message_type is not None:
            for item in value:
                _walk(item, hider, sensitive=hidden, stand_in=stand_in)
        elif isinstance(value, str | bytes):
            shown = _scalar(value, hider, sensitive=hidden)
            if shown != value:
                setattr(message, field.name, shown)
        elif isinstance(value, bool | int | float):
            if hidden:
                message.ClearField(field.name)
        else:
            _repeated(value, hider, sensitive=hidden)


def _any(message: Anything, hider: Hider, *, sensitive: bool, stand_in: bool) -> None:
    inner = decoded(message.type_url, message.value)
    if inner is None:
        if stand_in:
            note = f"({len(message.value)} bytes of a type that is not known here)"
            message.Pack(StringValue(value=_MARK + message.type_url + _MARK + note))
        else:
            message.value = b""
        return
    _walk(inner, hider, sensitive=sensitive, stand_in=stand_in)
    value = inner.SerializeToString(deterministic=True)
    if value != message.value:
        message.value = value


def _typed_struct(message: Anything, hider: Hider) -> None:
    kind = message_class(message.type_url.rpartition("/")[2])
    if kind is None:
        return  # its texts are looked at as those of any other Struct
    inner = kind()
    try:
        json_format.ParseDict(json_format.MessageToDict(message.value), inner, ignore_unknown_fields=True)
    except (json_format.Error, TypeError, ValueError):
        return
    before = inner.SerializeToString(deterministic=True)
    _walk(inner, hider, sensitive=False, stand_in=False)
    if inner.SerializeToString(deterministic=True) != before:
        message.value.Clear()
        message.value.update(json_format.MessageToDict(inner, preserving_proto_field_name=True))


def _map(entries: Anything, hider: Hider, *, sensitive: bool, stand_in: bool) -> None:
    for key in list(entries):
        value = entries[key]
        if isinstance(value, Message):
            _walk(value, hider, sensitive=sensitive, stand_in=stand_in)
        elif isinstance(value, str | bytes):
            entries[key] = _scalar(value, hider, sensitive=sensitive)


def _repeated(values: Anything, hider: Hider, *, sensitive: bool) -> None:
    if values and not isinstance(values[0], str | bytes):
        if sensitive:
            del values[:]
        return
    for index, value in enumerate(values):
        values[index] = _scalar(value, hider, sensitive=sensitive)


def _scalar(value: str | bytes, hider: Hider, *, sensitive: bool) -> str | bytes:
    if isinstance(value, str):
        return REDACTED if sensitive else hider.text(value)
    return REDACTED.encode() if sensitive else hider.data(value)


@lru_cache(maxsize=16384)
def _is_sensitive(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[sensitive_pb2.sensitive])


def _encoded(value: str) -> set[bytes]:
    forms = {value.encode("utf-8", "surrogatepass")}
    with contextlib.suppress(UnicodeEncodeError):
        forms.add(value.encode("latin-1"))
    return forms


def _unmarked(value: Anything) -> Anything:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if not isinstance(value, dict):
        return value
    note = value.get("value")
    if isinstance(note, str) and note.startswith(_MARK) and note.count(_MARK) == 2 and "@type" in value:
        _, url, text = note.split(_MARK)
        return {"@type": url, "value": text}
    return {key: _unmarked(item) for key, item in value.items()}
