"""Sockets of the relay: towards the server from the client's own address, and how they end."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

# linux/in.h and linux/in6.h; the module socket has no names for them.
_IP_TRANSPARENT = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_TRANSPARENT = 75
_TCP_CLOSED = 7
_RESET, _ORDERLY = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
#: The node agent's own socket option (spliceabi.h: SOCKOPT_LEVEL and _ROOM): a program on the proxy's cgroup answers.
ROOM = 0x5317, 1
#: A dead peer is noticed after some five minutes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 120), (socket.TCP_KEEPINTVL, 30), (socket.TCP_KEEPCNT, 6))


def prepare_listener(listener: socket.socket) -> None:
    """Set what every accepted socket inherits."""
    listener.setblocking(False)
    _set_up(listener)


def upstream(family: int, client: str, mark: int) -> socket.socket:
    """A socket bound to the client's address, with a port that the kernel chooses when it connects.

    Raises OSError.
    """
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        # Otherwise bind() takes a port for itself, and a client's 28,000 ports are gone while its tuples are not.
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        _set_up(made)
        made.bind((client, 0))
    except OSError:
        made.close()
        raise
    return made


def reset(sock: socket.socket) -> None:
    """Close with RST: the peer must see that something was lost."""
    sock.close()  # see _set_up


def close(sock: socket.socket) -> None:
    """Close with FIN, after all that was written."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
    sock.close()


def is_closed(sock: socket.socket) -> bool:
    """Whether the connection has ended both ways, as a reset leaves it."""
    try:
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    except OSError:
        return True
    return state == _TCP_CLOSED


def room(sock: socket.socket) -> int | None:
    """How many bytes a spliced socket may send now; None when it is not spliced: then TCP knows."""
    try:
        return int.from_bytes(sock.getsockopt(*ROOM, 4), sys.byteorder)
    except OSError:
        return None


def _set_up(sock: socket.socket) -> None:
    # Whoever closes a socket without more ado resets it: so does the kernel when this process dies, and an answer that
    # ends with its connection does not look complete then.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
