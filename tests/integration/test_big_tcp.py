"""TCP packets beyond 64 KiB inside of the kernel: policy holds, nothing is refused, every byte is counted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spliceway.agent.testbed.profiles import Profile
from spliceway.bpf.types import CtEntry, Hook, Leg, SpliceClasses
from spliceway.policy.verdict import Reason, Verdict
from support.linked import Site, site_of

pytestmark = pytest.mark.kernel

SIZE = 64 << 20
#: What IP's own field of the length can say.
ORDINARY = 65_535

_SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 9000), family=family) as listener:
    print("ready", flush=True)
    connection, _ = listener.accept()
    total = 0
    while data := connection.recv(1 << 20):
        total += len(data)
    print(total, flush=True)
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=60) as connection:
    piece, left = bytes(1 << 20), int(sys.argv[2])
    while left:
        connection.sendall(piece[:left])
        left -= min(left, len(piece))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # What is spliced is no packets.
    with site_of(Profile(big_tcp=True), splice=SpliceClasses(clients=False, servers=False)) as made:
        yield made


def refused(site: Site) -> int:
    """Packets that could not be read."""
    bad = {Reason.MALFORMED, Reason.UNSUPPORTED_PROTOCOL, Reason.FRAGMENT, Reason.ASSIGN_FAILED}
    return sum(one.packets for one in site.node.datapath.reasons() if one.reason in bad)


def entries(site: Site, leg: Leg, port: int) -> list[CtEntry]:
    return [
        one for one in site.node.datapath.conntrack() if one.leg is leg and port in (one.peer_port, one.endpoint_port)
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_under_policy_of_addresses_and_ports(site: Site, version: int) -> None:
    server, client = site.pod("other"), site.pod("client")
    address = str(server.address(version))
    before = refused(site)
    with (
        watched(site, "client") as watching,
        server.spawn([sys.executable, "-c", _SERVER, address], stdout=-1, text=True) as listening,
    ):
        assert listening.stdout is not None
        assert listening.stdout.readline() == "ready\n"
        done = client.run([sys.executable, "-c", _CLIENT, address, str(SIZE)], timeout=120)
        assert done.returncode == 0, done.stderr
        assert listening.stdout.readline() == f"{SIZE}\n"
        assert largest(watching) > ORDINARY, "else this was a test of ordinary packets"
    assert refused(site) == before
    found = [one for one in entries(site, Leg.DIRECT, 9000) if one.endpoint.version == version]
    assert len(found) == 2, "one of each end"
    for one in found:
        # Bytes of packets: the stream, and some headers, once each, whatever the network would have made of them.
        assert SIZE < one.bytes < SIZE * 1.05


@pytest.mark.parametrize("version", [4, 6])
def test_a_stream_through_the_proxy(site: Site, version: int) -> None:
    before = refused(site)
    with watched(site, "client") as there, watched(site, "server") as here:
        assert site.echoes("client", "server", version, SIZE) == "200 True"
        assert min(largest(there), largest(here)) > ORDINARY
    assert refused(site) == before
    assert site.asks("client", "server", version) == (200, 403)
    assert site.counted(Hook.FROM_POD, Verdict.REDIRECT) > 0


_WATCH = """
import socket
ANYTHING = 3  # ETH_P_ALL: what is sent shows to such sockets only
watch = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ANYTHING))
watch.bind(("eth0", ANYTHING))
watch.settimeout(10)
print("ready", flush=True)
largest = 0
while True:
    size = watch.recv_into(bytearray(64), 64, socket.MSG_TRUNC)
    largest = max(largest, size)
    if largest > 65575:
        break
print(largest, flush=True)
"""


@contextmanager
def watched(site: Site, pod: str) -> Iterator[subprocess.Popen[str]]:
    """Watch the packets at a pod's device until one is beyond the ordinary."""
    with site.pod(pod).spawn([sys.executable, "-c", _WATCH], stdout=-1, stderr=-3, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "ready\n"
        yield watching


def largest(watching: subprocess.Popen[str]) -> int:
    """Its bytes; 0 when none was."""
    assert watching.stdout is not None
    return int(watching.stdout.readline() or 0)
