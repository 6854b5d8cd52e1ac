"""Plain expressions that are compared instead of asked of RE2 mean what RE2 says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.proxy.http.matchers import matcher

#: Pieces that are nearly plain: what is taken for a literal by mistake shows soon.
PIECES = st.sampled_from(
    ["GET", "POST", "/a", "/b", "|", ".*", "(.*)", ".", "*", "a", "A", "-", "#", "&", "(", ")", "$"]
)
PATTERNS = st.lists(PIECES, max_size=5).map("".join)
VALUES = st.lists(st.sampled_from([b"GET", b"POST", b"/a", b"/b", b"|", b".", b"*", b"a", b"A", b"-", b"#", b"\xff"]))


@settings(max_examples=1000, deadline=None)
@given(PATTERNS, VALUES.map(b"".join))
def test_equal_to_re2(pattern: str, value: bytes) -> None:
    try:
        wanted = compile_regex(pattern).fullmatch(value) is not None
    except RegexError:
        with pytest.raises(RegexError):
            matcher(pattern)
        return
    assert matcher(pattern)(value) is wanted


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("GET", [b"GET"], [b"GETS", b"get", b"", b"AGET"]),
        ("GET|POST", [b"GET", b"POST"], [b"GET|POST", b"PUT", b""]),
        ("/pub/.*", [b"/pub/", b"/pub/a?b"], [b"/pub", b"/Pub/a"]),
        ("/pub(.*)", [b"/pub", b"/public"], [b"/pu"]),
        (".*", [b"", b"anything"], []),
        ("/a.c", [b"/abc", b"/a.c", b"/a\xffc"], [b"/ac"]),
        ("/a|/b.*", [b"/a", b"/b", b"/bc"], [b"/ac"]),
    ],
)
def test_by_hand(pattern: str, fits: list[bytes], does_not: list[bytes]) -> None:
    asked = matcher(pattern)
    assert [value for value in fits if not asked(value)] == []
    assert [value for value in does_not if asked(value)] == []
