"""The maps by name, opened from their pins."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

from spliceway.bpf import abi, lbabi
from spliceway.bpf.libbpf import BpfMap

_U32 = ctypes.sizeof(ctypes.c_uint32)
_S = ctypes.sizeof

#: name → (key size, value size, per CPU)
LAYOUT: dict[str, tuple[int, int, bool]] = {
    "generation": (_U32, _S(abi.Generation), False),
    "config": (_U32, _S(abi.Config), False),
    "endpoints": (_U32, _S(abi.Endpoint), False),
    "ipcache": (_S(abi.IpcacheKey), _S(abi.IpcacheValue), False),
    "classes": (_S(abi.ClassKey), _S(abi.ClassValue), False),
    "policy": (_S(abi.PolicyKey), _S(abi.PolicyValue), False),
    "pairs": (_S(abi.PairKey), _S(abi.PairValue), False),
    "listeners": (_U32, _S(abi.Listener), False),
    "conntrack": (_S(abi.CtKey), _S(abi.CtValue), False),
    "reasons": (_U32, _S(abi.Counter), True),
    "splice_totals": (_U32, _S(abi.SpliceCounters), True),
    "splices": (_S(abi.SpliceKey), _S(abi.SpliceState), False),
    "unspliced": (_S(abi.UnsplicedKey), 1, False),
    "unread": (8, _S(abi.Unread), False),
    "socks": (_S(abi.SpliceKey), 8, False),
    "sidecar_pods": (8, _S(abi.SidecarPod), False),
    "sidecar_socks": (_U32, _S(abi.SockTag), False),
    "events": (0, 0, False),
    "fragments": (40, 8, False),
    "proxy_socks": (_U32, _U32, False),
    "sock_tags": (_U32, _S(abi.SockTag), False),
}

#: The same, of the maps that are there when pods' sockets get Services from us (see `services.py`).
SERVICES_LAYOUT: dict[str, tuple[int, int, bool]] = {
    "lb_frontends": (_S(lbabi.LbKey), _S(lbabi.LbFrontend), False),
    "lb_rows": (_S(lbabi.LbRowKey), _S(lbabi.LbRow), False),
    "lb_backends": (_S(lbabi.LbBackendKey), _S(lbabi.LbBackend), False),
    "lb_affinities": (_S(lbabi.LbAffinityKey), _S(lbabi.LbAffinity), False),
    "lb_peers": (_U32, _S(lbabi.LbPeer), False),
    "lb_socket_talks": (_U32, _S(lbabi.LbTalks), False),
    "lb_untouched": (8, 1, False),
    "lb_connected": (8, _S(lbabi.LbBackendKey), False),
}


def layout(defines: Mapping[str, str]) -> dict[str, tuple[int, int, bool]]:
    """Of all maps of programs that are compiled with these definitions."""
    return {**LAYOUT, **SERVICES_LAYOUT} if "SOCKET_LB" in defines else LAYOUT


ZERO = (0).to_bytes(4, "little")


class Maps:
    """All maps of one pin root, open. Attribute names are the maps' names in `maps.h`."""

    generation: BpfMap
    config: BpfMap
    endpoints: BpfMap
    ipcache: BpfMap
    classes: BpfMap
    policy: BpfMap
    pairs: BpfMap
    listeners: BpfMap
    conntrack: BpfMap
    reasons: BpfMap
    splice_totals: BpfMap
    splices: BpfMap
    unspliced: BpfMap
    unread: BpfMap
    socks: BpfMap
    sidecar_pods: BpfMap
    events: BpfMap

    def __init__(self, pin_root: Path) -> None:
        """Open every map below `pin_root`/maps. Raises KernelRefusedError when one is missing."""
        self.root = pin_root
        self._all = []
        for name, (_, _, per_cpu) in LAYOUT.items():
            opened = BpfMap.open(pin_root / "maps" / name, name, per_cpu=per_cpu)
            self._all.append(opened)
            setattr(self, name, opened)

    def close(self) -> None:
        """Close all descriptors; the pins stay."""
        for opened in self._all:
            opened.close()
