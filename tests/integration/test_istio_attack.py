"""No byte between an application and its sidecar gets into another connection, whatever ports and addresses say."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf.types import Leg, SpliceState
from support.istio import rules
from support.istio.bed import ANY, OWN, SidecarBed, sidecar_bed
from support.splicebed import PATIENCE, Pair, Veths
from support.spliceread import Drained, drain, exactly, readable
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: Connections of each kind.
TIMES = int(os.environ.get("SPLICEWAY_ISTIO_ATTACKS", "40"))
#: On the loopback of both pods: what they connect from has the same ends in both.
SHARED = {4: "192.0.2.7", 6: "2001:db8::7"}
FAR = {4: "198.51.100.", 6: "2001:db8:ffff::"}
TOKEN = 64
_ORIGINAL_DST = 80


@pytest.fixture(scope="module")
def _sidecar_bed() -> Iterator[SidecarBed]:
    with sidecar_bed() as made:
        for pod in ("client", "server"):
            for address in ("192.0.2.7/32", "2001:db8::7/128"):
                assert not made.testbed.pod(pod).run(["ip", "address", "add", address, "dev", "lo"]).returncode
        yield made


@pytest.fixture
def bed(sidecars: SidecarBed) -> SidecarBed:
    """Two pods with sidecars."""
    return sidecars


def original(sock: socket.socket, version: int) -> tuple[str, int]:
    """Where the application dialled, as Envoy asks for it."""
    if version == 4:
        raw = sock.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, 16)
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), struct.unpack("!H", raw[2:4])[0]
    raw = sock.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]


def token(text: object) -> bytes:
    return str(text).encode().ljust(TOKEN, b".")


def talk(pair: Pair, name: object) -> None:
    """Each end gets what the other one said, and nothing else."""
    for way, (writer, reader) in {"up": (pair.pod, pair.proxy), "down": (pair.proxy, pair.pod)}.items():
        writer.sendall(token(f"{name} {way}"))
        assert exactly(reader, TOKEN) == token(f"{name} {way}")
        assert not readable(reader)


def dial(bed: SidecarBed, pod: str, version: int, source: tuple[str, int], target: tuple[str, int]) -> socket.socket:
    made = bed.make(pod, version)
    made.bind(source)
    made.connect(target)
    return made


def accept_outbound(bed: SidecarBed, version: int) -> socket.socket:
    return bed.accept(Leg.DOWNSTREAM, version)


@pytest.mark.usefixtures("veths")
def test_one_port_to_many_destinations(bed: SidecarBed, version: int) -> None:
    """Behind the translation they would all have the same ends: netfilter gives them other ports."""
    source = (bed.address("client", version), 7000)
    targets = [(f"{FAR[version]}{number}", 80 + number % 3) for number in range(1, 25)]
    dialled = {target: dial(bed, "client", version, source, target) for target in targets}
    pairs, seen = {}, set()
    for _ in targets:
        sidecar = accept_outbound(bed, version)
        target = original(sidecar, version)
        seen.add(sidecar.getpeername()[1])
        pairs[target] = bed.pair_of(Leg.DOWNSTREAM, dialled[target], sidecar)
    assert len(pairs) == len(targets) == len(seen)
    for pair in pairs.values():
        pair.wait_state(SpliceState.SPLICED)
    for name in ("first", "second"):
        for target, pair in pairs.items():
            talk(pair, (name, target))
    assert all(pair.known.to_proxy_messages == 2 for pair in pairs.values())


@pytest.mark.usefixtures("veths")
def test_all_at_once_with_tokens_under_way(bed: SidecarBed, version: int) -> None:
    """Every end sends before anybody reads."""
    source = (bed.address("client", version), 7001)
    targets = [(f"{FAR[version]}{number}", 80) for number in range(1, 17)]
    dialled = {target: dial(bed, "client", version, source, target) for target in targets}
    for target, sock in dialled.items():
        sock.sendall(token(("up", target)))
    for _ in targets:
        sidecar = accept_outbound(bed, version)
        target = original(sidecar, version)
        sidecar.sendall(token(("down", target)))
        assert exactly(sidecar, TOKEN) == token(("up", target))
        assert exactly(dialled[target], TOKEN) == token(("down", target))


@pytest.mark.usefixtures("veths")
def test_a_port_is_used_again(bed: SidecarBed, leg: Leg, version: int) -> None:
    """With bytes of the connection before that nobody has read."""
    for number in range(TIMES):
        with bed.connect(leg, version, port=7100) as pair:
            pair.wait_state(SpliceState.SPLICED, SpliceState.TCP_ONLY)
            talk(pair, number)
            pair.pod.sendall(token("nobody reads this"))
            pair.proxy.sendall(token("nor that"))
            linger = struct.pack("ii", 1, 0)
            for end in (pair.pod, pair.proxy):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.usefixtures("veths")
def test_a_socket_is_dissolved_and_dials_again(bed: SidecarBed, version: int) -> None:
    """connect() with AF_UNSPEC, in mid-connection: the new connection is another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    nobody = ctypes.create_string_buffer(bytes(16))
    for number in range(TIMES):
        target = bed.target(version)
        app = dial(bed, "client", version, (bed.address("client", version), 0), target)
        first = bed.pair_of(Leg.DOWNSTREAM, app, accept_outbound(bed, version))
        first.wait_state(SpliceState.SPLICED)
        talk(first, (number, "first"))
        first.proxy.sendall(token("of the one before"))
        assert not libc.connect(app.fileno(), nobody, 16)
        app.connect((f"{FAR[version]}9", 90))
        second = bed.pair_of(Leg.DOWNSTREAM, app, accept_outbound(bed, version))
        assert original(second.proxy, version) == (f"{FAR[version]}9", 90)
        second.pod.sendall(token((number, "second")))
        assert exactly(second.proxy, TOKEN) == token((number, "second"))
        with pytest.raises(ConnectionResetError):
            first.proxy.recv(1)
        second.proxy.sendall(token((number, "answer")))
        assert exactly(second.pod, TOKEN) == token((number, "answer"))
        second.close()
        first.proxy.close()


@pytest.mark.parametrize("opened_by", ["application", "sidecar"])
def test_two_pods_with_the_same_ends_at_the_same_time(
    bed: SidecarBed, veths: Veths, version: int, opened_by: str
) -> None:
    """Addresses and ports of both connections are the same, all four, in two pods."""
    listeners = {}
    for pod in ("client", "server"):
        place, port = (f"{pod}-sidecar", rules.OUTBOUND) if opened_by == "application" else (pod, 7203)
        if (pod, opened_by) == ("client", "application"):
            listeners[pod] = bed.listeners[version]
            continue
        made = listeners[pod] = bed.make(place, version)
        if version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((ANY[version], port))
        made.listen(64)

    def connect(pod: str) -> Pair:
        if opened_by == "application":
            made = dial(bed, pod, version, (SHARED[version], 7200), (f"{FAR[version]}1", 80))
            accepted = listeners[pod].accept()[0]
            pair = bed.pair_of(Leg.DOWNSTREAM, made, accepted)
        else:
            made = dial(bed, f"{pod}-sidecar", version, (OWN[version], 7201), (SHARED[version], 7203))
            accepted = listeners[pod].accept()[0]
            pair = bed.pair_of(Leg.UPSTREAM, made, accepted)
        accepted.settimeout(PATIENCE)
        bed._handed_out.append(accepted)
        return pair

    spliced = 0
    with ThreadPoolExecutor(2) as threads:
        for number in range(TIMES):
            pairs = dict(zip(("client", "server"), threads.map(connect, ("client", "server")), strict=True))
            ends = {pair.proxy.getpeername()[:2] + pair.proxy.getsockname()[:2] for pair in pairs.values()}
            assert len(ends) == 1
            # Bytes of both are under way at once, each end's own.
            for pod, pair in pairs.items():
                pair.pod.sendall(token((pod, number, "up")))
                pair.proxy.sendall(token((pod, number, "down")))
            for pod, pair in pairs.items():
                assert exactly(pair.proxy, TOKEN) == token((pod, number, "up"))
                assert exactly(pair.pod, TOKEN) == token((pod, number, "down"))
                assert not readable(pair.proxy)
                assert not readable(pair.pod)
            there = [one for one in bed.node.datapath.socks() if one.endpoint_port in (7200, 7203)]
            spliced += sum(one.state is SpliceState.SPLICED for one in there)
            for pair in pairs.values():
                for end in (pair.pod, pair.proxy):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                pair.close()
            until(lambda: not any(one.endpoint_port in (7200, 7203) for one in bed.node.datapath.socks()))
    # With RPS a byte may be quicker than the accepting end: then all of it goes by TCP.
    assert 0 < spliced <= 2 * TIMES if veths == "rps" else spliced == 2 * TIMES


def test_who_listens_in_the_sidecars_place(bed: SidecarBed, version: int) -> None:
    """Another user's process on 15001 is no sidecar: it gets its bytes by TCP."""
    listener = bed.make("server", version)
    if version == 6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((ANY[version], rules.OUTBOUND))
    listener.listen()
    app = dial(bed, "server", version, (bed.address("server", version), 0), (f"{FAR[version]}1", 80))
    accepted = listener.accept()[0]
    accepted.settimeout(PATIENCE)
    with bed.pair_of(Leg.DOWNSTREAM, app, accepted) as pair:
        assert (pair.known.state, pair.known.why, pair.members) == (SpliceState.TCP_ONLY, "not-sidecar", set())
        talk(pair, "by TCP")
    listener.close()


@pytest.mark.parametrize("port", [15000, 15004, 15008, 15012, 15017, 15020, 15021, 15053, 15080, 15090])
def test_istios_own_ports(bed: SidecarBed, port: int) -> None:
    """What a sidecar says to Istio's agent beside it is left alone; so is what applications say to each other."""
    for opener, place in (("server-sidecar", "server"), ("server", "server")):
        with bed.make(place, 4) as listener:
            listener.bind(("127.0.0.1", port if opener != place else 0))
            listener.listen()
            with dial(bed, opener, 4, ("127.0.0.1", 0), listener.getsockname()) as opened:
                accepted = listener.accept()[0]
                opened.sendall(b"x")
                assert exactly(accepted, 1) == b"x"
                ports = {opened.getsockname()[1], listener.getsockname()[1]}
                assert not any({one.endpoint_port, one.peer_port} & ports for one in bed.node.datapath.socks())
                accepted.close()


#: Seconds after which netfilter forgets here, instead of five days.
_FORGETS = 4


@pytest.mark.parametrize("first", ["application", "sidecar"])
def test_row_19_a_long_silence_ends_well(bed: SidecarBed, leg: Leg, version: int, first: str) -> None:
    """Netfilter sees nothing of spliced bytes: questions whether the peer is there keep the translation."""
    name = "netfilter/nf_conntrack_tcp_timeout_established"
    for pod in ("client", "server"):
        netns.call(bed.testbed.pod(pod).netns, lambda: netns.sysctl(name, _FORGETS))
    with bed.connect(leg, version) as pair:
        pair.wait_state(SpliceState.SPLICED)
        assert pair.proxy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (leg is Leg.DOWNSTREAM)
        pair.proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        pair.proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        begin = time.monotonic()
        number = 0
        while time.monotonic() < begin + 2 * _FORGETS:
            talk(pair, number)
            number += 1
            time.sleep(0.2)
        writer, reader = (pair.pod, pair.proxy) if first == "application" else (pair.proxy, pair.pod)
        writer.sendall(token("the last"))
        writer.shutdown(socket.SHUT_WR)
        assert exactly(reader, TOKEN) == token("the last")
        assert drain(reader) == Drained(b"", "")
        reader.close()
        assert drain(writer) == Drained(b"", "")
