"""Expressions as functions of bytes: the plain ones by comparison, all others by RE2. Pure.

Most rules say `GET|POST`, `/exact/path` or `/prefix/.*`, and asking RE2 from Python costs more than comparing. What is
not surely plain is RE2's (policy.regex); a property test holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import re2

from spliceway.policy.regex import Regex, compile_regex

Matcher = Callable[[bytes], bool]

#: Characters that mean themselves in RE2.
_LITERAL = r"[A-Za-z0-9/_~@:,=&%!#\"'<>-]"
_ONE = re.compile(rf"{_LITERAL}+")
_SEVERAL = re.compile(rf"{_LITERAL}+(?:\|{_LITERAL}+)+")
#: RE2's `.` is no line feed; neither is any byte of a path or a method that gets as far as this.
_PREFIX = re.compile(rf"({_LITERAL}*)(?:\.\*|\(\.\*\))")


def matcher(pattern: str) -> Matcher:
    """What a whole match of the pattern is, for bytes without a line feed. Raises RegexError."""
    exactly = exact(pattern)
    if not isinstance(exactly, _Whole):
        return exactly
    asked = _set_of(pattern)
    return exactly if asked is None else _Set(asked, exactly)


def exact(pattern: str) -> Matcher:
    """The same, and never a no by mistake (see `_Set`): for what must not match. Raises RegexError."""
    compiled = compile_regex(pattern)
    if _ONE.fullmatch(pattern):
        return pattern.encode().__eq__
    if _SEVERAL.fullmatch(pattern):
        return frozenset(pattern.encode().split(b"|")).__contains__
    if found := _PREFIX.fullmatch(pattern):
        return _Prefix(found[1].encode())
    return _Whole(compiled)


def sure(asked: Matcher, value: bytes) -> bool:
    """The same, also where `matcher` may say no by mistake (see `_Set`)."""
    return asked.exactly(value) if isinstance(asked, _Set) else asked(value)


class _Set:
    """An expression as a set of one, which answers at a third of the price of a match object.

    A set that runs out of memory says no, so that its no is to be asked again.
    """

    __slots__ = ("_set", "exactly")

    def __init__(self, asked: Matcher, exactly: Matcher) -> None:
        self._set = asked
        self.exactly = exactly

    def __call__(self, value: bytes) -> bool:
        return self._set(value)


class _Whole:
    __slots__ = ("_fullmatch",)

    def __init__(self, compiled: Regex) -> None:
        self._fullmatch = compiled.fullmatch

    def __call__(self, value: bytes) -> bool:
        return self._fullmatch(value) is not None


def _set_of(pattern: str) -> Matcher | None:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    made = re2.Set.FullMatchSet(options)
    try:
        made.Add(pattern.encode("ascii"))
        made.Compile()
    except re2.error:
        return None
    match = made.Match
    return lambda value: bool(match(value))


class _Prefix:
    __slots__ = ("_prefix",)

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"<{self._prefix!r} and anything>"

    def __call__(self, value: bytes) -> bool:
        return value.startswith(self._prefix)
