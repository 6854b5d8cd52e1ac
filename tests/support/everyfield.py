"""Every protobuf message that differs from a given one in one field, anywhere in it, those packed in an Any too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from spliceway.xds.resources.packing import packed
from spliceway.xds.resources.walking import unpacked

M = TypeVar("M", bound=Message)

_OTHER_VALUES: dict[int, Callable[[Any], list[Any]]] = {
    FieldDescriptor.CPPTYPE_BOOL: lambda value: [not value],
    # What is no bool, text, fraction or enum is a whole number.
    FieldDescriptor.CPPTYPE_STRING: lambda value: [value + (b"x" if isinstance(value, bytes) else "x")],
    FieldDescriptor.CPPTYPE_DOUBLE: lambda value: [value + 1.0],
    FieldDescriptor.CPPTYPE_FLOAT: lambda value: [value + 1.0],
    # A number that the proto has, and one that it does not have.
    FieldDescriptor.CPPTYPE_ENUM: lambda value: [0 if value else 1, 77],
}

#: Field 2047, which no message here has.
_UNKNOWN = b"\xfa\x7f\x01x"


def different(message: M) -> Iterator[tuple[str, M]]:
    """Each with the path of the field and what was done to it."""
    if isinstance(message, AnyMessage):
        for path, inner in different(_inside(message)):
            yield path, packed(inner)  # type: ignore[misc]
    made = _copy(message)
    made.MergeFromString(_UNKNOWN)
    yield "given an unknown field", made
    for field in message.DESCRIPTOR.fields:
        for how, change in _changes(message, field):
            made = _copy(message)
            change(made)
            yield f"{field.name} {how}", made
        for path, made in _deeper(message, field):
            yield path, made


def _inside(message: AnyMessage) -> Message:
    inner = unpacked(message)
    assert inner is not None, message.type_url
    return inner


def _copy(message: M) -> M:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _changes(message: Message, field: Any) -> Iterator[tuple[str, Callable[[Any], object]]]:
    name, held = field.name, getattr(message, field.name)
    if _is_map(field):
        yield from _map_changes(field, held)
    elif field.is_repeated:
        yield "one more", lambda made: _add(getattr(made, name), field)
        if held:
            yield "one less", lambda made: getattr(made, name).pop()
            yield "the first again", lambda made: getattr(made, name).append(getattr(made, name)[0])
    else:
        is_set = message.HasField(name) if field.has_presence else bool(held)
        if is_set:
            yield "not set", lambda made: made.ClearField(name)
        if field.message_type is None:
            for value in _others(field, held):
                yield f"set to {value!r}", partial(_set, name=name, value=value)
            if field.has_presence and not is_set:
                yield "set to what it is", lambda made: setattr(made, name, held)
        elif not is_set:
            yield "set", lambda made: getattr(made, name).SetInParent()


def _map_changes(field: Any, held: Any) -> Iterator[tuple[str, Callable[[Any], object]]]:
    name = field.name
    value = field.message_type.fields_by_name["value"]
    if value.message_type is not None:
        yield "one more", lambda made: getattr(made, name)["zz"].SetInParent()
    elif field.message_type.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_STRING:
        yield "one more", lambda made: getattr(made, name).__setitem__("zz", _others(value, value.default_value)[0])
    for key in sorted(held):
        yield f"without {key!r}", partial(_pop, name=name, key=key)


def _set(made: Message, name: str, value: Any) -> None:
    setattr(made, name, value)


def _pop(made: Message, name: str, key: Any) -> None:
    getattr(made, name).pop(key)


def _others(field: Any, value: Any) -> list[Any]:
    return _OTHER_VALUES.get(field.cpp_type, lambda value: [value ^ 1])(value)


def _add(held: Any, field: Any) -> None:
    if field.message_type is not None:
        held.add()
    else:
        held.append(_others(field, field.default_value or ("" if field.cpp_type == field.CPPTYPE_STRING else 0))[0])


def _deeper(message: M, field: Any) -> Iterator[tuple[str, M]]:
    """With a change in a message in this field."""
    if field.message_type is None:
        return
    name = field.name
    if _is_map(field):
        if field.message_type.fields_by_name["value"].message_type is None:
            return
        for key, part in sorted(getattr(message, name).items()):
            for path, other in different(part):
                made = _copy(message)
                getattr(made, name)[key].CopyFrom(other)
                yield f'{name}["{key}"].{path}', made
    elif field.is_repeated:
        for index, part in enumerate(getattr(message, name)):
            for path, other in different(part):
                made = _copy(message)
                getattr(made, name)[index].CopyFrom(other)
                yield f"{name}[{index}].{path}", made
    elif message.HasField(name):
        for path, other in different(getattr(message, name)):
            made = _copy(message)
            getattr(made, name).CopyFrom(other)
            yield f"{name}.{path}", made
