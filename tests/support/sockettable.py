"""TCP sockets as /proc shows them: of a namespace, or of one process."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from spliceway.agent.testbed import netns

#: include/net/tcp_states.h
TIME_WAIT, LISTEN = 6, 10


class Sock(NamedTuple):
    """One row of /proc/net/tcp or tcp6; an end is (address, port), IPv4 addresses in their own form."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int
    inode: int


def sockets(directory: Path) -> list[Sock]:
    """All sockets of `directory`/tcp and tcp6 (/proc/PID/net, say)."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in (directory / name).read_text().splitlines()[1:]:
            fields = line.split()
            found.append(Sock(_end(fields[1]), _end(fields[2]), int(fields[3], 16), int(fields[9])))
    return found


def of_namespace(path: Path) -> list[Sock]:
    """All sockets of a network namespace."""
    return netns.call(path, lambda: sockets(Path("/proc/thread-self/net")))


def of_process(pid: int) -> list[Sock]:
    """The connections of a process."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        name = str(file.readlink())
        if name.startswith("socket:["):
            inodes.add(int(name[8:-1]))
    return [one for one in sockets(Path(f"/proc/{pid}/net")) if one.inode in inodes and one.state != LISTEN]


def _end(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    if len(packed) == 4:
        return str(IPv4Address(packed)), int(port, 16)
    v6 = IPv6Address(packed)
    return str(v6.ipv4_mapped or v6), int(port, 16)
