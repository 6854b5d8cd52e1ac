"""Who makes the kernel forget whose a packet is (`c/sender.h`): clsact filters of others behind ours that accept.

Where a filter accepts a packet (TC_ACT_OK), the kernel writes `tc_index` anew. What was masqueraded then can't be told
from what the node itself sends, so as long as there may be such filters on a packet's way nothing is left to be judged
behind a translation. What comes to a device of the network matters no more: ours have judged it there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

from spliceway.bpf.attach import EGRESS, INGRESS, is_ours
from spliceway.bpf.filters import filters


def resetting(endpoints: Mapping[int, int]) -> list[str]:
    """Filters of others that packets of these meet behind `from_pod`, for people. Raises KernelRefusedError.

    `endpoints`: index of each device → that of the bridge that it is a port of, 0: none.
    """
    names = dict(socket.if_nameindex())
    return [
        f"{one.name or one.kind} at {side} of {names[ifindex]}"
        for ifindex, parent, side in _ways(endpoints)
        if ifindex in names
        for one in filters(ifindex, parent)
        if not is_ours(one)
    ]


def _ways(endpoints: Mapping[int, int]) -> Iterator[tuple[int, int, str]]:
    for ifindex in sorted(endpoints):
        yield ifindex, INGRESS, "ingress"
    for ifindex in sorted({*endpoints.values()} - {0}):
        yield ifindex, INGRESS, "ingress"
        yield ifindex, EGRESS, "egress"
