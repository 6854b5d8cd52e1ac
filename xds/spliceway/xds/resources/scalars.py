"""One plain value (of JSON or YAML) to what a scalar protobuf field takes. Pure."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from spliceway.policy.fields import shown

KINDS: Mapping[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
#: What still rounds to a finite float of 32 bits.
_LARGEST_FLOAT = 3.4028235677973366e38
_NAMED_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_LISTED = 20


class ValueRefusedError(ValueError):
    """A value that a field doesn't take; the text is the reason, whoever catches it knows the field."""


def kind_of(value: object) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    return KINDS.get(type(value), f"{'an' if name[0] in 'aeiou' else 'a'} {name}")


def quoted(text: str) -> str:
    """A name as an error repeats it: in quotes, short, without control characters."""
    return f'"{shown(text)}"' if text.isprintable() and text else shown(repr(text))


def scalar(value: object, field: FieldDescriptor) -> object:
    """The value as the field takes it. Raises ValueRefusedError; strings are repeated only where they are names."""
    kind = field.cpp_type
    if kind in _INTEGERS:
        return _integer(value, *_INTEGERS[kind])
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(value, field.enum_type)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _typed(value, bool)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = _typed(value, str)
        return _bytes(text) if field.type == FieldDescriptor.TYPE_BYTES else unicode_text(text)
    return _float(value, kind == FieldDescriptor.CPPTYPE_FLOAT)


def map_key(key: str, field: FieldDescriptor) -> object:
    """The key of a map, which is a string in JSON, as the field takes it. Raises ValueRefusedError."""
    if field.cpp_type != FieldDescriptor.CPPTYPE_BOOL:
        return scalar(key, field)
    if key not in ("true", "false"):
        raise ValueRefusedError("a key must be true or false")
    return key == "true"


def unicode_text(text: str) -> str:
    """The text. Raises ValueRefusedError if it has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeError:
        raise ValueRefusedError("is not Unicode text") from None
    return text


def _typed(value: object, kind: type) -> Any:
    if type(value) is not kind:
        quote = " (quote it)" if kind is str and not isinstance(value, dict | list | None) else ""
        raise ValueRefusedError(f"must be {KINDS[kind]}, is {kind_of(value)}{quote}")
    return value


def _integer(value: object, low: int, high: int) -> int:
    if (isinstance(value, str) and _DIGITS.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueRefusedError(f"must be an integer, is {kind_of(value)}")
    if not low <= value <= high:
        raise ValueRefusedError(f"must be between {low} and {high}")
    return value


def _float(value: object, single: bool) -> float:
    number = value
    if isinstance(value, str):
        try:
            number = _NAMED_FLOATS[value] if value in _NAMED_FLOATS else float(value)
        except ValueError:
            number = value
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise ValueRefusedError(f"must be a number, is {kind_of(value)}")
    try:
        result = float(number)
    except OverflowError:
        raise ValueRefusedError("is too large") from None
    if single and math.isfinite(result) and abs(result) > _LARGEST_FLOAT:
        raise ValueRefusedError("is too large")
    return result


def _enum(value: object, kind: EnumDescriptor | None) -> int:
    assert kind is not None
    if isinstance(value, int) and not isinstance(value, bool):
        return _integer(value, *_INTEGERS[FieldDescriptor.CPPTYPE_INT32])
    if not isinstance(value, str):
        raise ValueRefusedError(f"must be the name of a {kind.name}, is {kind_of(value)}")
    found = kind.values_by_name.get(value)
    if found is None:
        names = list(kind.values_by_name)
        listed = ", ".join(names[:_MAX_LISTED]) + (" …" if len(names) > _MAX_LISTED else "")
        raise ValueRefusedError(f"{quoted(value)} is none of {listed}")
    return int(found.number)


def _bytes(text: str) -> bytes:
    standard = text.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueRefusedError("is not base64") from None
