"""Small helpers for building messages: Any, Duration, filters."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message


def packed(message: Message) -> Any:
    """`message` in an Any, with map entries in a stable order so that equal content is equal bytes."""
    result = Any()
    result.Pack(message, deterministic=True)
    return result


def seconds(value: float) -> Duration:
    """A Duration of that many seconds; 0 is «never» wherever this package uses it."""
    whole = int(value)
    return Duration(seconds=whole, nanos=round((value - whole) * 1e9))


def serialized(message: Message) -> bytes:
    """Stable bytes of `message`."""
    return message.SerializeToString(deterministic=True)


def typed(name: str, config: Message) -> dict[str, object]:
    """Name and typed_config: a filter, an access log or a listener filter as keyword arguments."""
    return {"name": name, "typed_config": packed(config)}
