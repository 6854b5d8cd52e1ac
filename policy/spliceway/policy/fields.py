"""Reading one mapping of a document strictly: every key is asked for, ignored by name, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from spliceway.policy.errors import PolicyError

_NAMES: Mapping[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
#: Longest piece of the input that an error message repeats.
_MAX_SHOWN = 80

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
DNS_LABEL = re.compile(_DNS_LABEL)
DNS_SUBDOMAIN = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")


def shown(value: Any) -> str:
    """A value as an error message repeats it: short, and without control characters."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


class Where:
    """Place in a document: file, document and field path. It makes the errors."""

    __slots__ = ("document", "field", "file")

    def __init__(self, file: str, document: str, field: str = "") -> None:
        self.file = file
        self.document = document
        self.field = field

    def at(self, field: str) -> Where:
        """Place of a field of the mapping here."""
        return Where(self.file, self.document, f"{self.field}.{field}" if self.field else field)

    def item(self, index: int) -> Where:
        """Place of an item of the list here."""
        return Where(self.file, self.document, f"{self.field}[{index}]")

    def refuse(self, reason: str) -> NoReturn:
        """Raise PolicyError for this place."""
        raise PolicyError(self.file, self.document, self.field, reason)

    def typed(self, value: Any, kind: type[Any]) -> Any:
        """The value, if it is of the kind (bool is no int). Raises PolicyError otherwise."""
        if type(value) is not kind:
            got = _NAMES.get(type(value), type(value).__name__)
            self.refuse(f"must be {_NAMES[kind]}, is {got}" + (f" ({shown(value)})" if got[0:4] != "null" else ""))
        return value

    def items(self, value: Any, kind: type[Any]) -> Iterator[tuple[Where, Any]]:
        """Items of a list that are all of the kind, each with its place."""
        for index, item in enumerate(self.typed(value, list)):
            place = self.item(index)
            yield place, place.typed(item, kind)


class Fields:
    """A mapping whose keys are taken one by one. `null` counts as absent, as in the Kubernetes API."""

    __slots__ = ("_rest", "where")

    def __init__(self, value: Any, where: Where) -> None:
        self.where = where
        self._rest: dict[str, Any] = dict(where.typed(value, dict))

    def take(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Value of a key, of this kind, or the default when it is absent."""
        value = self._rest.pop(key, None)
        if value is None:
            return default
        if type(value) is not kind:
            self.where.at(key).typed(value, kind)
        return value

    def has(self, key: str) -> bool:
        """Whether a key is there, not taken yet and not null."""
        return self._rest.get(key) is not None

    def one_of(self, *keys: str) -> str:
        """Which one of these keys is there. Raises PolicyError unless it is exactly one."""
        given = [key for key in keys if self.has(key)]
        if len(given) != 1:
            self.where.refuse(f"needs exactly one of {', '.join(keys)} (has {len(given)})")
        return given[0]

    def raw(self, key: str) -> Any:
        """Value of a key, of any kind, or None."""
        return self._rest.pop(key, None)

    def need(self, key: str, kind: type[Any]) -> Any:
        """Value of a key that must be there."""
        value = self.take(key, kind)
        if value is None:
            self.where.at(key).refuse("is missing")
        return value

    def need_name(self, key: str, pattern: re.Pattern[str] = DNS_SUBDOMAIN) -> str:
        """A name that must be there, valid for Kubernetes and at most 253 characters long."""
        return self._named(key, self.need(key, str), pattern)

    def take_name(self, key: str) -> str:
        """A name as `need_name` reads it, empty when it is absent or empty."""
        name: str = self.take(key, str, "")
        return self._named(key, name, DNS_SUBDOMAIN) if name else ""

    def _named(self, key: str, name: str, pattern: re.Pattern[str]) -> str:
        if len(name) > 253 or not pattern.fullmatch(name):
            self.where.at(key).refuse(f"{shown(name)} is not a valid name (lower-case letters, digits and «-»)")
        return name

    def unsupported(self, keys: Iterable[str]) -> None:
        """Refuse keys that exist in the format but are not built."""
        for key in keys:
            if self._rest.get(key) is not None:
                self.where.at(key).refuse("not supported yet")

    def ignore(self, *keys: str) -> None:
        """Drop keys that mean nothing here."""
        for key in keys:
            self._rest.pop(key, None)

    def done(self) -> None:
        """Refuse what is left: an unknown field could be a misspelt condition."""
        for key in self._rest:
            self.where.at(shown(key)).refuse("unknown field")
