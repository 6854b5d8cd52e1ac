"""Nobody gets to a listener, or past it, but by being steered: not with marks, by dialling it, or from the node."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed import netns
from support import kinds
from support.attack import (
    LISTENER_PORT,
    MARKER,
    MARKS,
    SEQ,
    Site,
    Witness,
    attack,
    attacked_site,
    finish,
    pairs,
    seconds,
    set_rps,
    start_attacker,
)
from support.packets import ACK, RST, SYN, TCP, ip, tcp, udp
from support.waiting import until

pytestmark = pytest.mark.kernel

_SYN_COOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75


@pytest.fixture(scope="module", params=kinds.BOTH)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with attacked_site(request.param) as built:
        yield built


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
def test_a_pod_that_sets_the_mark_or_dials_a_listener(site: Site, rps: bool) -> None:
    set_rps(site.node, rps)
    marks = [0, *MARKS]
    nodes = list(site.node.info.ips)
    others = [ip for pod in (site.api, site.backend, site.frontend) for ip in pod.ips]
    loopback = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"]
    listeners = [[address, LISTENER_PORT] for address in (*nodes, *others, *loopback, "169.254.1.1")]
    denied = [[address, 80] for address in (*site.api.ips, *site.backend.ips)]
    deadline = time.monotonic() + seconds()
    with site.load() as load:
        while True:
            for pod in (site.intruder, site.backend):
                report = attack(pod, "dial", targets=[*listeners, *denied], marks=marks, wait=0.5)
                own = [line for line in report["answered"] if pod is site.backend and line.startswith(pod.ips)]
                assert [line for line in report["answered"] if line not in own] == []
            request = "GET /private HTTP/1.1\r\nHost: api\r\n\r\n"
            targets = [[address, 80] for address in site.api.ips]
            report = attack(site.frontend, "dial", targets=targets, marks=marks, wait=5, request=request)
            assert len(report["answered"]) == report["tried"]
            assert {line.rpartition(": ")[2] for line in report["answered"]} == {"HTTP/1.1 403 Forbidden"}
            if time.monotonic() > deadline:
                break
        load.flawless()


@pytest.mark.timeout(600)
def test_a_process_of_the_node_that_dials_a_listener(site: Site) -> None:
    """Refused; and the proxy never comes to connect to itself."""
    code = (
        "import sys, socket\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from support.attacker import dial\n"
        "print(dial([[a, int(sys.argv[2])] for a in sys.argv[4:]], [0, 0x1000, 0x1002, 2], 1.0)['answered'])\n"
        "sys.stdout.flush()\n"
    )
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    addresses = ["127.0.0.1", "127.0.0.9", "::1", *site.node.info.ips]
    before = site.counted("not-for-listeners")
    with site.load() as load:
        for port in (LISTENER_PORT, LISTENER_PORT + 1):
            argv = [sys.executable, "-c", code, tests, str(port), "-", *addresses]
            done = site.node.run_on_node(argv)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == "[]"
        load.flawless()
    assert site.counted("not-for-listeners") > before
    assert netns.call(site.node.info.netns, _connections_to_listeners) == 0


def test_a_segment_from_port_0_is_no_lookup_of_ours(site: Site) -> None:
    """The guard lets lookups «from nowhere» through, as steering makes them; a real segment may have port 0, too."""
    with Witness(site.node.info.netns, marker=(SEQ + 1).to_bytes(4, "big")) as witness:
        for address in ("127.0.0.1", "::1"):
            segment = tcp(address, address, 0, LISTENER_PORT, SYN, seq=SEQ)
            netns.call(site.node.info.netns, lambda a=address, s=segment: _send_raw(ip(a, a, TCP, s)))  # type: ignore[misc]
        time.sleep(0.2)
        witness.close()
    answers = [frame for frame in witness.seen if LISTENER_PORT.to_bytes(2, "big") + b"\0\0" in frame]
    flags = {frame[_tcp_offset(frame) + 13] for frame in answers}
    assert SYN | ACK not in flags


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cookies", ["0", "1", "2"])
def test_a_process_of_the_node_on_the_listeners_port(site: Site, cookies: str) -> None:
    """It can't join the listener, nor take over by SYN cookies or a listener beside it; it never gets a connection."""
    got: list[str] = []
    default = netns.call(site.node.info.netns, lambda: _SYN_COOKIES.read_text())
    netns.call(site.node.info.netns, lambda: _SYN_COOKIES.write_text(cookies))
    socks = netns.call(site.node.info.netns, lambda: _squat(site))
    try:
        report = finish(
            start_attacker(
                site.frontend,
                "dial",
                targets=[[address, 80] for address in site.api.ips for _ in range(100)],
                marks=[0],
                wait=3,
                request="GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n",
            )
        )
        _accept_all(socks, got)
    finally:
        netns.call(site.node.info.netns, lambda: _SYN_COOKIES.write_text(default))
        for sock in socks:
            sock.close()
    assert got == []
    # The server gives no reason phrase. Envoy has one.
    assert {line.rpartition(": ")[2].strip().removesuffix(" OK") for line in report["answered"]} <= {"HTTP/1.1 200"}
    with site.load() as load:
        time.sleep(0.5)
        load.flawless()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
def test_the_node_cannot_speak_for_a_pod(site: Site, rps: bool) -> None:
    """A transparent socket of the node with a pod's address, and raw packets on proxied and direct tuples."""
    set_rps(site.node, rps)
    direct_port = 41000 + rps
    hold = (
        "import socket, sys\n"
        "socks = [socket.create_connection((a, 80), source_address=(s, int(sys.argv[1]))) "
        "for s, a in zip(sys.argv[2::2], sys.argv[3::2])]\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    direct = [address for pair in pairs(site.frontend, site.backend) for address in pair]
    holder = site.frontend.spawn(
        [sys.executable, "-c", hold, str(direct_port), *direct], stdin=-1, stdout=-1, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "up"
    try:
        with site.load(requests=4000) as load, Witness(site.api.netns, site.backend.netns) as witness:
            deadline = time.monotonic() + seconds()
            while time.monotonic() < deadline:
                ports = until(site.live_ports)
                for source, target in (*pairs(site.frontend, site.api), *pairs(site.frontend, site.backend)):
                    assert netns.call(site.node.info.netns, lambda s=source, t=target: _transparent(s, t)) is None  # type: ignore[misc]
                    for port in (*ports[:3], 40000, direct_port):
                        for packet in _forged(source, target, port):
                            netns.call(site.node.info.netns, lambda p=packet: _send_raw(p))  # type: ignore[misc]
            load.flawless()
            witness.assert_nothing()
    finally:
        holder.communicate("")


def _forged(source: str, target: str, port: int) -> Iterator[bytes]:
    """With data or a SYN. A bare RST or ACK is the kernel's own business: it answers so for sockets that are closed."""
    for flags, data in ((SYN, b""), (SYN, MARKER), (ACK, MARKER), (RST, MARKER), (SYN | ACK, b"")):
        yield ip(source, target, TCP, tcp(source, target, port, 80, flags, data, seq=SEQ, ack=1))
    yield ip(source, target, 17, udp(source, target, port, 53, MARKER))


def _transparent(source: str, target: str) -> str | None:
    """Connect to port 80 from an address that is not ours. None when that does not work."""
    v6 = ":" in source
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(
            socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, _IPV6_TRANSPARENT if v6 else _IP_TRANSPARENT, 1
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The mark of the proxy's own packets, for which the answer would be delivered here.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x1002)
        sock.bind((source, 0))
        sock.settimeout(0.2)
        try:
            sock.connect((target, 80))
        except OSError:
            return None
        return str(sock)


def _send_raw(packet: bytes) -> None:
    v6 = packet[0] >> 4 == 6
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        target = socket.inet_ntop(family, packet[24:40] if v6 else packet[16:20])
        with contextlib.suppress(OSError):
            sock.sendto(packet, (target, 0))


def _tcp_offset(frame: bytes) -> int:
    return 54 if frame[12:14] == b"\x86\xdd" else 34


def _connections_to_listeners() -> int:
    found = 0
    for table in ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"):
        with open(table) as file:  # noqa: PTH123
            lines = file.read().splitlines()[1:]
        found += sum(f":{LISTENER_PORT:04X}" in line.split()[2] for line in lines)
    return found


def _squat(site: Site) -> list[socket.socket]:
    """Listeners on the port of a rule set, and on the servers' own addresses, in the node's namespace."""
    socks = []
    wanted = [("127.0.0.1", LISTENER_PORT), ("::1", LISTENER_PORT), ("0.0.0.0", LISTENER_PORT), ("::", LISTENER_PORT)]
    wanted += [(address, 80) for address in (*site.api.ips, "0.0.0.0", "::")]
    for address, port in wanted:
        v6 = ":" in address
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections of the proxy in TIME_WAIT have the servers' port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        try:
            sock.bind((address, port))
            # So short a queue that it answers with SYN cookies, which come from no socket.
            sock.listen(0)
        except OSError:
            sock.close()
            continue
        socks.append(sock)
    assert len(socks) >= 2
    return socks


def _accept_all(socks: list[socket.socket], got: list[str]) -> None:
    for sock in socks:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, peer = sock.accept()
                connection.setblocking(False)
                data = b""
                with contextlib.suppress(OSError):
                    data = connection.recv(1000)
                got.append(f"{sock.getsockname()} from {peer}: {data!r}")
                connection.close()
