"""Connected UDP sockets of pods whose backend has gone: they are ended, since no program ever sees them send again.

Such a socket is destroyed: its owner gets ECONNABORTED from recv() and EDESTADDRREQ from send(), and connects anew.
Cilium does the same. A socket that dialled the pod itself stays. TCP connections end with their server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from spliceway.bpf import diag, netns
from spliceway.bpf.errors import DatapathError

#: `is_lost(cookie, struct lb_backend)`, see `ServiceMaps`.
IsLost = Callable[[bytes, bytes], bool]

_CONNECTED = 1 << 1  # TCP_ESTABLISHED
#: Of `struct inet_diag_msg`: both ends, the remote port and address, the cookie.
_ENDS, _PORT, _ADDRESS, _ADDRESS_V4, _COOKIE = slice(4, 40), slice(6, 8), slice(24, 40), slice(24, 28), slice(44, 52)
_MAPPED = bytes(10) + b"\xff\xff"


def end_lost(namespaces: Iterable[Path], is_lost: IsLost) -> int:
    """End such sockets in these network namespaces; returns how many. Namespaces that have gone are passed over.

    Raises DatapathError when one can't be entered, or UDP sockets can't be listed or ended there; all others are done
    by then.
    """
    ended, failed = 0, None
    for path in namespaces:
        try:
            ended += netns.call_in(path, lambda: _end_here(is_lost))
        except DatapathError as error:
            failed = error if path.exists() else failed
    if failed is not None:
        raise failed
    return ended


def _end_here(is_lost: IsLost) -> int:
    lost = [
        (family, body[_ENDS], body[_COOKIE])
        for family, body in diag.dump(_CONNECTED, protocol=socket.IPPROTO_UDP)
        if is_lost(body[_COOKIE], _remote(family, body))
    ]
    return len(diag.destroy_many(lost, protocol=socket.IPPROTO_UDP)) if lost else 0


def _remote(family: int, body: bytes) -> bytes:
    """`struct lb_backend`."""
    address = _MAPPED + body[_ADDRESS_V4] if family == socket.AF_INET else body[_ADDRESS]
    return address + body[_PORT] + bytes(2)
