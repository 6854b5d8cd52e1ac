"""Who makes the kernel forget whose a packet is (`c/sender.h`): filters of others behind ours that accept.

Where a clsact filter accepts a packet (TC_ACT_OK), the kernel writes `tc_index` anew; where a TCX program does, from
what is in `tc_classid`: behind ours at a pod's device that is the note, at a bridge anything. What was masqueraded then
can't be told from what the node itself sends, so as long as there may be such ones on a packet's way nothing is left to
be judged behind a translation. What comes to a device of the network matters no more: ours have judged it there.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping

from spliceway.bpf import tcx
from spliceway.bpf.attach import EGRESS, INGRESS, OURS, is_ours
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.loaded import program_name
from spliceway.bpf.standin import STAND_IN


def resetting(endpoints: Mapping[int, int]) -> list[str]:
    """Filters of others that packets of these meet behind `from_pod`, for people. Raises KernelRefusedError.

    `endpoints`: index of each device → that of the bridge that it is a port of, 0: none.
    """
    names = dict(socket.if_nameindex())
    return [
        f"{other} at {side} of {names[ifindex]}"
        for ifindex, parent, side in _ways(endpoints)
        if ifindex in names
        for other in (*_filters(ifindex, parent), *(() if ifindex in endpoints else _programs(ifindex, parent)))
    ]


def _filters(ifindex: int, parent: int) -> list[str]:
    return [one.name or one.kind for one in filters(ifindex, parent) if not is_ours(one)]


def _programs(ifindex: int, parent: int) -> list[str]:
    """TCX programs of others, by name."""
    if not tcx.supported():
        return []
    try:
        found = tcx.query(ifindex, tcx.INGRESS if parent == INGRESS else tcx.EGRESS)
    except KernelRefusedError as error:
        if error.errno != errno.ENODEV:  # gone since they were listed
            raise
        return []
    names = [program_name(one.program) for one in found]
    return [name or "a TCX program" for name in names if name not in OURS | {STAND_IN}]


def _ways(endpoints: Mapping[int, int]) -> Iterator[tuple[int, int, str]]:
    for ifindex in sorted(endpoints):
        yield ifindex, INGRESS, "ingress"
    for ifindex in sorted({*endpoints.values()} - {0}):
        yield ifindex, INGRESS, "ingress"
        yield ifindex, EGRESS, "egress"
