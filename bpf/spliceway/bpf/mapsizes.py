"""Sizes of maps: what the configuration says counts when a map is made; one that is taken over keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spliceway.bpf import libbpf
from spliceway.bpf.lbabi import LB_ROW
from spliceway.bpf.types import DatapathSettings

#: Field of the configuration below `datapath` → definition of the programs, and a map that has this size.
_FIELDS = {
    "maxConnections": ("MAX_CONNECTIONS", "conntrack"),
    "maxIpcache": ("MAX_IPCACHE", "ipcache"),
    "maxRows": ("MAX_ROWS", "policy"),
    "maxEndpoints": ("MAX_ENDPOINTS", "endpoints"),
    "maxPairs": ("MAX_PAIRS", "pairs"),
    "maxFrontends": ("MAX_FRONTENDS", "lb_frontends"),
    "maxBackends": ("MAX_BACKENDS", "lb_backends"),
    "maxAffinities": ("MAX_AFFINITIES", "lb_affinities"),
}
CURE = "`spliceway cleanup` and a start make it anew"


def configured(settings: DatapathSettings) -> dict[str, int]:
    """Elements of maps that can be full, by name, when they are made with these settings."""
    return {
        "endpoints": settings.max_endpoints,
        "ipcache": settings.max_ipcache,
        "classes": settings.max_rows,
        "policy": settings.max_rows,
        "lb_frontends": settings.max_frontends,
        "lb_rows": settings.max_frontends + settings.max_backends // LB_ROW,  # as in `c/lbmaps.h`
        "lb_backends": settings.max_backends,
    }


def differing(root: Path, names: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences for people: maps below `root` of another size than these definitions would give them."""
    found = []
    for field, (define, name) in _FIELDS.items():
        wanted, path = names.get(define), root / "maps" / name
        if wanted is None or not path.exists():
            continue
        if (size := libbpf.info_of(path).max_entries) != int(wanted):
            found.append(f"datapath.{field} is {wanted}, but map {name} was made with {size}: {CURE}")
    return tuple(found)
