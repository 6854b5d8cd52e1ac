"""Connections that leave through the proxy: forged answers, listeners in the way, policies that change, small MTUs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf import diag
from spliceway.bpf.types import Hook, Leg
from spliceway.policy.verdict import Reason, Verdict
from support.attack import MARKER, SEQ, Witness
from support.egress import PAIR, SERVERS, Site, egress_site
from support.node import python_in
from support.packets import ACK, FIN, RST, SYN, TCP, ip, tcp
from support.raw import send_raw
from support.sysctl import set_sysctls
from support.talk import Talk

pytestmark = pytest.mark.kernel

VERSIONS = pytest.mark.parametrize("version", [4, 6])
_ENDED = {"ConnectionResetError", "RemoteDisconnected", "BrokenPipeError", "PermissionError"}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with egress_site() as built:
        yield built


def ports(site: Site, server: str, version: int) -> tuple[int, int]:
    """The client's ports of a live connection: its own, and the proxy's in its name."""
    legs = site.legs(server, version)
    up = legs[Leg.UPSTREAM]
    own = up.endpoint if up.endpoint_is_client else up.peer
    assert own == site.client.address(version)
    return legs[Leg.DOWNSTREAM].endpoint_port, up.endpoint_port if up.endpoint_is_client else up.peer_port


def forge(site: Site, packets: list[bytes]) -> None:
    """Send IP packets from a host outside, whatever their source says."""

    def send() -> None:
        for packet in packets:
            send_raw(packet)

    netns.call(site.testbed.pod("forger").netns, send)


def dropped(site: Site, *reasons: Reason) -> int:
    """Packets that were dropped for one of these reasons so far."""
    return sum(
        c.packets
        for c in site.node.datapath.reasons()
        if c.verdict is Verdict.DENY and (not reasons or c.reason in reasons)
    )


@VERSIONS
def test_answers_from_outside_reach_the_proxy_only(site: Site, version: int) -> None:
    with Talk(site.testbed, "client", "outside", version=version) as talk:
        assert talk.ask("/both/1") == "200"
        _, opened = ports(site, "outside", version)
        with Witness(site.client.netns, marker=(80).to_bytes(2, "big") + opened.to_bytes(2, "big")) as witness:
            for _ in range(5):
                assert talk.ask("/both/1") == "200"
            witness.assert_nothing()


@VERSIONS
def test_answers_of_the_nodes_own_servers_reach_the_proxy_only(site: Site, version: int) -> None:
    address = site.address("node", version)
    for _ in range(3):
        assert site.ask("node", "/both/1", version=version, count=5)[0] == 200
    _, opened = ports(site, "node", version)
    own = site.client.address(version)
    with Witness(site.client.netns, marker=(80).to_bytes(2, "big") + opened.to_bytes(2, "big")) as witness:
        sent = tcp(address, own, 80, opened, ACK, MARKER)
        netns.call(site.testbed.node.info.netns, lambda: send_raw(ip(address, own, TCP, sent)))
        witness.assert_nothing()


@VERSIONS
def test_forged_packets_on_live_tuples(site: Site, version: int) -> None:
    """From a host outside that knows everything but the sequence numbers. None gets to the pod, none does harm."""
    server, own = site.address("outside", version), str(site.client.address(version))
    with Talk(site.testbed, "client", "outside", version=version) as talk:
        assert talk.ask("/both/1") == "200"
        mine, opened = ports(site, "outside", version)
        before = dropped(site, Reason.NOT_STEERED, Reason.TUPLE_CONFLICT)
        forged = [
            ip(server, own, TCP, tcp(server, own, 80, port, flags, payload, seq=SEQ, ack=SEQ))
            for port in (mine, opened)
            for flags in (SYN, SYN | ACK, ACK, FIN | ACK, RST, SYN | FIN)
            for payload in (b"", MARKER)
        ]
        with Witness(site.client.netns) as witness:
            for _ in range(3):
                forge(site, forged)
                assert talk.ask("/both/1") == "200"
            witness.assert_nothing()
        assert dropped(site, Reason.NOT_STEERED, Reason.TUPLE_CONFLICT) - before >= 30
        assert talk.ask("/in/1") == "403"
        legs = site.legs("outside", version)
        assert {leg: e.verdict for leg, e in legs.items()} == dict.fromkeys(
            (Leg.DOWNSTREAM, Leg.UPSTREAM), Verdict.REDIRECT
        )


@VERSIONS
def test_a_process_of_the_node_that_answers_for_a_server_outside(site: Site, version: int) -> None:
    """It may be the node and nobody else: what it forges comes neither to the pod nor to the proxy."""
    server, own = site.address("outside", version), str(site.client.address(version))
    place = site.testbed.node.info.netns
    with Talk(site.testbed, "client", "outside", version=version) as talk:
        assert talk.ask("/both/1") == "200"
        mine, opened = ports(site, "outside", version)
        refused = (Reason.NOT_STEERED, Reason.FOREIGN_SOURCE, Reason.TUPLE_CONFLICT)
        before = dropped(site, *refused)
        forged = [
            ip(server, own, TCP, tcp(server, own, 80, port, flags, MARKER, seq=SEQ, ack=SEQ))
            for port in (mine, opened)
            for flags in (SYN, SYN | ACK, ACK, FIN | ACK, RST)
        ]
        with Witness(site.client.netns) as pod, Witness(place) as here:
            for packet in forged:
                netns.call(place, lambda p=packet: send_raw(p))  # type: ignore[misc]
            pod.assert_nothing()
            here.assert_nothing()
        assert dropped(site, *refused) - before == len(forged)
        assert talk.ask("/both/1") == "200"


@VERSIONS
@pytest.mark.parametrize("server", ["outside", "node"])
def test_a_process_of_the_node_on_the_same_port(site: Site, server: str, version: int) -> None:
    """It can't have the port while the proxy has it, and gets nothing when answers still come after that."""
    address, own = site.address(server, version), site.client.address(version)
    place = site.testbed.node.info.netns
    with Talk(site.testbed, "client", address, version=version) as talk:
        assert talk.ask("/both/1") == "200"
        _, opened = ports(site, server, version)
        with pytest.raises(OSError, match="Address already in use"):
            netns.call(place, lambda: _listen(opened))
        assert netns.call(place, lambda: diag.destroy(own, opened, ip_address(address), 80))
        before = dropped(site, Reason.NO_LISTENER)
        with netns.call(place, lambda: _listen(opened)) as squat:
            for flags, payload in ((ACK, MARKER), (ACK, b""), (SYN | ACK, b""), (SYN, b"")):
                packet = ip(address, own, TCP, tcp(address, own, 80, opened, flags, payload, seq=SEQ))
                if server == "node":
                    netns.call(place, lambda p=packet: send_raw(p))  # type: ignore[misc]
                else:
                    forge(site, [packet])
            time.sleep(0.3)
            with pytest.raises(BlockingIOError):
                squat.accept()
        assert dropped(site, Reason.NO_LISTENER) >= before + 2


def _listen(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        sock.listen()
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


@VERSIONS
def test_without_a_listener_nothing_leaves(site: Site, version: int) -> None:
    listeners = dict(site.node.datapath._listeners)
    own = site.client.address(version).packed
    site.node.run(site.node.datapath.set_listeners({}))
    try:
        with Witness(site.testbed.pod("outside").netns, marker=own) as witness:
            assert site.ask("outside", "/both/1", version=version, wait=2)[0] == 0
            witness.close()
        flags = 14 + (20 if version == 4 else 40) + 13
        assert not [frame for frame in witness.seen if frame[flags] & SYN], "a connection got out"
        for server in ("plain", "both", "node"):
            assert site.ask(server, "/both/1", version=version, wait=1)[0] == 0
    finally:
        site.node.run(site.node.datapath.set_listeners(listeners))
    assert site.ask("outside", "/both/1", version=version)[0] == 200


def test_rules_of_one_end_are_not_enough_without_the_pair(site: Site) -> None:
    ports = dict(site.node.datapath._listeners)
    site.node.run(site.node.datapath.set_listeners({k: v for k, v in ports.items() if k != PAIR}))
    try:
        assert site.ask("both", "/both/1", wait=1)[0] == 0
        assert site.ask("plain", "/both/1")[0] == 200
    finally:
        site.node.run(site.node.datapath.set_listeners(ports))


@VERSIONS
@pytest.mark.parametrize("server", ["plain", "both", "outside"])
@pytest.mark.parametrize("change", [{"http": False}, {"egress": False}], ids=["no-http", "nothing"])
def test_a_change_of_policy_ends_what_it_does_not_cover(
    site: Site, server: str, version: int, change: dict[str, bool]
) -> None:
    with Talk(site.testbed, "client", server, version=version) as talk:
        assert talk.ask("/both/1") == "200"
        site.node.apply(**change)
        try:
            began = time.monotonic()
            assert talk.ask("/both/1") in _ENDED
            assert time.monotonic() - began < 15, "the pod had to wait for a time-out"
            status = site.ask(server, "/in/1", version=version, wait=1)[0]
            assert status == (0 if "egress" in change else 200)
        finally:
            site.node.apply()
    assert site.ask(server, "/both/1", version=version)[0] == 200


@VERSIONS
@pytest.mark.parametrize("server", ["plain", "both", "outside"])
def test_an_audit_reaches_live_connections(site: Site, server: str, version: int) -> None:
    """Also those whose bytes are spliced and meet no hook of the device: they show once, and go on."""
    with Talk(site.testbed, "client", server, version=version) as talk:
        assert talk.ask("/both/1") == "200"
        seen = site.node.flows_seen()
        site.node.apply(audit=True)
        try:
            for _ in range(3):
                assert talk.ask("/both/1") == "200"
            # Connections of other tests that lost their verdict have records, too.
            flow = next(one for one in site.node.flows[seen : site.node.flows_seen()] if one.audit)
            assert (flow.audit, flow.verdict, flow.reason, flow.rule) == (
                True, Verdict.REDIRECT, Reason.POLICY_DENIED, 1,
            )  # fmt: skip
            site.node.apply(audit=True, pairs=server == "both")
            assert talk.ask("/both/1") == "200"
        finally:
            site.node.apply()
    assert site.ask(server, "/both/1", version=version)[0] == 200
    assert len([one for one in site.node.flows[seen:] if one.audit]) == 1


@VERSIONS
def test_an_audit_of_a_client_outside_shows_once(site: Site, version: int) -> None:
    site.node.apply(audit=True)
    try:
        before, seen = audits(site, Hook.FROM_NETWORK), site.node.flows_seen()
        assert site.ask("both", "/both/1", client="forger", version=version, count=5)[0] == 200
        assert audits(site, Hook.FROM_NETWORK) == before + 1
        flow = site.node.flow_after(seen, hook=Hook.FROM_NETWORK)
        assert (flow.audit, flow.rule) == (True, 2)
    finally:
        site.node.apply()


def audits(site: Site, hook: Hook) -> int:
    """What passed at a hook and would have been denied by a rule."""
    found = site.node.datapath.reasons()
    return sum(
        c.packets
        for c in found
        if c.hook is hook and c.verdict is not Verdict.DENY and c.reason is Reason.POLICY_DENIED
    )


@VERSIONS
def test_a_pair_that_goes_takes_its_connections_along(site: Site, version: int) -> None:
    with Talk(site.testbed, "client", "both", version=version) as talk:
        assert talk.ask("/both/1") == "200"
        site.node.apply(pairs=False)
        try:
            began = time.monotonic()
            assert talk.ask("/both/1") in _ENDED
            assert time.monotonic() - began < 15, "the pod had to wait for a time-out"
            assert site.ask("both", "/both/1", version=version, wait=1)[0] == 0
            assert site.ask("plain", "/both/1", version=version)[0] == 200
        finally:
            site.node.apply()
    assert site.ask("both", "/both/1", version=version)[0] == 200


@VERSIONS
def test_what_is_left_of_a_proxied_connection_is_in_nobodys_way(site: Site, version: int) -> None:
    """The pod may use the port that the proxy had, once it may go directly; and the other way round."""
    code = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection(sys.argv[1], 80, timeout=5, source_address=('', int(sys.argv[2])))\n"
        "c.request('GET', '/both/1')\n"
        "print(c.getresponse().read().split()[1].decode())\n"
    )
    with Talk(site.testbed, "client", "outside", version=version) as talk:
        assert talk.ask("/both/1") == "200"
        _, opened = ports(site, "outside", version)
    server = ip_address(site.address("outside", version))
    netns.call(
        site.testbed.node.info.netns,
        lambda: diag.destroy(site.client.address(version), opened, server, 80),
    )
    site.node.apply(http=False)
    try:
        done = python_in(site.client, code, str(server), str(opened))
        assert done.stdout.strip() == str(opened), done.stderr
    finally:
        site.node.apply()
    assert site.ask("outside", "/both/1", version=version)[0] == 200


@VERSIONS
def test_a_small_mtu_on_the_way(site: Site, version: int) -> None:
    """The router's «too big» is about the proxy's packets, and addressed to the pod: it must come to the proxy."""
    server, router = site.address("outside", version), site.address("forger", version)
    ip_command, length = ["ip", f"-{version}", "route"], 32 if version == 4 else 128
    detour = [*ip_command, "replace", f"{server}/{length}", "via", router, "dev", "eth0"]
    narrow = [*ip_command, "replace", f"{server}/{length}", "dev", "eth0", "mtu", "1280"]
    forward = "ipv4__ip_forward" if version == 4 else "ipv6__conf__all__forwarding"
    set_sysctls(site.testbed.pod("forger").netns, ipv4__conf__eth0__send_redirects=0, **{forward: 1})
    done = site.testbed.run("forger", narrow)
    assert done.returncode == 0, done.stderr
    done = site.testbed.node.run_on_node(detour)
    assert done.returncode == 0, done.stderr
    try:
        before = related(site)
        status, text, _, digest = site.ask("outside", "/both/1", version=version, method="POST", size=1 << 20)
        assert (status, text.split()[2:4]) == (200, [str(1 << 20), digest])
        assert related(site) > before
    finally:
        site.testbed.node.run_on_node([*ip_command, "del", f"{server}/{length}", "via", router, "dev", "eth0"])
        site.testbed.node.run_on_node([*ip_command, "flush", "cache"])


def related(site: Site) -> int:
    """ICMP errors that passed so far."""
    return sum(c.packets for c in site.node.datapath.reasons() if c.reason is Reason.RELATED)


@VERSIONS
def test_an_error_about_a_connection_that_is_not_there_yet(site: Site, version: int) -> None:
    """Nobody is at that address, its router says: the client hears of it at once, by way of the proxy."""
    router = site.address("forger", version)
    nowhere = "10.10.2.99" if version == 4 else "fd00:10:2::99"
    length = 32 if version == 4 else 128
    ip_command = ["ip", f"-{version}", "route"]
    site.testbed.run("forger", [*ip_command, "add", "unreachable", f"{nowhere}/{length}"])
    set_sysctls(site.testbed.pod("forger").netns, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    site.testbed.node.run_on_node([*ip_command, "replace", f"{nowhere}/{length}", "via", router, "dev", "eth0"])
    try:
        before = related(site)
        began = time.monotonic()
        assert site.ask(nowhere, "/both/1", version=version)[0] == 503
        assert time.monotonic() - began < 15
        assert related(site) > before
    finally:
        site.testbed.node.run_on_node([*ip_command, "del", f"{nowhere}/{length}", "via", router, "dev", "eth0"])


def test_strict_reverse_path_filters(site: Site) -> None:
    """What is steered comes in by a device of ours, from an address of another one, and of the node itself."""
    place = site.testbed.node.info.netns
    set_sysctls(place, ipv4__conf__all__rp_filter=1)
    try:
        for server in SERVERS:
            assert site.ask(server, "/both/1")[0] == 200
    finally:
        set_sysctls(place, ipv4__conf__all__rp_filter=0)
