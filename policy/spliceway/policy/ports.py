"""Port ranges as prefixes, for the kernel's longest-prefix match."""

from __future__ import annotations

from collections.abc import Iterator

PORT_BITS = 16
LAST_PORT = (1 << PORT_BITS) - 1


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest disjoint prefixes that cover ports `first` to `last`: (port, bits from the most significant).

    80 to 90 gives 80/13, 88/15 and 90/16. Raises ValueError when it is not a range of ports.
    """
    if not 0 <= first <= last <= LAST_PORT:
        raise ValueError(f"{first} to {last} is not a range of ports")
    while first <= last:
        # The largest block that begins here: limited by how `first` is aligned and by what is left.
        size = min(first & -first or 1 << PORT_BITS, 1 << ((last - first + 1).bit_length() - 1))
        yield first, PORT_BITS - (size.bit_length() - 1)
        first += size


def covers(port: int, prefix: int, bits: int) -> bool:
    """Whether a prefix covers a port."""
    return (port ^ prefix) >> (PORT_BITS - bits) == 0
