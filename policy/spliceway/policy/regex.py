"""Regular expressions exactly as Envoy runs them: RE2 on Latin-1 bytes, whole match.

google-re2 reads UTF-8 by default; a rule would then mean something else here than in Envoy (http.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import re2

from spliceway.policy.errors import SplicewayError

#: Largest program that Envoy's bootstrap lets through (`re2.max_program_size.error_level`).
MAX_PROGRAM_SIZE = 1000


class Regex(Protocol):
    """A compiled expression."""

    def fullmatch(self, text: bytes) -> object | None:
        """A match of the whole text, or None."""


class RegexError(SplicewayError):
    """An expression that RE2 refuses, or that is too large for Envoy."""


@lru_cache(maxsize=8192)
def compile_regex(pattern: str) -> Regex:
    r"""Compile an expression. Raises RegexError.

    Only ASCII: what other characters mean differs between Latin-1 and UTF-8 (write `\xNN`).
    """
    if not pattern.isascii():
        raise RegexError("only ASCII is allowed in an expression (write \\xNN for other bytes)")
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode("ascii"), options)
    except re2.error as error:
        reason = error.args[0] if error.args else "refused"
        text = reason.decode("latin-1") if isinstance(reason, bytes) else str(reason)
        raise RegexError(f"not an RE2 expression: {text}") from None
    if compiled.programsize > MAX_PROGRAM_SIZE:
        raise RegexError(f"too large: RE2 program size {compiled.programsize} is more than {MAX_PROGRAM_SIZE}")
    found: Regex = compiled
    return found
