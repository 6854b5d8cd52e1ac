"""Which Envoy may run here: older ones let requests past path rules."""

from __future__ import annotations

import re

#: First good release of each minor version (CVE-2026-73551, -73511, -73553: RBAC path bypasses). Minor versions below
#: the first have no good release, those above the last are good.
FIRST_GOOD = {(1, 36): 10, (1, 37): 6, (1, 38): 4, (1, 39): 1}


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The version in `envoy --version` or `/server_info` (`<hash>/1.40.0/Clean/RELEASE/BoringSSL`), or None."""
    found = re.search(r"/(\d+)\.(\d+)\.(\d+)(?:[-+][^/]*)?/", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def unsafe(version: tuple[int, int, int]) -> str | None:
    """Why this version must not enforce policy, or None when it may."""
    minor = version[:2]
    first = FIRST_GOOD.get(minor)
    if minor > max(FIRST_GOOD) or (first is not None and version[2] >= first):
        return None
    good = ", ".join(f"{major}.{small}.{patch}" for (major, small), patch in sorted(FIRST_GOOD.items()))
    return (
        f"Envoy {'.'.join(map(str, version))} lets requests past path rules (CVE-2026-73551, CVE-2026-73511, "
        f"CVE-2026-73553): use {good} or newer"
    )
