"""Regular expressions for Envoy: checked here, so that Envoy never has to refuse one.

Envoy matches with RE2, the whole value, and refuses programs larger than `re2.max_program_size.error_level` (100 unless
the bootstrap says otherwise). One refused RDS resource holds back what comes with it.
"""

from __future__ import annotations

import functools

import re2

from spliceway.xds.errors import ResourceError

#: Largest RE2 program that is sent; the bootstrap sets Envoy's limit to the same number.
MAX_PROGRAM_SIZE = 1000


def _options(encoding: object) -> re2.Options:
    options = re2.Options()
    options.encoding = encoding
    options.log_errors = False
    return options


_LATIN1 = _options(re2.Options.Encoding.LATIN1)
_UTF8 = _options(re2.Options.Encoding.UTF8)


@functools.lru_cache(maxsize=4096)
def checked(pattern: str) -> str:
    """Return `pattern` when RE2 accepts it and its program is small enough in either encoding.

    Raises:
        ResourceError: the reason, without saying where the pattern is from.
    """
    data = pattern.encode()
    try:
        size = max(re2.compile(data, _LATIN1).programsize, re2.compile(pattern, _UTF8).programsize)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        raise ResourceError(
            f"{pattern!r} is not an RE2 pattern: {reason.decode() if isinstance(reason, bytes) else reason}"
        ) from error
    if size > MAX_PROGRAM_SIZE:
        raise ResourceError(
            f"{pattern!r} compiles to an RE2 program of size {size}, the limit is {MAX_PROGRAM_SIZE}: "
            "use smaller repetition counts"
        )
    return pattern
