"""Readers for `Hole`: numbers within what the proxy can do with them, names, bodies. They raise ValueError."""

from __future__ import annotations

import re

#: What a C int holds: sizes and backlogs go to the kernel as one.
_MAX_INT = 0x7FFF_FFFF
#: Bytes of pipelined requests that wait for their turn (`relay.states.MAX_HELD`).
MIN_BUFFER = 16384
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_RESOURCE = re.compile(r"rule-set-([1-9][0-9]{0,17})")


def port(value: int) -> int:
    """A port that can be listened on."""
    if not 0 < value < 65536:
        raise ValueError("is not a port")
    return value


def count(value: int) -> int:
    """A size, number or backlog: from 1 to what a C int holds."""
    if not 0 < value <= _MAX_INT:
        raise ValueError(f"is not from 1 to {_MAX_INT}")
    return value


def buffer(value: int) -> int:
    """Bytes that are kept for one direction of a connection: with less, what is held back anyway would not fit."""
    if not MIN_BUFFER <= value <= _MAX_INT:
        raise ValueError(f"is not from {MIN_BUFFER} to {_MAX_INT}")
    return value


def kibibytes(value: int) -> int:
    """A size in KiB as bytes; Envoy takes up to 8 MiB for heads."""
    if not 0 < value <= 8192:
        raise ValueError("is not from 1 to 8192")
    return value * 1024


def some_time(value: float) -> float:
    """A time that is not 0, in seconds."""
    if value <= 0:
        raise ValueError("must be more than 0s")
    return value


def body(value: str) -> bytes:
    """The body of an answer."""
    return value.encode()


def number(value: str) -> int:
    """A rule set's or a rule's id: positive, without leading zeros."""
    if not _NUMBER.fullmatch(value):
        raise ValueError("is no id")
    return int(value)


def rule_set_id(value: str) -> int:
    """The rule set's id in the name of a resource."""
    found = _RESOURCE.fullmatch(value)
    if found is None:
        raise ValueError("is no rule set's name")
    return int(found[1])


def true(value: bool) -> bool:
    """A mark that is there or not."""
    if not value:
        raise ValueError("must be true")
    return value
