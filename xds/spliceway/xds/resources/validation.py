"""Messages against the rules in their protos, as Envoy checks them when it gets a resource. Pure.

A resource that breaks one would be a NACK; here it is refused beforehand, with the path of the field. Messages inside
an Any are checked too, as Envoy does when it makes the extension.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2  # type: ignore[import-untyped]

from spliceway.xds.resources.fieldrules import count_reason, duration_reason, repeated_twice, scalar_reason
from spliceway.xds.resources.reading import FieldError
from spliceway.xds.resources.scalars import quoted
from spliceway.xds.resources.walking import joined, parts, unpacked


class _Plan(NamedTuple):
    """What to check of a type: names of oneofs of which one field must be there, and fields with their rules."""

    oneofs: tuple[tuple[str, str], ...]
    fields: tuple[tuple[FieldDescriptor, validate_pb2.FieldRules], ...]
    unchecked: frozenset[str]


def validate(message: Message, where: str = "", field: str = "") -> None:
    """Check a message and all that is in it. `where` and `field` begin the error's text.

    Raises:
        FieldError: the first rule that is broken.
    """
    for at, reason in _broken(message, field):
        raise FieldError(where, at, reason)


def _broken(message: Message, at: str) -> Iterator[tuple[str, str]]:
    plan = _plan(message.DESCRIPTOR)
    for oneof, names in plan.oneofs:
        if message.WhichOneof(oneof) is None:
            yield at, f"one of {names} is required"
    for field, rules in plan.fields:
        yield from _field(message, field, rules, joined(at, field.name))
    for field, value in message.ListFields():
        if field.message_type is not None and field.name not in plan.unchecked:
            for path, part in parts(field, value, joined(at, field.name)):
                inner = unpacked(part) if isinstance(part, AnyMessage) else part
                if inner is not None:
                    yield from _broken(inner, path)


def _field(
    message: Message, field: FieldDescriptor, rules: validate_pb2.FieldRules, at: str
) -> Iterator[tuple[str, str]]:
    kind = rules.WhichOneof("type")
    held = getattr(message, field.name)
    if kind == "repeated":
        yield from _repeated(held, field, rules.repeated, at)
    elif kind == "map":
        yield from _map(held, field, rules.map, at)
    elif field.message_type is None:
        if kind is not None and (not field.has_presence or message.HasField(field.name)):
            reason = scalar_reason(kind, rules_of(rules), held, field)
            yield from [(at, reason)] if reason else ()
    elif message.HasField(field.name):
        reason = _message_reason(kind, rules, held, field)
        yield from [(at, reason)] if reason else ()
    # Which fields of a oneof must be there is a rule of the oneof.
    elif field.containing_oneof is None and _is_required(kind, rules):
        yield at, "is required"


def _is_required(kind: str | None, rules: validate_pb2.FieldRules) -> bool:
    of_kind = kind in ("any", "duration", "timestamp") and rules_of(rules).required
    return bool(rules.message.required or of_kind)


def rules_of(rules: validate_pb2.FieldRules) -> Any:
    """The rules of the kind that is there."""
    return getattr(rules, rules.WhichOneof("type"))


def _message_reason(kind: str | None, rules: validate_pb2.FieldRules, held: Message, field: Any) -> str | None:
    if kind == "duration":
        return duration_reason(rules.duration, held)
    if kind in (None, "any", "timestamp"):
        return None
    value_field = field.message_type.fields_by_name["value"]  # a wrapper, such as UInt32Value
    return scalar_reason(kind, rules_of(rules), held.value, value_field)  # type: ignore[attr-defined]


def _repeated(held: Any, field: FieldDescriptor, rules: Any, at: str) -> Iterator[tuple[str, str]]:
    if rules.ignore_empty and not held:
        return
    if reason := count_reason(rules.min_items, rules.max_items, len(held), "items"):
        yield at, reason
    if rules.unique and repeated_twice(list(held)):
        yield at, "must not have an item twice"
    yield from _items(rules.items, field, ((f"{at}[{index}]", each) for index, each in enumerate(held)))


def _map(held: Any, field: Any, rules: Any, at: str) -> Iterator[tuple[str, str]]:
    if rules.ignore_empty and not held:
        return
    if reason := count_reason(rules.min_pairs, rules.max_pairs, len(held), "entries"):
        yield at, reason
    names = field.message_type.fields_by_name
    paths = {key: f"{at}[{quoted(str(key))}]" for key in held}
    yield from _items(rules.keys, names["key"], ((path, key) for key, path in paths.items()))
    yield from _items(rules.values, names["value"], ((path, held[key]) for key, path in paths.items()))


def _items(
    rules: validate_pb2.FieldRules, field: FieldDescriptor, items: Iterator[tuple[str, Any]]
) -> Iterator[tuple[str, str]]:
    kind = rules.WhichOneof("type")
    if kind is None:
        return
    for path, value in items:
        if isinstance(value, Message):
            reason = _message_reason(kind, rules, value, field)
        else:
            reason = scalar_reason(kind, rules_of(rules), value, field)
        if reason:
            yield path, reason


@lru_cache(maxsize=4096)
def _plan(descriptor: Descriptor) -> _Plan:
    options = descriptor.GetOptions()
    if options.Extensions[validate_pb2.disabled] or options.Extensions[validate_pb2.ignored]:
        return _Plan((), (), frozenset(field.name for field in descriptor.fields))
    fields = []
    for field in descriptor.fields:
        if field.GetOptions().HasExtension(validate_pb2.rules):
            fields.append((field, field.GetOptions().Extensions[validate_pb2.rules]))
    return _Plan(
        tuple(
            (oneof.name, ", ".join(field.name for field in oneof.fields))
            for oneof in descriptor.oneofs
            if oneof.GetOptions().Extensions[validate_pb2.required]
        ),
        tuple(fields),
        frozenset(field.name for field, rules in fields if rules.message.skip),
    )
