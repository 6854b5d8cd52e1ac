"""Ranges as prefixes: complete, disjoint, and as few as there can be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.policy.ports import LAST_PORT, covers, prefixes


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (80, 80, [(80, 16)]),
        (80, 90, [(80, 13), (88, 15), (90, 16)]),
        (0, LAST_PORT, [(0, 0)]),
        (1, 3, [(1, 16), (2, 15)]),
        (32768, LAST_PORT, [(32768, 1)]),
        (LAST_PORT, LAST_PORT, [(LAST_PORT, 16)]),
        (0, 0, [(0, 16)]),
    ],
)
def test_known_covers(first: int, last: int, expected: list[tuple[int, int]]) -> None:
    assert list(prefixes(first, last)) == expected


@given(st.integers(0, LAST_PORT), st.integers(0, LAST_PORT))
def test_cover_is_exact_and_minimal(one: int, other: int) -> None:
    first, last = sorted((one, other))
    found = list(prefixes(first, last))
    position = first
    for port, bits in found:
        assert port == position
        assert port % (1 << (16 - bits)) == 0
        position += 1 << (16 - bits)
    assert position == last + 1
    # Minimal: no two prefixes are the halves of a larger one.
    for (left, left_bits), (right, right_bits) in pairwise(found):
        assert not (left_bits == right_bits and left ^ right == 1 << (16 - left_bits))
    for port in {first, last, max(first - 1, 0), min(last + 1, LAST_PORT)}:
        assert any(covers(port, prefix, bits) for prefix, bits in found) == (first <= port <= last)


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 5), (0, LAST_PORT + 1)])
def test_not_a_range(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="is not a range of ports"):
        list(prefixes(first, last))
