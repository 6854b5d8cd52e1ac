"""Shapes of protobuf messages: what each field must be. What is set and has no place in the shape is refused.

A shape reads like the message as JSON:

- a dict: a message or a map, with a shape for each field or key that must be there, and nothing else;
- a list: a repeated field with exactly these items;
- a bool, number, text or bytes: this value (enums by name, wrappers as what they wrap, a Duration as seconds);
- a function (value, path, found): reads the value by itself;
- `Hole`, `Maybe`, `ANY`, `Unsaid`, `Packed`: see there.

Paths are proto field names with indices and map keys, and go into what is packed in an Any without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from spliceway.proxy.errors import UnenforceableError

Found = dict[str, Any]
Shape = Any
M = TypeVar("M", bound=Message)

TYPE_PREFIX = "type.googleapis.com/"
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
_DURATION = "google.protobuf.Duration"
#: Longest Duration that protobuf knows, in seconds.
_MAX_SECONDS = 315_576_000_000


class Hole(NamedTuple):
    """A value that differs: kept under `key` as `read` gives it. `read` raises ValueError saying what is wrong."""

    key: str
    read: Callable[[Any], Any] = lambda value: value


class Maybe(NamedTuple):
    """What may be absent."""

    shape: Shape


class Unsaid(NamedTuple):
    """A value that no message may quote: it may come from a Secret."""

    value: str | bytes


def ANY(value: Any, at: str, found: Found) -> None:  # noqa: N802 - stands in shapes like a constant
    """Whatever is there or not makes no difference."""


class Packed:
    """A message in an Any. What was read once is kept by its content (`kept` of them): most are always the same."""

    def __init__(self, kind: type[Message], shape: Shape, kept: int = 8) -> None:
        self._kind = kind
        self._shape = shape
        self._read_kept = lru_cache(maxsize=kept)(self._read)

    def __repr__(self) -> str:
        return f"Packed({self._kind.DESCRIPTOR.full_name})"

    def __call__(self, value: AnyMessage, at: str, found: Found) -> None:
        """Read what is in `value`."""
        found.update(self._read_kept(packed_bytes(value, self._kind, at), at))

    def _read(self, data: bytes, at: str) -> Found:
        found: Found = {}
        check(parsed(self._kind, data, at), self._shape, at, found)
        return found


def parsed(kind: type[M], data: bytes, at: str = "") -> M:
    """The message that these bytes are, whole.

    Raises:
        UnenforceableError: they are not one, have fields that its proto does not, or fields twice.
    """
    name = kind.DESCRIPTOR.full_name
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise UnenforceableError(at or name, f"can't be read as {name}") from None
    message.DiscardUnknownFields()
    # Written again it is as long, unless something was dropped: there is one shortest way to write each message.
    if message.ByteSize() != len(data):
        path = _unknown(kind.FromString(data), at)
        if path is None:
            raise UnenforceableError(at or name, "has parts twice, or not in the shortest form")
        raise UnenforceableError(path or name, "has a field that is not known here")
    return message


def packed_bytes(value: AnyMessage, kind: type[Message], at: str) -> bytes:
    """The bytes of a message of that kind in an Any."""
    name = kind.DESCRIPTOR.full_name
    if value.type_url != TYPE_PREFIX + name:
        raise UnenforceableError(at, f"must be {name}")
    data: bytes = value.value
    return data


def check(value: Any, shape: Shape, at: str, found: Found) -> None:
    """Compare a message, a map, a list or a plain value with its shape; holes are put into `found`.

    Raises:
        UnenforceableError: with the path of the first difference.
    """
    value = _plain(value, at)
    if isinstance(shape, Maybe):
        shape = shape.shape
    if isinstance(shape, Hole):
        try:
            found[shape.key] = shape.read(value)
        except ValueError as error:
            raise UnenforceableError(at, str(error)) from None
    elif isinstance(shape, Unsaid):
        if value != shape.value:
            raise UnenforceableError(at, "does not go with the rest of the rules")
    elif isinstance(shape, dict):
        _check_fields(_fields(value), shape, at, found, is_map=not hasattr(value, "DESCRIPTOR"))
    elif isinstance(shape, list):
        _check_items(value, shape, at, found)
    elif callable(shape):
        shape(value, at, found)
    elif type(value) is not type(shape) or value != shape:
        raise UnenforceableError(at, f"must be {_shown(shape)}")


def joined(at: str, name: str) -> str:
    """Path of a field of the message at `at`, which is empty for the outermost."""
    return f"{at}.{name}" if at else name


def keyed(at: str, key: str) -> str:
    """Path of an entry of the map at `at`."""
    return f"{at}[{json.dumps(key, ensure_ascii=False)}]"


def _check_fields(values: dict[str, Any], shape: dict[str, Shape], at: str, found: Found, *, is_map: bool) -> None:
    path = keyed if is_map else joined
    for name, value in values.items():
        if name not in shape:
            raise UnenforceableError(path(at, name), "can't be enforced by this proxy")
        check(value, shape[name], path(at, name), found)
    if len(values) != len(shape):
        for name, wanted in shape.items():
            if name not in values and wanted is not ANY and not isinstance(wanted, Maybe):
                raise UnenforceableError(path(at, name), "is required")


def _check_items(values: Any, shape: list[Shape], at: str, found: Found) -> None:
    for index, (value, wanted) in enumerate(zip(values, shape, strict=False)):
        check(value, wanted, f"{at}[{index}]", found)
    if len(values) != len(shape):
        why = "can't be enforced by this proxy" if len(values) > len(shape) else "is required"
        raise UnenforceableError(f"{at}[{min(len(values), len(shape))}]", why)


def _fields(value: Any) -> dict[str, Any]:
    """What is set in a message, or a map's entries."""
    if not hasattr(value, "DESCRIPTOR"):
        return {key: value[key] for key in sorted(value)}
    return {
        field.name: held if field.enum_type is None else _named(field.enum_type, held)
        for field, held in value.ListFields()
    }


def _plain(value: Any, at: str) -> Any:
    """Wrappers and durations as plain values."""
    descriptor = getattr(value, "DESCRIPTOR", None)
    if descriptor is None:
        return value
    if descriptor.full_name in _WRAPPERS:
        return value.value
    if descriptor.full_name == _DURATION:
        if not (0 <= value.seconds <= _MAX_SECONDS and 0 <= value.nanos < 1_000_000_000):
            raise UnenforceableError(at, "is not a time from 0 on")
        return value.seconds + value.nanos / 1e9
    return value


def _named(enum: Any, number: int) -> str:
    known = enum.values_by_number.get(number)
    return known.name if known is not None else str(number)


def _shown(shape: Shape) -> str:
    return str(shape).lower() if isinstance(shape, bool) else repr(shape)


def _unknown(message: Message, at: str) -> str | None:
    """Path of a message that has unknown fields, None when there is none."""
    if len(UnknownFieldSet(message)):
        return at
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        path = joined(at, field.name)
        if not field.is_repeated:
            parts = [(path, value)]
        elif not field.message_type.GetOptions().map_entry:
            parts = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
        elif field.message_type.fields_by_name["value"].message_type is None:
            continue
        else:
            parts = [(keyed(path, str(key)), value[key]) for key in value]
        for inner, part in parts:
            found = _unknown(part, inner)
            if found is not None:
                return found
    return None
