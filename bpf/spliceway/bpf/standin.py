"""A program that does what another one does, by a tail call: so one of ours can be at a TCX hook twice for a moment.

The kernel refuses the same program twice at one hook, and a link can't move. Source: `linux/bpf.h`,
`kernel/bpf/mprog.c`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from spliceway.bpf import creation, libbpf
from spliceway.bpf.source import SCHED_CLS

#: Its name.
STAND_IN = "stand_in"
_PROG_ARRAY = 3
_DROP = 2  # TC_ACT_SHOT
_INSTRUCTION = struct.Struct("=BBhi")


@contextmanager
def stand_in(program: int) -> Iterator[int]:
    """Descriptor of one for the TC program `program`. Afterwards, wherever it is still attached, it drops.

    Raises KernelRefusedError.
    """
    made = creation.create_map(STAND_IN, _PROG_ARRAY, 4, 4, 1, 0, creation.MapTypes())
    array = libbpf.BpfMap(made, STAND_IN, 4, 4)
    try:
        code = b"".join(
            _INSTRUCTION.pack(*each)
            for each in (
                (0x18, 0x12, 0, array.fd),  # r2 = the map (its descriptor, BPF_PSEUDO_MAP_FD); two instructions long
                (0, 0, 0, 0),
                (0xB7, 0x03, 0, 0),  # r3 = 0
                (0x85, 0, 0, 12),  # bpf_tail_call
                (0xB7, 0x00, 0, _DROP),  # r0 = …, where nothing is in the map any more
                (0x95, 0, 0, 0),  # exit
            )
        )
        standing = creation.load_program(STAND_IN, SCHED_CLS, -1, code)
        try:
            array.update(bytes(4), program.to_bytes(4, "little"))
            yield standing
        finally:
            os.close(standing)
    finally:
        array.close()  # the kernel empties it with its last descriptor
