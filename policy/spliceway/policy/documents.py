"""YAML text to plain documents, for input that may be hostile.

Values are those of JSON (what Kubernetes would make of the text), built from libyaml's events, so that size, depth and
what aliases expand to are counted while reading. Refused, because two readers could differ or a limit is passed:
duplicate keys, keys that are not strings, merge keys, custom tags, integers with a leading zero (octal in YAML 1.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any

import msgspec
import yaml

from spliceway.policy.errors import PolicyError

#: Longest text of one file, in characters. Kubernetes objects end at 1.5 MiB.
MAX_TEXT = 4 << 20
#: Most values in one file, aliases counted with all that they stand for.
MAX_VALUES = 400_000
#: Deepest nesting. A policy needs about 12.
MAX_DEPTH = 48

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TAG = "tag:yaml.org,2002:"
# Neither repeats the text: it may be a password that begins so and is not quoted.
_NO_TAGS = "tags are not allowed (quote what begins with an exclamation mark)"
_NO_ANCHOR = "an alias that stands for nothing yet (quote what begins with an asterisk)"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE|yes|Yes|YES|on|On|ON)|false|False|FALSE|no|No|NO|off|Off|OFF")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?")


class Document(msgspec.Struct, frozen=True):
    """One YAML document as plain Python values; `index` counts from 1, `line` is where it begins."""

    file: str
    index: int
    line: int
    content: Any


class _RefusedError(Exception):
    """Something at a mark of the text; it becomes a PolicyError before it leaves this module."""

    def __init__(self, mark: Any, reason: str) -> None:
        super().__init__(reason)
        self.mark = mark


class _Frame:
    """A collection that is being filled. `begin` is the number of values counted before it."""

    __slots__ = ("anchor", "begin", "key", "value")

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None, begin: int) -> None:
        self.value = value
        self.anchor = anchor
        self.begin = begin
        self.key: str | None = None


class Limits(msgspec.Struct, frozen=True):
    """Longest text in characters and most values of one file. The defaults are for input that may be hostile."""

    text: int = MAX_TEXT
    values: int = MAX_VALUES


def load_documents(text: str, file: str, limits: Limits | None = None) -> list[Document]:
    """Documents of a YAML text; empty ones are left out.

    Raises PolicyError with the line when the text is not YAML, passes a limit, or says something that is refused.
    """
    limits = limits or Limits()
    if len(text) > limits.text:
        raise PolicyError(file, "", "", f"{len(text)} characters are more than the limit of {limits.text}")
    try:
        return list(_documents(text, file, limits))
    except _RefusedError as error:
        raise PolicyError(file, "", f"line {error.mark.line + 1}", str(error)) from None
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark is not None else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise PolicyError(file, "", where, f"not YAML: {reason}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise PolicyError(file, "", "", f"not YAML: {error}".replace("\n", " ")) from None


def _documents(text: str, file: str, limits: Limits) -> Iterator[Document]:
    count = index = line = 0
    stack: list[_Frame] = []
    anchors: dict[str, tuple[Any, int]] = {}  # value, and how many values it stands for
    root: Any = None
    for event in yaml.parse(text, Loader=Loader):
        match event:
            case yaml.DocumentStartEvent():
                mark: Any = event.start_mark
                index, line, root, anchors = index + 1, mark.line + 1, None, {}
                continue
            case yaml.DocumentEndEvent():
                if root is not None:
                    yield Document(file, index, line, root)
                continue
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
                    raise _RefusedError(event.start_mark, _NO_TAGS)
                if len(stack) >= MAX_DEPTH:
                    raise _RefusedError(event.start_mark, f"nested deeper than {MAX_DEPTH}")
                count += 1
                empty: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                if stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
                    raise _RefusedError(event.start_mark, "a key must be a string")
                stack.append(_Frame(empty, event.anchor, count - 1))
                continue
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                frame = stack.pop()
                value: Any = frame.value
                if frame.anchor:
                    anchors[frame.anchor] = (value, count - frame.begin)
            case yaml.ScalarEvent():
                count += 1
                value = _scalar(event)
                if event.anchor:
                    anchors[event.anchor] = (value, 1)
            case yaml.AliasEvent():
                if event.anchor not in anchors:  # undefined, or the collection it stands in
                    raise _RefusedError(event.start_mark, _NO_ANCHOR)
                value, size = anchors[event.anchor]
                count += size
            case _:
                continue
        if count > limits.values:
            raise _RefusedError(
                event.start_mark, f"more than {limits.values} values (aliases counted with what they stand for)"
            )
        if stack:
            _add(stack[-1], value, event.start_mark)
        else:
            root = value


def _add(frame: _Frame, value: Any, mark: Any) -> None:
    if isinstance(frame.value, list):
        frame.value.append(value)
    elif frame.key is None:
        if not isinstance(value, str):
            raise _RefusedError(mark, f"a key must be a string, {value!r} is none (quote it)")
        if value == "<<":
            raise _RefusedError(mark, "merge keys (<<) are not supported")
        if value in frame.value:
            raise _RefusedError(mark, f"the key {value!r} appears twice")
        frame.key = value
    else:
        frame.value[frame.key] = value
        frame.key = None


def _scalar(event: Any) -> Any:
    """Value of a scalar, by the core rules of YAML 1.1 as Kubernetes reads them; timestamps stay strings."""
    text: str = event.value
    if event.tag in (f"{_TAG}str", "!") or (event.tag is None and not event.implicit[0]):
        return text
    if event.tag not in (None, f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"):
        raise _RefusedError(event.start_mark, _NO_TAGS)
    if _NULL.fullmatch(text):
        return None
    if found := _BOOL.fullmatch(text):
        return found.group(1) is not None
    if _INT.fullmatch(text):
        return _integer(int(text))
    if _OCTAL.fullmatch(text):
        # The text is not repeated: it may be a password.
        raise _RefusedError(
            event.start_mark, "a number with a leading zero is octal or decimal: quote it, or drop the zero"
        )
    if _HEX.fullmatch(text):
        return _integer(int(text, 16))
    if _FLOAT.fullmatch(text) and isfinite(number := float(text)):
        return number
    return text


def _integer(value: int) -> int | float:
    """An integer as JSON readers in Go take it: what needs more than 64 bits is a floating-point number."""
    return value if -(1 << 63) <= value < 1 << 63 else float(value)
