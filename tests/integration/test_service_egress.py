"""Egress policy of pods that dial Services, translated by kube-proxy: the backend decides, whatever was dialled."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from itertools import count

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support.nodedevices import asked
from support.profiled import PROFILES, node_address
from support.serviceegress import (
    ALLOWED,
    BACKENDS,
    DENIED,
    MORE,
    POLICIES,
    PROXIED,
    UNSERVED,
    Site,
    answered,
    cluster_ip,
    container,
    egress_site,
    external_ip,
    listening,
    somebodys_filter,
    translated,
)
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

_PORTS = count(47000)
CHOSEN = ("l3-iptables", "l3-nftables", "bridge", "vxlan")


@pytest.fixture(scope="module", params=CHOSEN)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with egress_site(PROFILES[request.param]) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("number", "expected"), [(80, ALLOWED), (81, ALLOWED), (82, PROXIED), (83, PROXIED), (84, DENIED), (85, DENIED)]
)
def test_the_backend_decides(site: Site, number: int, expected: tuple[int, int], version: int) -> None:
    """Here or on another node, by L4 and by HTTP rules; with one record, of the hook behind the translation."""
    before = site.node.flows_seen()
    assert site.asks("client", cluster_ip(number, version)) == expected
    found = site.verdicts(before, 80)
    hook = Hook.TO_NETWORK if BACKENDS[number].startswith("far") else Hook.TO_POD
    wanted = {
        ALLOWED: (hook, Verdict.ALLOW, Reason.POLICY_ALLOWED),
        PROXIED: (hook, Verdict.REDIRECT, Reason.REDIRECTED),
        DENIED: (hook, Verdict.DENY, Reason.DEFAULT_DENY),
    }
    assert wanted[expected] in found, found
    assert Hook.FROM_POD not in {hook for hook, _, reason in found if reason is not Reason.NO_POLICY}, found


@pytest.mark.parametrize("version", [4, 6])
def test_an_external_ip(site: Site, version: int) -> None:
    """It comes masqueraded, so that HTTP rules can't be asked."""
    wanted = {80: ALLOWED, 81: ALLOWED, 82: DENIED, 83: DENIED, 84: DENIED, 85: DENIED}
    assert {one: site.asks("client", external_ip(one, version)) for one in wanted} == wanted


@pytest.mark.parametrize("version", [4, 6])
def test_the_own_service(site: Site, version: int) -> None:
    assert site.asks("lonely", cluster_ip(86, version)) == ALLOWED
    assert site.asks("shut", cluster_ip(87, version)) == DENIED


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_as_to_dns(site: Site, version: int) -> None:
    service = cluster_ip(UNSERVED, version)
    for name, expected in {"dns": 1, "nodns": "TimeoutError", "fardns": 3, "farnodns": "TimeoutError"}.items():
        backend = site.bed.pod(name).address(version)
        to = f"[{backend}]" if version == 6 else str(backend)
        with translated(
            site, version, f"{service} udp dport 53 dnat to {to}:53", f"{service} tcp dport 53 dnat to {to}:53"
        ):
            seconds = 3.0 if expected in (1, 3) else 0.5
            assert asked(site.bed.node, "client", [service], seconds=seconds) == [expected] * 2, name


@pytest.mark.parametrize("version", [4, 6])
def test_what_nobody_translates_is_denied_where_it_leaves(site: Site, version: int) -> None:
    addresses = [make(number, version) for make in (cluster_ip, external_ip) for number in (UNSERVED, 80)]
    before = site.node.flows_seen()
    with neighbours(site, addresses):
        assert [site.asks("client", one, 4444) for one in addresses] == [DENIED] * 4, "other ports of Services, too"
    assert site.verdicts(before, 4444) == {(Hook.TO_NETWORK, Verdict.DENY, Reason.DEFAULT_DENY)}


@pytest.mark.parametrize("version", [4, 6])
def test_a_process_of_the_node(site: Site, version: int) -> None:
    service, node = cluster_ip(UNSERVED, version), node_address(site.bed, version)
    to = f"[{node}]" if version == 6 else node
    argv = [sys.executable, "-m", "spliceway.agent.testbed.server", "--port", "9081"]
    served = site.bed.node.spawn_on_node(argv)
    try:
        until(lambda: 9081 in netns.call(site.bed.node.info.netns, netns.listening_ports), 20)
        with translated(site, version, f"{service} tcp dport 80 dnat to {to}:9081"):
            before = site.node.flows_seen()
            assert site.asks("client", service) == DENIED
            assert site.verdicts(before, 9081) == {(Hook.SK_LOOKUP, Verdict.DENY, Reason.DEFAULT_DENY)}
            site.node.apply(POLICIES, MORE)
            assert site.asks("client", service) == ALLOWED
            assert (Hook.SK_LOOKUP, Verdict.ALLOW, Reason.POLICY_ALLOWED) in site.verdicts(before, 9081)
            with site.connected("client", service) as sock:
                site.node.apply(POLICIES)
                assert not answered(sock), "its answers are judged again"
    finally:
        site.node.apply(POLICIES)
        served.kill()
        served.wait(10)


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_address_that_the_node_has(site: Site, version: int) -> None:
    """As by kube-ipvs0: what no Service takes there gets to the node's own sockets, as if the node were dialled."""
    service = cluster_ip(UNSERVED, version)
    place = site.bed.node.info.netns
    length = 128 if version == 6 else 32
    served = site.bed.node.spawn_on_node([sys.executable, "-m", "spliceway.agent.testbed.server", "--port", "9082"])
    netns.call(place, lambda: command("ip", "addr", "add", f"{service}/{length}", "dev", "lo"))
    try:
        until(lambda: 9082 in netns.call(place, netns.listening_ports), 20)
        before = site.node.flows_seen()
        assert site.asks("client", service, 9082) == DENIED
        assert site.verdicts(before, 9082) == {(Hook.SK_LOOKUP, Verdict.DENY, Reason.DEFAULT_DENY)}
    finally:
        netns.call(place, lambda: command("ip", "addr", "del", f"{service}/{length}", "dev", "lo"))
        served.kill()
        served.wait(10)


@contextlib.contextmanager
def neighbours(site: Site, addresses: list[str]) -> Iterator[None]:
    """Stations of the first node's network, so that what is sent to them leaves."""

    def each(action: str) -> None:
        for one in addresses:
            command("ip", "neigh", action, one, "lladdr", "02:00:00:00:00:63", "dev", "eth0", "nud", "permanent")

    netns.call(site.bed.node.info.netns, lambda: each("replace"))
    try:
        yield
    finally:
        netns.call(site.bed.node.info.netns, lambda: each("del"))


@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "veth"])
def test_a_container_that_is_no_pod(site: Site, bridge: bool) -> None:
    """No hook of a pod is in front of it, but what leaves to it is judged."""
    with container(site, bridge=bridge) as addresses:
        site.node.run(site.node.datapath._devices.look())
        place = site.bed.node.info.netns.parent / f"{site.bed.node.info.netns.name}-container"
        listener = netns.call(place, lambda: listening(9083))
        try:
            for version, address in addresses.items():
                service = cluster_ip(UNSERVED, version)
                to = f"[{address}]" if version == 6 else address
                with translated(site, version, f"{service} tcp dport 80 dnat to {to}:9083"):
                    before = site.node.flows_seen()
                    assert site.asks("client", service) == DENIED
                    assert site.verdicts(before, 9083) == {(Hook.TO_NETWORK, Verdict.DENY, Reason.DEFAULT_DENY)}
                    site.node.apply(POLICIES, MORE)
                    with site.connected("client", service):
                        pass
                    site.node.apply(POLICIES)
        finally:
            site.node.apply(POLICIES)
            listener.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("number", [80, 81])
def test_a_policy_that_changes_under_a_connection(site: Site, number: int, version: int) -> None:
    """It is cut, towards the server and back, and goes on when policy allows it again."""
    with site.connected("client", cluster_ip(number, version)) as sock:
        assert answered(sock)
        site.node.apply(POLICIES.replace("role: plain", "role: nobody"))
        try:
            assert not answered(sock)
        finally:
            site.node.apply(POLICIES)
        until(lambda: answered(sock), 10)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("number", [80, 81])
def test_a_policy_that_comes_to_a_connection(site: Site, number: int, version: int) -> None:
    """It was no matter of policy when it began."""
    site.node.apply()
    try:
        with site.connected("client", cluster_ip(number, version)) as sock:
            assert answered(sock)
            site.node.apply(POLICIES)
            assert answered(sock, seconds=3), "the backend is allowed"
        site.node.apply()
        with site.connected("client", cluster_ip(number + 4, version)) as sock:
            assert answered(sock)
            site.node.apply(POLICIES)
            assert not answered(sock), "this one is not"
    finally:
        site.node.apply(POLICIES)


@pytest.mark.parametrize("version", [4, 6])
def test_a_mark_that_goes_and_comes(site: Site, version: int) -> None:
    with site.connected("client", cluster_ip(81, version)) as sock:
        assert answered(sock)
        site.mark(False)
        try:
            assert answered(sock, seconds=3), "what it is was decided when it began"
            assert site.asks("client", cluster_ip(80, version)) == DENIED, "new ones are judged by the address"
        finally:
            site.mark()
        assert answered(sock, seconds=3)
        assert site.asks("client", cluster_ip(80, version)) == ALLOWED


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("server", ["farother", "outside"])
def test_who_was_not_to_be_reached_does_not_answer(site: Site, server: str, version: int) -> None:
    """Netfilter knows the connection that was denied behind it, and would translate what its server sends."""
    service, pod = cluster_ip(UNSERVED, version), site.bed.pod("client")
    backend = str(site.bed.pod(server).address(version))
    to = f"[{backend}]" if version == 6 else backend
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    own = next(_PORTS)

    def bound(port: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.bind(("::" if version == 6 else "", port))
        made.settimeout(0.7)
        return made

    with (
        translated(site, version, f"{service} udp dport 7007 dnat to {to}:7007"),
        netns.call(pod.netns, lambda: bound(own)) as here,
        netns.call(site.bed.pod(server).netns, lambda: bound(7007)) as there,
    ):
        here.sendto(b"?", (service, 7007))
        with pytest.raises(TimeoutError):
            there.recv(10)
        there.sendto(b"!", (str(pod.address(version)), own))
        with pytest.raises(TimeoutError):
            here.recv(10)


def test_somebodys_filter_that_resets_the_note(site: Site) -> None:
    """Until it is noticed, what keeps its source is judged all the same. Then the Service's address must be allowed."""
    watch = site.node.datapath._watch

    async def watched() -> None:
        watch.start()

    site.node.run(watch.stop())
    try:
        with somebodys_filter(site.node):
            for version in (4, 6):
                service = cluster_ip(UNSERVED, version)
                for name, expected in {"fardns": 3, "farnodns": "TimeoutError"}.items():
                    backend = site.bed.pod(name).address(version)
                    to = f"[{backend}]" if version == 6 else str(backend)
                    rules = [f"{service} {kind} dport 53 dnat to {to}:53" for kind in ("udp", "tcp")]
                    with translated(site, version, *rules):
                        assert asked(site.bed.node, "client", [service], seconds=1.0) == [expected] * 2, name
            site.node.run(watch.look())
            assert any("u32 at ingress" in problem for problem in site.node.datapath.status().problems)
            assert [site.asks("client", cluster_ip(80, version)) for version in (4, 6)] == [DENIED] * 2
            # What is masqueraded can't be told from what the node sends.
            assert [site.asks("client", external_ip(number, 4)) for number in (84, 85)] == [DENIED] * 2
        site.node.run(watch.look())
    finally:
        site.node.run(watched())
    assert not any("u32" in problem for problem in site.node.datapath.status().problems)
    assert [site.asks("client", cluster_ip(80, version)) for version in (4, 6)] == [ALLOWED] * 2


def test_fragments_go_with_their_flow(site: Site) -> None:
    """Datagrams of several packets, by IPv4 and IPv6."""
    for version in (4, 6):
        for name, arrives in (("farplain", True), ("farother", False)):
            service, server = cluster_ip(UNSERVED, version), site.bed.pod(name)
            backend = str(server.address(version))
            to = f"[{backend}]" if version == 6 else backend
            family = socket.AF_INET6 if version == 6 else socket.AF_INET

            def bound(family: int = family) -> socket.socket:
                made = socket.socket(family, socket.SOCK_DGRAM)
                made.bind(("", 7008))
                made.settimeout(2.0)
                return made

            with (
                translated(site, version, f"{service} udp dport 7008 dnat to {to}:7008"),
                netns.call(server.netns, bound) as there,
                netns.call(
                    site.bed.pod("client").netns, lambda family=family: socket.socket(family, socket.SOCK_DGRAM)
                ) as here,  # type: ignore[misc]
            ):
                here.sendto(bytes(6000), (service, 7008))
                if arrives:
                    assert len(there.recv(9000)) == 6000
                else:
                    there.settimeout(0.5)
                    with pytest.raises(TimeoutError):
                        there.recv(9000)


def test_new_records_are_one_for_a_connection(site: Site) -> None:
    """Not one for each packet."""
    with site.connected("client", cluster_ip(81, 4)) as sock:
        before = site.node.flows_seen()
        for _ in range(20):
            assert answered(sock)
        time.sleep(0.05)
        assert site.node.flows_seen() == before
