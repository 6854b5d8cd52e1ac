"""Plain values (of JSON or YAML) to protobuf messages, strictly. Pure.

The mapping is protobuf's own (proto3 JSON; names of fields in either spelling). It is not `json_format`, because that
says for many errors neither which field nor which item of a list, repeats values, lets one field be there in both
spellings, and looks up types of Any only among modules that somebody has imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from spliceway.xds.errors import ResourceError
from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.scalars import KINDS, ValueRefusedError, kind_of, map_key, quoted, scalar, unicode_text
from spliceway.xds.resources.walking import joined

#: Deepest nesting of values. Protobuf's own readers end at 100 messages.
MAX_DEPTH = 80
#: Most values in one resource; aliases of YAML count with all that they stand for.
MAX_VALUES = 400_000

_M = TypeVar("_M", bound=Message)


class FieldError(ResourceError):
    """A value that is refused. `where`: file and document; `field`: path in it; either may be empty."""

    def __init__(self, where: str, field: str, reason: str) -> None:
        super().__init__(": ".join(part for part in (where, field, reason) if part))
        self.where = where
        self.field = field
        self.reason = reason


def read_message(value: object, kind: type[_M], where: str = "", field: str = "") -> _M:
    """Make a message of the class `kind` from plain values. `where` and `field` begin the errors' text.

    Raises:
        FieldError: with the path of the field, in the spelling of the proto (`filter_chains[0].filters`), and the
            reason. Strings are repeated only where they are names: of fields, types and enum values.
    """
    message = kind()
    reader = _Reader(where)
    reader.message(value, message, field, 0)
    reader.readable(kind, message.SerializeToString(), field)
    return message


class _Reader:
    """Reads one resource; `values` counts what it has read, against bombs of aliases."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._values = 0

    def refuse(self, field: str, reason: str) -> NoReturn:
        raise FieldError(self._where, field, reason)

    def message(self, value: object, message: Message, at: str, depth: int) -> None:
        """Fill `message` from a value."""
        self._count(at, depth)
        descriptor: Any = message.DESCRIPTOR
        if special := _SPECIAL.get(descriptor.full_name):
            special(self, value, message, at, depth)
        elif descriptor.full_name in _WRAPPERS:
            field = descriptor.fields_by_name["value"]
            setattr(message, field.name, self.scalar(value, field, at))
        else:
            self._fields(self.mapping(value, at), message, at, depth)

    def mapping(self, value: object, at: str) -> dict[str, object]:
        """The value, which must be a mapping with strings for keys."""
        if not isinstance(value, dict):
            self.refuse(at, f"must be a mapping, is {kind_of(value)}")
        for key in value:
            if not isinstance(key, str):
                self.refuse(at, f"a key must be a string, is {kind_of(key)} (quote it)")
        return value

    def _count(self, at: str, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self.refuse(at, f"more than {MAX_VALUES} values (aliases counted with what they stand for)")
        if depth > MAX_DEPTH:
            self.refuse(at, f"nested deeper than {MAX_DEPTH}")

    def _fields(self, value: Mapping[str, object], message: Message, at: str, depth: int) -> None:
        descriptor: Any = message.DESCRIPTOR
        known = _fields_of(descriptor)
        written: dict[str, str] = {}  # names of fields and oneofs, and by which key they are there
        for key, item in value.items():
            field = known.get(key)
            if field is None:
                self.refuse(at, f"unknown field {quoted(key)}{_meant(key, descriptor)}")
            if field.name in written:
                self.refuse(at, f"{written[field.name]} and {key} are the same field")
            written[field.name] = key
            path = joined(at, field.name)
            oneof = field.containing_oneof
            if oneof is not None and item is not None:
                if other := written.get(f"oneof {oneof.name}"):
                    self.refuse(at, f"only one of {other} and {field.name} may be there")
                written[f"oneof {oneof.name}"] = field.name
            if item is None and not _takes_null(field):
                continue
            self._field(item, message, field, path, depth + 1)

    def _field(self, item: object, message: Message, field: FieldDescriptor, at: str, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(item, message, field, at, depth)
        elif field.is_repeated:
            if not isinstance(item, list | tuple):
                self.refuse(at, f"must be a list, is {kind_of(item)}")
            held = getattr(message, field.name)
            for index, each in enumerate(item):
                path = f"{at}[{index}]"
                if each is None and not _takes_null(field):
                    self.refuse(path, "must not be null")
                if field.message_type is not None:
                    self.message(each, held.add(), path, depth + 1)
                else:
                    self._count(path, depth)
                    held.append(self.scalar(each, field, path))
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            self.message(item, part, at, depth)
        else:
            self._count(at, depth)
            setattr(message, field.name, self.scalar(item, field, at))

    def _map(self, value: object, message: Message, field: FieldDescriptor, at: str, depth: int) -> None:
        assert field.message_type is not None
        names = field.message_type.fields_by_name
        held = getattr(message, field.name)
        for key, item in self.mapping(value, at).items():
            path = f"{at}[{quoted(key)}]"
            self._count(path, depth)
            try:
                made = map_key(key, names["key"])
            except ValueRefusedError as error:
                self.refuse(path, str(error))
            if item is None and not _takes_null(names["value"]):
                self.refuse(path, "must not be null")
            if names["value"].message_type is not None:
                self.message(item, held[made], path, depth + 1)
            else:
                held[made] = self.scalar(item, names["value"], path)

    def scalar(self, value: object, field: FieldDescriptor, at: str) -> object:
        """The value as the field takes it."""
        try:
            return scalar(value, field)
        except ValueRefusedError as error:
            self.refuse(at, str(error))

    def any(self, value: object, message: Message, at: str, depth: int) -> None:
        """An Any: a mapping with `@type` and the fields of that type."""
        assert isinstance(message, AnyMessage)
        fields = dict(self.mapping(value, at))
        url = fields.pop("@type", None)
        if url is None:
            self.refuse(at, "@type is required")
        inner = self.class_of(url, at)()
        if inner.DESCRIPTOR.full_name in _SPECIAL or inner.DESCRIPTOR.full_name in _WRAPPERS:
            if fields.keys() != {"value"}:
                self.refuse(at, f"must have the fields @type and value, as a {inner.DESCRIPTOR.full_name}")
            self.message(fields["value"], inner, joined(at, "value"), depth + 1)
        else:
            self._count(at, depth)
            self._fields(fields, inner, at, depth)
        message.Pack(inner, deterministic=True)
        self.readable(type(inner), message.value, at)

    def readable(self, kind: type[Message], body: bytes, at: str) -> None:
        """Refuse what can't be read again: protobuf's readers end at 100 messages, and a Struct needs three a level."""
        try:
            kind.FromString(body)
        except DecodeError:
            self.refuse(at, "nested too deeply for protobuf")

    def class_of(self, url: object, at: str) -> type[Message]:
        """The class of a type URL."""
        at = joined(at, "@type")
        if not isinstance(url, str):
            self.refuse(at, f"must be a string, is {kind_of(url)}")
        kind = message_class(url.removeprefix(PREFIX)) if url.startswith(PREFIX) else None
        if kind is None:
            hint = "" if url.startswith(PREFIX) else f" (it must begin with {PREFIX})"
            self.refuse(at, f"unknown type {quoted(url)}{hint}")
        return kind

    def text(self, value: object, message: Message, at: str, depth: int) -> None:
        """A Duration, Timestamp or FieldMask: each has a form as text."""
        form = _TEXT_FORMS[message.DESCRIPTOR.full_name]
        if not isinstance(value, str):
            self.refuse(at, f"must be {form}, is {kind_of(value)}")
        try:
            json_format.ParseDict(value, message)  # type: ignore[arg-type]
        except (json_format.ParseError, ValueError):
            self.refuse(at, f"{quoted(value)} is not {form}")

    def free(self, value: object, message: Message, at: str, depth: int) -> None:
        """A Struct, Value or ListValue: anything that JSON can say."""
        expected = _FREE_FORMS.get(message.DESCRIPTOR.full_name)
        if expected is not None and not isinstance(value, expected):
            self.refuse(at, f"must be {KINDS[expected]}, is {kind_of(value)}")
        self._plain(value, at, depth)
        try:
            json_format.ParseDict(value, message)  # type: ignore[arg-type]
        except (json_format.ParseError, ValueError, TypeError):
            self.refuse(at, "is not what JSON can say")

    def _plain(self, value: object, at: str, depth: int) -> None:
        self._count(at, depth)
        if isinstance(value, dict):
            for key, item in self.mapping(value, at).items():
                self._plain(item, f"{at}[{quoted(key)}]", depth + 1)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self._plain(item, f"{at}[{index}]", depth + 1)
        elif isinstance(value, str):
            try:
                unicode_text(value)
            except ValueRefusedError as error:
                self.refuse(at, str(error))
        elif type(value) not in KINDS:
            self.refuse(at, f"must be what JSON can say, is {kind_of(value)} (quote it)")


_SPECIAL: dict[str, Callable[[_Reader, object, Message, str, int], None]] = {
    "google.protobuf.Any": _Reader.any,
    "google.protobuf.Duration": _Reader.text,
    "google.protobuf.Timestamp": _Reader.text,
    "google.protobuf.FieldMask": _Reader.text,
    "google.protobuf.Struct": _Reader.free,
    "google.protobuf.Value": _Reader.free,
    "google.protobuf.ListValue": _Reader.free,
}
_TEXT_FORMS = {
    "google.protobuf.Duration": 'a duration (seconds with an "s", as "1.5s")',
    "google.protobuf.Timestamp": 'a time (as "2026-01-31T12:00:00Z")',
    "google.protobuf.FieldMask": "paths of fields with commas",
}
_FREE_FORMS = {"google.protobuf.Struct": dict, "google.protobuf.ListValue": list}
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
)


@lru_cache(maxsize=4096)
def _fields_of(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """Fields by both of their names."""
    return {field.json_name: field for field in descriptor.fields} | dict(descriptor.fields_by_name.items())


def _takes_null(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _meant(key: str, descriptor: Descriptor) -> str:
    """A hint where the name differs in nothing but its spelling."""
    plain = key.replace("_", "").replace("-", "").lower()
    near = (name for name in descriptor.fields_by_name if name.replace("_", "").lower() in (plain, plain + "s"))
    found = next(near, None)
    return f" (meant: {found})" if found else ""
