"""The rules that one field of Envoy's protos can have (protoc-gen-validate's `validate.rules`), each as a check. Pure.

Source: https://github.com/bufbuild/protoc-gen-validate, README and validate.proto. All kinds of rules that occur in
`xds-protos` are here (a test lists them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2  # type: ignore[import-untyped]

#: By (KnownRegex, strict). `+-.` is a range in PGV's own text.
_WELL_KNOWN = {
    (validate_pb2.HTTP_HEADER_NAME, True): r":?[0-9a-zA-Z!#$%&'*+-.^_|~\x60]+",
    (validate_pb2.HTTP_HEADER_VALUE, True): r"[^\x00-\x08\x0A-\x1F\x7F]*",
    (validate_pb2.HTTP_HEADER_NAME, False): r"[^\x00\x0A\x0D]*",
    (validate_pb2.HTTP_HEADER_VALUE, False): r"[^\x00\x0A\x0D]*",
}
_WELL_KNOWN_NAMES = {
    validate_pb2.HTTP_HEADER_NAME: "the name of a header",
    validate_pb2.HTTP_HEADER_VALUE: "a value for a header (no control characters)",
}
#: Holds of a value, or the reason why not. None: the rules don't concern its kind.
Check = Callable[[Any], str | None]


def scalar_reason(kind: str, rules: Any, value: Any, field: FieldDescriptor) -> str | None:
    """Why the value of a scalar breaks the rules of that kind (`string`, `uint32` …); None if it doesn't."""
    if getattr(rules, "ignore_empty", False) and not value:
        return None
    if kind == "string":
        return _string(rules, value)
    if kind == "bytes":
        return _size(rules, len(value), "bytes")
    if kind == "enum":
        return _enum(rules, value, field)
    if kind == "bool":
        return None if not rules.HasField("const") or value == rules.const else f"must be {str(rules.const).lower()}"
    return _bounds(rules, value, str)


def duration_reason(rules: validate_pb2.DurationRules, value: Message) -> str | None:
    """The same for a Duration that is there."""
    limits = {name: getattr(rules, name).ToNanoseconds() for name in _BOUNDS if rules.HasField(name)}
    nanoseconds: int = value.ToNanoseconds()  # type: ignore[attr-defined]
    for name, limit in limits.items():
        holds, text = _BOUNDS[name]
        if not holds(nanoseconds, limit):
            return f"must be {text} {limit / 1e9:g}s"
    return None


def count_reason(low: int, high: int, count: int, what: str) -> str | None:
    """Why a number of items is wrong; limits of 0 are none."""
    if low and count < low:
        return f"must have at least {low} {what}" if count else f"must not be empty (at least {low} {what})"
    return f"must have at most {high} {what}" if high and count > high else None


def repeated_twice(values: Sequence[Any]) -> bool:
    """Whether a value is there twice. Messages can't be hashed: their bytes stand for them."""
    keys = [value.SerializeToString(deterministic=True) if isinstance(value, Message) else value for value in values]
    return len(set(keys)) < len(keys)


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "const": (lambda value, limit: value == limit, ""),
    "lt": (lambda value, limit: value < limit, "less than"),
    "lte": (lambda value, limit: value <= limit, "at most"),
    "gt": (lambda value, limit: value > limit, "more than"),
    "gte": (lambda value, limit: value >= limit, "at least"),
}


def _bounds(rules: Any, value: Any, shown: Callable[[Any], str]) -> str | None:
    for name, (holds, text) in _BOUNDS.items():
        if rules.HasField(name) and not holds(value, limit := getattr(rules, name)):
            return f"must be {text} {shown(limit)}".replace("  ", " ")
    return _members(rules, value)


def _members(rules: Any, value: Any) -> str | None:
    allowed, forbidden = getattr(rules, "in"), rules.not_in
    if allowed and value not in allowed:
        return f"must be one of {', '.join(map(str, allowed))}"
    return f"must not be {value}" if value in forbidden else None


def _enum(rules: validate_pb2.EnumRules, value: int, field: FieldDescriptor) -> str | None:
    assert field.enum_type is not None
    names = {number: each.name for number, each in field.enum_type.values_by_number.items()}
    if rules.HasField("const") and value != rules.const:
        return f"must be {names.get(rules.const, rules.const)}"
    if rules.defined_only and value not in names:
        return f"{value} is no {field.enum_type.name}"
    if (allowed := getattr(rules, "in")) and value not in allowed:
        return f"must be one of {', '.join(str(names.get(number, number)) for number in allowed)}"
    return f"must not be {names.get(value, value)}" if value in rules.not_in else None


def _size(rules: Any, count: int, what: str) -> str | None:
    low, high = (rules.len, rules.len) if rules.HasField("len") else (rules.min_len, rules.max_len)
    if low and not count:
        return "is required"
    return count_reason(low, high, count, what)


def _string(rules: validate_pb2.StringRules, value: str) -> str | None:
    return next(_string_reasons(rules, value), None)


def _string_reasons(rules: validate_pb2.StringRules, value: str) -> Iterator[str]:
    if reason := _size(rules, len(value), "characters"):
        yield reason
    if rules.min_bytes and not value:
        yield "is required"
    if reason := count_reason(rules.min_bytes, rules.max_bytes, len(value.encode()), "bytes"):
        yield reason
    if rules.HasField("const") and value != rules.const:
        yield f"must be {rules.const!r}"
    if not value.startswith(rules.prefix):
        yield f"must begin with {rules.prefix!r}"
    if not value.endswith(rules.suffix):
        yield f"must end in {rules.suffix!r}"
    if rules.contains not in value:
        yield f"must have {rules.contains!r} in it"
    if rules.pattern and not _compiled(rules.pattern).search(value):
        yield f"must match {rules.pattern}"
    if rules.well_known_regex:
        known = _WELL_KNOWN[rules.well_known_regex, not rules.HasField("strict") or rules.strict]
        if not _compiled(known).fullmatch(value):
            yield f"must be {_WELL_KNOWN_NAMES[rules.well_known_regex]}"
    if reason := _members(rules, value):
        yield reason


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
