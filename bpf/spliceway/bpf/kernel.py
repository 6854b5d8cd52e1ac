"""What the running kernel is known to do right. A first version of the gate: it errs on the side of not splicing."""

from __future__ import annotations

import os
import re

#: The release with c77b3b79a92e (CVE-2025-68227): before it a sockmap can panic when the accepting program listens with
#: MPTCP, which Go does by default since 1.24. Pods' listeners are unknown to us; the proxy's is plain TCP.
_MPTCP_FIXED = (6, 18)


def release() -> tuple[int, int]:
    """Version and patch level of the running kernel."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def may_splice_servers() -> bool:
    """Whether sockets that a pod has accepted may be put in a sockmap."""
    return release() >= _MPTCP_FIXED
