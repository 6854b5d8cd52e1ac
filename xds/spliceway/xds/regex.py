"""Regular expressions for Envoy: checked here, so that Envoy never has to refuse one.

One refused RDS resource would hold back what comes with it.
"""

from __future__ import annotations

from functools import lru_cache

import re2

from spliceway.policy.regex import MAX_PROGRAM_SIZE, RegexError, compile_regex
from spliceway.xds.errors import ResourceError


@lru_cache(maxsize=4096)
def checked(pattern: str) -> str:
    """Return `pattern` when Envoy will accept it.

    `policy` measures programs as they run, on Latin-1; Envoy compiles for UTF-8, where a `.` is larger.

    Raises:
        ResourceError: the reason, without saying where the pattern is from.
    """
    try:
        compile_regex(pattern)
    except RegexError as error:
        raise ResourceError(f"{pattern!r} is {error}") from error
    size = re2.compile(pattern).programsize
    if size > MAX_PROGRAM_SIZE:
        raise ResourceError(
            f"{pattern!r} is too large: RE2 program size {size} is more than {MAX_PROGRAM_SIZE}, "
            "use smaller repetition counts"
        )
    return pattern
