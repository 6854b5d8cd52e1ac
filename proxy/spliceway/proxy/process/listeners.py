"""Listening sockets: bound when a listener is accepted, listening when it is served, closed when it has gone.

They belong to the supervisor, so that what waits in a queue survives a worker. All workers share one socket for each
address; there is no SO_REUSEPORT, whose group any process of the same user could join.

listen() is what makes a socket the proxy's: the agent's sockops program marks it there, because this process is in
the proxy's cgroup, and the kernel clones the mark into what is accepted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping

from spliceway.policy.errors import SplicewayError

# linux/in.h and linux/in6.h; the module socket has no names for them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
#: Offset of `tcpi_unacked` in struct tcp_info: of a listening socket, how many connections wait to be accepted.
_TCP_INFO_UNACKED = 24

# asm-generic/socket.h.
_SO_ATTACH_FILTER = 26
#: Classic BPF on a TCP segment, which begins with its header: (code, jump if true, if false, value).
_NO_SYN = (
    (0x30, 0, 0, 13),  # the flags
    (0x54, 0, 0, 0x12),  # SYN and ACK of them
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # dropped
    (0x06, 0, 0, 0xFFFF_FFFF),  # taken
)

Address = tuple[str, int]


class ListenError(SplicewayError):
    """An address can't be had. The message says which, and why."""


class Sockets:
    """The sockets by listener. `stage` opens new ones beside, `commit` or `discard` ends that."""

    def __init__(self) -> None:
        self._current: dict[str, dict[Address, socket.socket]] = {}
        self._staged: dict[str, dict[Address, socket.socket]] = {}
        self._offered: dict[Address, socket.socket] = {}
        #: An earlier proxy still accepts on sockets that it gave: they may be closed, but not ended for all.
        self.shared = False

    def __repr__(self) -> str:
        return f"<Sockets of {len(self._current)} listeners, {len(self._staged)} staged>"

    def offer(self, sockets: Mapping[Address, socket.socket]) -> None:
        """Use these of an earlier proxy instead of new ones, until `close_offered`."""
        self._offered.update(sockets)

    def close_offered(self) -> None:
        """Close what was offered and nobody took."""
        for sock in self._offered.values():
            sock.close()
        self._offered.clear()

    def stage(self, name: str, addresses: Iterable[Address]) -> None:
        """Have a bound socket for each address of the listener; those that it has already are kept.

        Raises:
            ListenError: an address can't be had. Then nothing is staged.
        """
        mine = self._current.get(name, {})
        wanted = list(addresses)
        if list(mine) == wanted:
            return
        made: dict[Address, socket.socket] = {}
        try:
            for address in wanted:
                made[address] = mine.get(address) or self._take_or_open(address, made)
        except ListenError:
            self._close_others(made, mine)
            raise
        self._staged[name] = made

    def listen(self, name: str, backlog: int) -> None:
        """Take connections, from now on, on all sockets of the listener.

        Raises:
            ListenError: somebody else listens there.
        """
        for address, sock in self._of(name).items():
            try:
                sock.listen(backlog)
            except OSError as error:
                raise _refused(address, error) from None

    def commit(self) -> None:
        """What is staged is in use; what it replaces is closed."""
        for name, made in self._staged.items():
            self._close_others(self._current.get(name, {}), made)
            self._current[name] = made
        self._staged.clear()

    def discard(self, names: Iterable[str]) -> None:
        """Close what is staged for these."""
        for name in names:
            self._close_others(self._staged.pop(name, {}), self._current.get(name, {}))

    def silence(self, names: Iterable[str]) -> None:
        """Take no more connections for these, and reset those that wait; the addresses stay taken.

        At once and for all processes that have a copy. What is in use beside what is staged goes on.
        """
        for name in names:
            made, current = self._of(name), self._current.get(name, {})
            for address, sock in made.items():
                if not self.shared and (made is current or current.get(address) is not sock):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def drop_new(self) -> None:
        """From now on, whoever has a copy of the sockets: SYNs are dropped, and handshakes that have begun go on.

        A client tries again after a second; were the socket closed between its SYN and its connection's turn, it would
        be reset. There is no way back here: never while another proxy may come to have the sockets.
        """
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _NO_SYN))
        program = struct.pack("HP", len(_NO_SYN), ctypes.addressof(code))
        for found in self._current.values():
            for sock in found.values():
                with contextlib.suppress(OSError):  # no memory for it: then a few are reset
                    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def close(self, names: Iterable[str]) -> None:
        """These listeners have gone."""
        names = list(names)
        self.silence(names)
        self.release(names)

    def release(self, names: Iterable[str]) -> None:
        """Close our copies. Whoever else has one goes on."""
        for name in names:
            self._close_others(self._current.pop(name, {}), {})

    def descriptors(self, names: Iterable[str]) -> list[int]:
        """Of these listeners, in the order of their names and addresses."""
        return [sock.fileno() for name in names for sock in self._of(name).values()]

    def addresses(self) -> list[Address]:
        """All addresses in use, in the order of `descriptors(names())`."""
        return [address for found in self._current.values() for address in found]

    def names(self) -> list[str]:
        """Listeners that have sockets."""
        return list(self._current)

    def queued(self) -> list[socket.socket]:
        """Sockets with connections that nobody has accepted yet."""
        return [sock for found in self._current.values() for sock in found.values() if _waiting(sock)]

    def _of(self, name: str) -> dict[Address, socket.socket]:
        return self._staged.get(name) or self._current.get(name, {})

    def _take_or_open(self, address: Address, beside: Mapping[Address, socket.socket]) -> socket.socket:
        for owner, found in (*self._current.items(), *self._staged.items(), ("it", beside)):
            if address in found:
                raise ListenError(f"cannot bind {_text(address)}: address already in use by listener {owner}")
        return self._offered.pop(address, None) or open_socket(address)

    @staticmethod
    def _close_others(sockets: Mapping[Address, socket.socket], kept: Mapping[Address, socket.socket]) -> None:
        held = set(map(id, kept.values()))
        for sock in sockets.values():
            if id(sock) not in held:
                sock.close()


def open_socket(address: Address) -> socket.socket:
    """A transparent TCP socket that is bound there and does not listen yet.

    Raises:
        ListenError: the address can't be had, or the right to be transparent (CAP_NET_ADMIN) is missing.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _refused(address, error) from None
    try:
        # A port on which somebody listens is refused all the same; connections that have ended don't count.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise _refused(address, error) from None
    return made


def _refused(address: Address, error: OSError) -> ListenError:
    # The agent moves a rule set to another port when it reads this.
    why = "address already in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
    hint = " (a transparent socket needs CAP_NET_ADMIN)" if error.errno == errno.EPERM else ""
    return ListenError(f"cannot bind {_text(address)}: {why}{hint}")


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _waiting(sock: socket.socket) -> int:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED + 4)
    except OSError:
        return 0
    return int.from_bytes(info[_TCP_INFO_UNACKED:], "little") if len(info) == _TCP_INFO_UNACKED + 4 else 0
