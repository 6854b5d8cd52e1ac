"""All messages in a message, those inside Any too, each with its field path. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.scalars import quoted


def walk(message: Message, at: str = "") -> Iterator[tuple[str, Message]]:
    """Every message with its path: this one first, an Any as what is in it. An Any of unknown type is left out."""
    yield at, message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for path, part in parts(field, value, joined(at, field.name)):
                inner = unpacked(part) if isinstance(part, AnyMessage) else part
                if inner is not None:
                    yield from walk(inner, path)


def parts(field: Any, value: Any, at: str) -> Iterator[tuple[str, Message]]:
    """The messages in a message field that is there, each with its path; maps of scalars have none."""
    if not field.is_repeated:
        yield at, value
    elif not field.message_type.GetOptions().map_entry:
        yield from ((f"{at}[{index}]", each) for index, each in enumerate(value))
    elif field.message_type.fields_by_name["value"].message_type is not None:
        yield from ((f"{at}[{quoted(str(key))}]", value[key]) for key in value)


def unpacked(packed: AnyMessage) -> Message | None:
    """What is in an Any; None if its type is not known.

    Raises:
        DecodeError: the bytes are not of that type.
    """
    kind = message_class(packed.type_url.removeprefix(PREFIX))
    return None if kind is None else kind.FromString(packed.value)


def joined(at: str, name: str) -> str:
    """Path of a field of the message at `at`, which is empty for the outermost."""
    return f"{at}.{name}" if at else name
