"""What the two-slot maps of a datapath hold, as logical rows."""

from __future__ import annotations

from spliceway.bpf.rows import LogicalRows, unpack_class, unpack_endpoint, unpack_identity, unpack_row
from support.kernel import KernelNode

_UNPACK = {"endpoints": unpack_endpoint, "ipcache": unpack_identity, "classes": unpack_class, "policy": unpack_row}

Held = dict[str, dict[bytes, bytes]]


def live(node: KernelNode) -> tuple[Held, Held]:
    """What the maps hold, by slot: the live one first. Maps without slots are in both."""
    maps = node.datapath._maps
    slot = node.datapath._table.generation & 1
    plain = {"pairs": dict(maps.pairs.items())}
    both = []
    for which in (slot, 1 - slot):
        slots = {
            name: {key: value for key, raw in getattr(maps, name).items() if (value := unpack(raw, which))}
            for name, unpack in _UNPACK.items()
        }
        both.append(slots | plain)
    return both[0], both[1]


def expected(rows: LogicalRows) -> Held:
    """The same of logical rows."""
    return {name: getattr(rows, name) for name in (*_UNPACK, "pairs")}
