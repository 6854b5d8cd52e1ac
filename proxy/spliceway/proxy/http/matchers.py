"""Expressions as functions of bytes: the plain ones by comparison, all others by RE2. Pure.

Most rules say `GET|POST`, `/exact/path` or `/prefix/.*`, and asking RE2 from Python costs more than comparing. What is
not surely plain is RE2's (policy.regex); a property test holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from spliceway.policy.regex import compile_regex

Matcher = Callable[[bytes], bool]

#: Characters that mean themselves in RE2.
_LITERAL = r"[A-Za-z0-9/_~@:,=&%!#\"'<>-]"
_ONE = re.compile(rf"{_LITERAL}+")
_SEVERAL = re.compile(rf"{_LITERAL}+(?:\|{_LITERAL}+)+")
#: RE2's `.` is no line feed; neither is any byte of a path or a method that gets as far as this.
_PREFIX = re.compile(rf"({_LITERAL}*)(?:\.\*|\(\.\*\))")


def matcher(pattern: str) -> Matcher:
    """What a whole match of the pattern is, for bytes without a line feed. Raises RegexError."""
    compiled = compile_regex(pattern)
    if _ONE.fullmatch(pattern):
        return pattern.encode().__eq__
    if _SEVERAL.fullmatch(pattern):
        return frozenset(pattern.encode().split(b"|")).__contains__
    if found := _PREFIX.fullmatch(pattern):
        return _Prefix(found[1].encode())
    fullmatch = compiled.fullmatch
    return lambda value: fullmatch(value) is not None


class _Prefix:
    __slots__ = ("_prefix",)

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"<{self._prefix!r} and anything>"

    def __call__(self, value: bytes) -> bool:
        return value.startswith(self._prefix)
