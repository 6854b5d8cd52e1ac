"""Values to plain JSON for the admin API: camelCase keys, enumerations by label, addresses as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec


def camel(name: str) -> str:
    """`rule_set` → `ruleSet`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def plain(value: Any) -> Any:
    """Make a value of structs, enumerations, addresses and containers one that JSON has."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, Enum):
        return getattr(value, "label", None) or value.name.lower().replace("_", "-")
    if isinstance(value, int):
        return value
    if isinstance(value, msgspec.Struct):
        return {camel(name): plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {camel(name): plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Collection):
        return [plain(item) for item in value]
    return str(value)


def time_shown(seconds: float) -> str:
    """CLOCK_REALTIME with microseconds: `2026-11-21T00:17:27.145694Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode(value: Any) -> bytes:
    """JSON of `plain(value)`."""
    return msgspec.json.encode(plain(value))
