"""Egress policy of pods that dial Services, translated by kube-proxy: the backend decides, whatever was dialled."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support.node import pod_manifest, server_manifest
from support.nodedevices import DNS, asked
from support.profiled import PROFILES, node_address, status
from support.proxied import ProxiedNode
from support.splicebed import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

#: `client` may reach `plain` at any port and `web` by HTTP rules, and nobody may reach it; `lonely` may reach its own
#: Service, `shut` nothing at all.
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  ingress: [{fromEndpoints: [{matchLabels: {role: nobody}}]}]
  egress:
  - toEndpoints: [{matchLabels: {role: plain}}]
  - toEndpoints: [{matchLabels: {role: web}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: lonely, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: lonely}}
  egress: [{toEndpoints: [{matchLabels: {role: lonely}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shut, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shut}}
  egress: [{}]
---
"""
MORE = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: more, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  egress: [{toCIDR: [172.17.0.0/24, "fd00:17::/64"]}, {toEntities: [host]}]
"""
#: The backends of Services, by the last byte of their addresses.
BACKENDS = {
    80: "plain", 81: "farplain", 82: "web", 83: "farweb", 84: "other", 85: "farother", 86: "lonely", 87: "shut",
}  # fmt: skip
UNSERVED = 99
ALLOWED, PROXIED, DENIED = (200, 200), (200, 403), (0, 0)
_PORTS = count(47000)
CHOSEN = ("l3-iptables", "l3-nftables", "bridge", "vxlan")


def cluster_ip(number: int, version: int) -> str:
    return f"10.96.0.{number}" if version == 4 else f"fd00:96::{number}"


def external_ip(number: int, version: int) -> str:
    return f"10.10.9.{number}" if version == 4 else f"fd00:10:0:9::{number}"


def marks(are: bool = True) -> dict[object, bool]:
    numbers = (*BACKENDS, UNSERVED)
    return {
        ip_address(make(one, version)): are
        for one in numbers
        for version in (4, 6)
        for make in (cluster_ip, external_ip)
    }


class Site:
    """A testbed of two nodes; the first has the datapath, the proxy, and knows what is a Service's address."""

    def __init__(self, bed: Testbed, node: ProxiedNode) -> None:
        self.bed, self.node = bed, node

    def mark(self, are: bool = True) -> None:
        self.node.run(self.node.datapath.set_service_addresses(marks(are)))  # type: ignore[arg-type]

    def asks(self, client: str, address: str, port: int = 80) -> tuple[int, int]:
        pod = self.bed.pod(client)
        return status(pod, address, port, "/open", timeout=1.5), status(pod, address, port, "/closed", timeout=1.5)

    def connected(self, client: str, address: str, port: int = 80) -> socket.socket:
        def made() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            sock.settimeout(3)
            sock.connect((address, port))
            return sock

        return netns.call(self.bed.pod(client).netns, made)

    def verdicts(self, since: int, port: int) -> set[tuple[Hook, Verdict, Reason]]:
        """What was recorded about connections to a server's port."""
        self.node.flows_seen()
        return {(one.hook, one.verdict, one.reason) for one in self.node.flows[since:] if one.destination_port == port}


@pytest.fixture(scope="module", params=CHOSEN)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    near = [pod_manifest("client", {"role": "client"})]
    near += [server_manifest(name, {"role": name}) for name in ("plain", "web", "other", "lonely", "shut")]
    near.append(dns("dns", "plain", 1))
    near.append(dns("nodns", "other", 2))
    far = [server_manifest(f"far{role}", {"role": role}) for role in ("plain", "web", "other")]
    far.append(dns("fardns", "plain", 3))
    far.append(dns("farnodns", "other", 4))
    for where, some in (("node1", near), ("node2", far)):
        for one in some:
            one["spec"]["nodeName"] = where
    outside = server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))
    with (
        Testbed.up([*near, *far, outside], profile=PROFILES[request.param]) as bed,
        ProxiedNode(bed.node, POLICIES) as node,
    ):
        bed.set_services(
            [
                Service(
                    f"default/s{number}",
                    tuple(ip_address(cluster_ip(number, version)) for version in (4, 6)),
                    80,
                    80,
                    (f"default/{backend}",),
                    external_ips=tuple(ip_address(external_ip(number, version)) for version in (4, 6)),
                )
                for number, backend in BACKENDS.items()
            ]
        )
        made = Site(bed, node)
        made.mark()
        yield made


def dns(name: str, role: str, code: int) -> dict[str, object]:
    return pod_manifest(name, {"role": role}, command=[sys.executable, "-c", DNS, str(code), "::"], ports=(53,))


@contextlib.contextmanager
def translated(site: Site, version: int, *rules: str) -> Iterator[None]:
    """Rules before kube-proxy's: «10.96.0.99 udp dport 53 dnat to 10.244.1.3:53»."""
    family = "ip" if version == 4 else "ip6"
    lines = "\n".join(f"{family} daddr {one}" for one in rules)
    chain = f"chain before {{ type nat hook prerouting priority dstnat - 1; {lines}\n }}"
    table = f"table {family} led {{ {chain}\n }}"
    place = site.bed.node.info.netns
    netns.call(place, lambda: command("nft", "-f", "-", stdin=table))
    try:
        yield
    finally:
        netns.call(place, lambda: command("nft", "delete", "table", family, "led"))


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


@contextlib.contextmanager
def container(site: Site, *, bridge: bool) -> Iterator[dict[int, str]]:
    """A container of the node that is no pod, at a bridge like docker0 or by a route to its device; its addresses."""
    place = site.bed.node.info.netns
    inside = place.parent / f"{place.name}-container"
    addresses = {4: "172.17.0.2", 6: "fd00:17::2"}
    netns.create(inside, lambda: None)

    def outer() -> None:
        holder = "docker0" if bridge else "vethc"
        if bridge:
            command("ip", "link", "add", "docker0", "type", "bridge")
        command("ip", "link", "add", "vethc", "type", "veth", "peer", "name", "ethc")
        if bridge:
            command("ip", "link", "set", "vethc", "master", "docker0")
            command("ip", "link", "set", "docker0", "up")
        command("ip", "link", "set", "vethc", "up")
        command("ip", "addr", "add", "172.17.0.1/24", "dev", holder)
        command("ip", "addr", "add", "fd00:17::1/64", "dev", holder, "nodad")
        command("nsenter", "--net=/proc/self/ns/net", "ip", "link", "set", "ethc", "netns", str(inside))

    def inner() -> None:
        command("ip", "link", "set", "lo", "up")
        command("ip", "addr", "add", "172.17.0.2/24", "dev", "ethc")
        command("ip", "addr", "add", "fd00:17::2/64", "dev", "ethc", "nodad")
        command("ip", "link", "set", "ethc", "up")
        command("ip", "route", "add", "default", "via", "172.17.0.1")
        command("ip", "-6", "route", "add", "default", "via", "fd00:17::1")

    try:
        netns.call(place, outer)
        netns.call(inside, inner)
        yield addresses
    finally:
        netns.call(place, lambda: command("ip", "link", "del", "vethc"))
        if bridge:
            netns.call(place, lambda: command("ip", "link", "del", "docker0"))
        netns.delete(inside)


@pytest.mark.parametrize("bridge", [True, False], ids=["bridge", "veth"])
def test_a_container_that_is_no_pod(site: Site, bridge: bool) -> None:
    """No hook of a pod is in front of it, but what leaves to it is judged."""
    with container(site, bridge=bridge) as addresses:
        site.node.run(site.node.datapath._devices.look())
        place = site.bed.node.info.netns.parent / f"{site.bed.node.info.netns.name}-container"
        listener = netns.call(place, lambda: _listening(9083))
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


def _listening(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(16)
    return made


def answered(sock: socket.socket, path: str = "/open", seconds: float = 0.7) -> bool:
    sock.settimeout(seconds)
    try:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        return sock.recv(65536).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


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
    """A clsact filter behind ours that accepts: the kernel forgets then whose a packet is.

    Until it is noticed, what keeps its source is judged all the same. Then a Service's own address has to be allowed.
    """
    watch = site.node.datapath._watch

    async def watched() -> None:
        watch.start()

    site.node.run(watch.stop())
    device = next(one.interface for one in site.node.endpoints_now() if one.name == "default/client")
    place = site.bed.node.info.netns
    match = ("protocol", "all", "u32", "match", "u32", "0", "0", "classid", "1:0")

    def others() -> None:
        with contextlib.suppress(TestbedError):  # where ours are filters it is there
            command("tc", "qdisc", "add", "dev", device, "clsact")
        command("tc", "filter", "add", "dev", device, "ingress", "prio", "50", *match)

    netns.call(place, others)
    try:
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
    finally:
        netns.call(place, lambda: command("tc", "filter", "del", "dev", device, "ingress", "prio", "50"))
        site.node.run(watch.look())
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
