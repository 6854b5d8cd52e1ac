"""Where two messages of one type differ, field by field. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from spliceway.xds.debug.redact import decoded

#: More items in what differs of a list are compared by their position: aligning them costs their square.
_ALIGNED = 400


class Absent:
    """Instead of a value that isn't there."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


class Change(msgspec.Struct, frozen=True):
    """One place where two messages differ: `virtual_hosts[0].routes[1].name`, with both values or ABSENT."""

    path: str
    left: Any
    right: Any


def changes(left: Message, right: Message, path: str = "") -> Iterator[Change]:
    """What differs, outer fields first. Any is looked into; one that can't be is compared as bytes."""
    if left.DESCRIPTOR is not right.DESCRIPTOR:
        yield Change(f"{path}.@type".lstrip("."), left.DESCRIPTOR.full_name, right.DESCRIPTOR.full_name)
    elif isinstance(left, AnyMessage) and isinstance(right, AnyMessage):
        yield from _any(left, right, path)
    elif left != right:
        fields = {field.number: field for field, _ in (*left.ListFields(), *right.ListFields())}
        for _, field in sorted(fields.items()):
            yield from _field(left, right, field, f"{path}.{field.name}".lstrip("."))


def _any(left: AnyMessage, right: AnyMessage, path: str) -> Iterator[Change]:
    if left.type_url != right.type_url:
        yield Change(f"{path}.@type".lstrip("."), left.type_url, right.type_url)
        return
    if left.value == right.value:
        return
    inner = decoded(left.type_url, left.value), decoded(right.type_url, right.value)
    if inner[0] is None or inner[1] is None:
        yield Change(path, left.value, right.value)
    else:
        yield from changes(inner[0], inner[1], path)


def _field(left: Message, right: Message, field: FieldDescriptor, path: str) -> Iterator[Change]:
    one, other = getattr(left, field.name), getattr(right, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in sorted({*one, *other}, key=str):
            where = f"{path}[{key}]"
            yield from _values(one.get(key, ABSENT), other.get(key, ABSENT), where)
    elif isinstance(one, Message | str | bytes | int | float):
        has = field.has_presence
        one = one if not has or left.HasField(field.name) else ABSENT
        other = other if not has or right.HasField(field.name) else ABSENT
        yield from _values(_named(one, field), _named(other, field), path)
    else:
        yield from _lists(list(one), list(other), path)


def _named(value: Any, field: FieldDescriptor) -> Any:
    """An enumeration by name, as it is written."""
    if field.enum_type is None or value is ABSENT:
        return value
    known = field.enum_type.values_by_number.get(value)
    return known.name if known else value


def _values(left: Any, right: Any, path: str) -> Iterator[Change]:
    if isinstance(left, Message) and isinstance(right, Message):
        yield from changes(left, right, path)
    elif left is ABSENT or right is ABSENT or left != right:
        yield Change(path, left, right)


def _lists(left: Sequence[Any], right: Sequence[Any], path: str) -> Iterator[Change]:
    """Equal items are matched first, so that one that was put in does not make all that follow differ."""
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    one, other = left[start : len(left) - end], right[start : len(right) - end]
    blocks: Sequence[tuple[int, int, int, int]] = [(0, len(one), 0, len(other))]
    if len(one) != len(other) and max(len(one), len(other)) <= _ALIGNED:
        matcher = SequenceMatcher(None, [_key(item) for item in one], [_key(item) for item in other], autojunk=False)
        blocks = [(*code[1:],) for code in matcher.get_opcodes() if code[0] != "equal"]
    for one_from, one_to, other_from, other_to in blocks:
        for offset in range(max(one_to - one_from, other_to - other_from)):
            here, there = one_from + offset, other_from + offset
            yield from _values(
                one[here] if here < one_to else ABSENT,
                other[there] if there < other_to else ABSENT,
                f"{path}[{start + (here if here < one_to else there)}]",
            )


def _key(item: Any) -> Any:
    return item.SerializeToString(deterministic=True) if isinstance(item, Message) else item
