"""Maps and programs while connections are alive (rows 7, 8, 11, 15, 20 to 22, 24 and 25 of docs/splicing.md)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.source import PROGRAMS, ROOT
from spliceway.bpf.types import Leg, SpliceState
from support.node import pod_manifest
from support.socketmaker import SocketMaker
from support.splicebed import PLAIN_PORT, POLICY, Pair, SpliceBed, Veths
from support.spliceread import Drained, drain, exactly, numbered
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: Ends in the sockhash, at most.
ROOM = 512
_BPF_CGROUP_SOCK_OPS, _SK_SKB, _SO_COOKIE = 3, 14, 57


class Older:
    """A connection from before there was a datapath, with a reader that sleeps in recv()."""

    def __init__(self, testbed: Testbed) -> None:
        self.makers = [SocketMaker(testbed.pod(name).spawn) for name in ("client", "server")]
        self.client, self.listener = (maker.make(socket.AF_INET) for maker in self.makers)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        target = (str(testbed.pod("server").address()), PLAIN_PORT)
        self.listener.bind(target)
        self.listener.listen()
        self.client.connect(target)
        self.server = self.listener.accept()[0]
        self.got: list[bytes] = []
        self.reader = threading.Thread(target=lambda: self.got.append(self.client.recv(100)), daemon=True)
        self.reader.start()

    def close(self) -> None:
        for one in (self.client, self.server, self.listener, *self.makers):
            one.close()


@pytest.fixture(scope="module")
def beside() -> Iterator[tuple[SpliceBed, Older]]:
    """A bed whose sockhash is small, and a connection that is older than its datapath."""
    manifests = [pod_manifest("client", {"role": "client"}), pod_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed:
        older = Older(testbed)
        try:
            with SpliceBed(testbed, max_connections=ROOM) as bed:
                yield bed, older
        finally:
            older.close()


@pytest.fixture
def small(beside: tuple[SpliceBed, Older], veths: Veths) -> Iterator[SpliceBed]:
    """The bed alone."""
    beside[0].set_veths(veths)
    yield beside[0]
    beside[0].release()


def talks(pair: Pair, start: int = 0, size: int = 1000) -> None:
    """Bytes go both ways, in order."""
    for to_pod in (True, False):
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(size, start))
        assert exactly(reader, size) == numbered(size, start)


def stop(bed: SpliceBed) -> None:
    """As if the agent had been killed: what it held is let go."""
    bed.node.loop.call(bed.node._reader.cancel)
    bed.node.run(bed.node.datapath.close())


def start(bed: SpliceBed) -> None:
    """The next agent, with the same programs."""
    node = bed.node
    node.datapath = node.run(Datapath.open(node.settings))
    node.run(node.datapath.set_endpoints(node.endpoints))
    node._reader = node.loop.call(lambda: asyncio.get_running_loop().create_task(node._read()))
    assert node.table is not None
    node.run(node.datapath.apply(node.table))


def test_row_15_a_connection_older_than_the_agent(beside: tuple[SpliceBed, Older]) -> None:
    """It is never spliced, and its reader wakes up."""
    bed, older = beside
    older.server.sendall(numbered(100))
    older.reader.join(10)
    assert older.got == [numbered(100)]
    port = older.client.getsockname()[1]
    assert not [one for one in bed.node.datapath.socks() if port in (one.endpoint_port, one.peer_port)]


def test_row_22_entries_can_be_looked_up(small: SpliceBed, leg: Leg, version: int) -> None:
    """The value is the socket's cookie."""
    with small.spliced(leg, version) as pair:
        cookies = {
            int.from_bytes(end.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little") for end in (pair.pod, pair.proxy)
        }
        found = {int.from_bytes(value, "little") for _, value in small.node.datapath._maps.socks.items()}
        assert cookies <= found


def test_row_11_a_full_map_means_tcp(small: SpliceBed, leg: Leg) -> None:
    """Nothing is thrown out for a new connection, and nothing else about it is different."""
    before = small.node.datapath.splice_counters().by_why["map-full"]
    pairs = [small.connect(leg) for _ in range(ROOM // 2 + 10)]
    last = pairs[-1].wait_state(SpliceState.TCP_ONLY)
    assert last.why == "map-full"
    assert small.node.datapath.splice_counters().by_why["map-full"] - before >= 10
    assert pairs[0].known.state is SpliceState.SPLICED
    for pair in (pairs[0], pairs[-1]):
        talks(pair)
    for pair in pairs:
        pair.close()
    until(lambda: not list(small.node.datapath._maps.socks.keys()))
    with small.spliced(leg) as pair:
        talks(pair)


def test_row_07_an_agent_that_dies_takes_no_unread_bytes_along(small: SpliceBed, leg: Leg, to_pod: bool) -> None:
    with small.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(100_000))
        stop(small)
        start(small)
        writer.sendall(numbered(100_000, 100_000))
        assert exactly(reader, 200_000) == numbered(200_000)
        assert pair.known.state is SpliceState.SPLICED


def test_row_08_maps_and_programs_stay_without_anybody_who_holds_them(small: SpliceBed, leg: Leg) -> None:
    """Between two agents there are only pins: connections go on, and new ones are spliced."""
    with small.spliced(leg) as old:
        talks(old)
        stop(small)
        talks(old, 1000)
        with small.connect(leg) as new:
            talks(new)
            start(small)
            talks(new, 1000)
            talks(old, 2000)
            for pair, count in ((old, 3000), (new, 2000)):
                assert pair.known.state is SpliceState.SPLICED
                assert pair.known.from_proxy_bytes == count


def test_row_24_one_program_on_each_cgroup_after_all_that(small: SpliceBed) -> None:
    for cgroup in (small.node.settings.pods_cgroup, small.node.settings.proxy_cgroup):
        assert attached(cgroup) == 1
        stop(small)
        start(small)
        assert attached(cgroup) == 1


def attached(cgroup: Path) -> int:
    """How many sockops programs a cgroup has of its own."""
    count = ctypes.c_uint32(0)
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = libbpf.library().bpf_prog_query(descriptor, _BPF_CGROUP_SOCK_OPS, 0, None, None, ctypes.byref(count))
    finally:
        os.close(descriptor)
    assert done == 0
    return count.value


def test_row_25_no_byte_passes_once_the_policy_is_withdrawn(
    small: SpliceBed, leg: Leg, version: int, to_pod: bool
) -> None:
    with small.spliced(leg, version) as pair:
        talks(pair)
        writer, reader = pair.ends(to_pod=to_pod)
        try:
            small.node.apply(POLICY.replace("role: client", "role: nobody"))
            with contextlib.suppress(OSError):
                writer.sendall(b"too late")
            # The proxy's own socket is what the agent ends.
            assert drain(reader) == Drained(b"", "ConnectionResetError" if to_pod else "ConnectionAbortedError")
        finally:
            small.node.apply(POLICY)


def test_row_14_no_insertion_keeps_what_is_there() -> None:
    assert not mentioned("BPF_NOEXIST")


def test_row_20_nothing_is_corked() -> None:
    assert not mentioned("msg_cork_bytes")


def test_row_21_no_verdicts_on_what_a_socket_receives() -> None:
    assert not mentioned("sk_skb")
    assert not {spec.program_type for specs in PROGRAMS.values() for spec in specs} & {_SK_SKB}


def mentioned(word: str) -> list[str]:
    """The program's files that have a word."""
    return [file.name for file in ROOT.glob("*.[ch]") if word in file.read_text()]
