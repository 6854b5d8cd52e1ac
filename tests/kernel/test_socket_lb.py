"""Services for the sockets of real pods: who dials a Service's address reaches a backend, and sees the Service."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from spliceway.agent.testbed import processes
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import diag, lbabi, libbpf
from spliceway.bpf.errors import KernelRefusedError
from spliceway.policy.lbmodel import Frontend
from spliceway.policy.verdict import Protocol
from support.kernel import KernelNode
from support.lbpod import PORT, Remote, frontend, server, services, state
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
OTHER = {4: "10.96.0.11", 6: "fd00:96::11"}
NAMES = ("one", "two", "three")
#: How a pod dials: the socket's family, and the address of a Service that has this IPv4 or IPv6 address.
WAYS = {"v4": (4, "{4}", 4), "v6": (6, "{6}", 6), "mapped": (6, "::ffff:{4}", 4)}


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client"), pod_manifest("neighbour"), *map(server, NAMES)]) as made:
        yield made


@pytest.fixture(scope="module")
def node(testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(testbed.node, socket_lb="on", max_frontends=1024, max_backends=4096) as made:
        made.apply()
        yield made


@pytest.fixture
def pods(testbed: Testbed) -> list[Pod]:
    return [testbed.pod(name) for name in NAMES]


@pytest.fixture
def web(node: KernelNode, pods: list[Pod]) -> Iterator[KernelNode]:
    """A node on which WEB has all backends, and nothing else is a Service."""
    node.run(node.datapath.set_services(services(WEB, pods)))
    yield node
    clear(node)


def clear(node: KernelNode) -> None:
    node.run(node.datapath.set_services(dict.fromkeys(node.datapath.services.frontends)))


@pytest.fixture
def client(testbed: Testbed) -> Iterator[Remote]:
    with Remote.of(testbed.pod("client")) as made:
        yield made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[int, str, int]:
    """Family of the socket, the Service's address as it dials it, and the IP version of that."""
    family, text, version = WAYS[request.param]
    return family, text.replace("{4}", WEB[4]).replace("{6}", WEB[6]), version


def test_tcp_reaches_a_backend_and_sees_the_service(web: KernelNode, client: Remote, way: tuple[int, str, int]) -> None:
    family, host, _ = way
    client.do(f"s, name = dial({family}, '{host}')")
    assert client.ask("name") in NAMES
    assert client.ask("list(s.getpeername()[:2])") == [host, 80]
    assert client.ask("ask(s)") == client.ask("name")


def test_connected_udp(web: KernelNode, client: Remote, way: tuple[int, str, int]) -> None:
    family, host, _ = way
    client.do(f"s = new({family}, DGRAM); s.connect(('{host}', 80))")
    names = {client.ask("ask(s)") for _ in range(5)}
    assert len(names) == 1
    assert names <= set(NAMES)
    assert client.ask("list(s.getpeername()[:2])") == [host, 80]
    client.do("s.send(b'x'); data, sender = s.recvfrom(100)")
    assert client.ask("list(sender[:2])") == [host, 80]
    # With the address named once more, it is the same backend: no other one would be heard.
    assert client.ask(f"ask_to(s, '{host}')") == [*names, [host, 80]]


def test_a_question_over_unconnected_udp(web: KernelNode, client: Remote, way: tuple[int, str, int]) -> None:
    """As a resolver asks: it compares where the answer comes from with whom it asked."""
    family, host, version = way
    client.do(f"s = new({family}, DGRAM)")
    first, sender = client.ask(f"ask_to(s, '{host}')")
    assert (first in NAMES, sender) == (True, [host, 80])
    assert {client.ask(f"ask_to(s, '{host}')[0]") for _ in range(10)} == {first}
    # The same socket also talks to a pod, whose address stays.
    pod = str(next(row.backends[0].address for row in web.datapath.services.dump() if row.address == WEB[version]))
    pod = f"::ffff:{pod}" if family == 6 and version == 4 else pod
    own = client.ask(f"ask_to(s, '{pod}', {PORT})")
    assert own[0] == first or own[1] == [pod, PORT]


def test_more_frontends_than_a_socket_remembers(web: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """Who was asked last is known, also behind the last place."""
    hosts = [f"10.96.1.{number}" for number in range(1, lbabi.LB_TALKS + 5)]
    web.run(web.datapath.set_services({frontend(host, Protocol.UDP): state(pods, 4) for host in hosts}))
    client.do("s = new(4, DGRAM)")
    for host in (*hosts, *hosts):
        assert client.ask(f"ask_to(s, '{host}')[1]") == [host, 80]


@pytest.mark.parametrize("version", [4, 6])
def test_connections_spread(web: KernelNode, client: Remote, version: int) -> None:
    counts = Counter(client.ask(f"many(90, {version}, '{WEB[version]}')"))
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 8  # 90 throws at 30 each: less than 9 is one in a million


def test_places_beyond_the_first_row_are_chosen(web: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """Of 40 backends the last ones are the only ones that answer with their port: every one of them comes up."""
    numbers = range(40)
    wanted = state(pods[:1], 4)
    backends = tuple(type(wanted.backends[0])(wanted.backends[0].address, 8000 + number) for number in numbers)
    many = type(wanted)("default/many", "", "ClusterIP", backends)
    web.run(web.datapath.set_services({frontend(WEB[4], Protocol.UDP): many}))
    seen = set()
    client.do("from collections import Counter")
    client.do(
        "def peers(count):\n"
        "    found = set()\n"
        "    for _ in range(count):\n"
        "        with contextlib.closing(new(4, DGRAM)) as s:\n"
        f"            s.connect(('{WEB[4]}', 80))\n"
        "            own = f'{s.getsockname()[1]:04X}'\n"
        "            rows = [line.split() for line in open('/proc/net/udp')][1:]\n"
        "            found |= {int(row[2].split(':')[1], 16) for row in rows if row[1].endswith(':' + own)}\n"
        "    return sorted(found)"
    )
    seen |= set(client.ask("peers(800)"))
    assert seen == {8000 + number for number in numbers}


@pytest.mark.parametrize("version", [4, 6])
def test_without_backends_it_refuses_at_once(web: KernelNode, client: Remote, version: int) -> None:
    host = WEB[version]
    client.do(f"u = new({version}, DGRAM)")
    web.run(web.datapath.set_services(services(WEB, [])))
    began = time.monotonic()
    assert client.error(f"dial({version}, '{host}')") == "ECONNREFUSED"
    assert client.error(f"new({version}, DGRAM).connect(('{host}', 80))") == "ECONNREFUSED"
    assert client.error(f"u.sendto(b'x', ('{host}', 80))") == "ECONNREFUSED"
    assert time.monotonic() - began < 15
    # Another port of the address is no Service's.
    assert client.error(f"new({version}, DGRAM).connect(('{host}', 81))") != "ECONNREFUSED"


def test_a_dual_stack_socket_is_refused_as_well(web: KernelNode, client: Remote) -> None:
    web.run(web.datapath.set_services(services(WEB, [])))
    assert client.error(f"dial(6, '::ffff:{WEB[4]}')") == "ECONNREFUSED"
    assert client.error(f"new(6, DGRAM).sendto(b'x', ('::ffff:{WEB[4]}', 80))") == "ECONNREFUSED"


def test_protocols_are_apart(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services({frontend(WEB[4], Protocol.TCP): state(pods, 4)}))
    try:
        assert client.ask(f"name_of(4, '{WEB[4]}')") in NAMES
        client.do("u = new(4, DGRAM, 0.3)")
        assert client.error(f"ask_to(u, '{WEB[4]}')") != ""
    finally:
        clear(node)


def test_when_the_service_has_gone(web: KernelNode, client: Remote, way: tuple[int, str, int]) -> None:
    """Connections go on, and still say whom they have dialled."""
    family, host, _ = way
    client.do(f"s, name = dial({family}, '{host}')")
    clear(web)
    assert client.ask("ask(s)") == client.ask("name")
    assert client.ask("list(s.getpeername()[:2])") == [host, 80]


@pytest.mark.parametrize("version", [4, 6])
def test_a_live_connection_never_moves(web: KernelNode, client: Remote, pods: list[Pod], version: int) -> None:
    client.do(f"s, name = dial({version}, '{WEB[version]}')")
    name = client.ask("name")
    others = [pod for pod in pods if pod.name != name]
    web.run(web.datapath.set_services(services(WEB, others)))
    assert client.ask("ask(s)") == name
    assert set(client.ask(f"many(20, {version}, '{WEB[version]}')")) <= {pod.name for pod in others}


@pytest.mark.parametrize("version", [4, 6])
def test_unconnected_udp_moves_only_when_its_backend_goes(
    web: KernelNode, client: Remote, pods: list[Pod], version: int
) -> None:
    host = WEB[version]
    client.do(f"s = new({version}, DGRAM)")
    name = client.ask(f"ask_to(s, '{host}')[0]")
    stays = [pod for pod in pods if pod.name == name]
    web.run(web.datapath.set_services(services(WEB, [*stays, next(pod for pod in pods if pod.name != name)])))
    web.run(web.datapath.set_services(services(WEB, stays)))
    web.run(web.datapath.set_services(services(WEB, pods)))
    assert {client.ask(f"ask_to(s, '{host}')[0]") for _ in range(10)} == {name}
    web.run(web.datapath.set_services(services(WEB, [pod for pod in pods if pod.name != name])))
    other, sender = client.ask(f"ask_to(s, '{host}')")
    assert (other in set(NAMES) - {name}, sender) == (True, [host, 80])
    web.run(web.datapath.set_services(services(WEB, [])))
    assert client.error(f"s.sendto(b'x', ('{host}', 80))") == "ECONNREFUSED"


def test_connected_udp_is_ended_when_its_backend_goes(
    web: KernelNode, client: Remote, pods: list[Pod], way: tuple[int, str, int]
) -> None:
    """And connects anew. A socket that dialled the same pod itself, and one at another backend, stay."""
    family, host, version = way
    client.do(f"s = new({family}, DGRAM); s.connect(('{host}', 80))")
    name = client.ask("ask(s)")
    gone = next(pod for pod in pods if pod.name == name)
    address = f"::ffff:{gone.address(4)}" if family == 6 and version == 4 else str(gone.address(version))
    client.do(f"own = new({family}, DGRAM); own.connect(('{address}', {PORT}))")
    client.do(f"others = [new({family}, DGRAM) for _ in range(20)]")
    client.do(f"for one in others: one.connect(('{host}', 80))")
    names = client.ask("[ask(one) for one in others]")
    web.run(web.datapath.set_services(services(WEB, [pod for pod in pods if pod is not gone])))
    assert client.error("s.recv(100)") == "ECONNABORTED"
    assert client.error("s.send(b'x')") == "EDESTADDRREQ"
    assert client.ask("ask(own)") == name
    ended = client.ask("[error_of(lambda: ask(one)) for one in others]")
    assert ended == ["EDESTADDRREQ" if one == name else "" for one in names]
    client.do(f"s.connect(('{host}', 80))")
    assert client.ask("ask(s)") in set(NAMES) - {name}
    assert client.ask("list(s.getpeername()[:2])") == [host, 80]


def test_dissolved_and_connected_elsewhere(web: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """connect() with AF_UNSPEC, and then to a pod itself: nothing of the Service is left."""
    client.do("import ctypes; libc = ctypes.CDLL(None, use_errno=True)")
    client.do(f"s = new(4, DGRAM); s.connect(('{WEB[4]}', 80)); ask(s)")
    client.do("assert libc.connect(s.fileno(), bytes(16), 16) == 0")
    assert client.error("s.getpeername()") == "ENOTCONN"
    client.do(f"s.connect(('{pods[0].address(4)}', {PORT}))")
    assert client.ask("list(s.getpeername()[:2])") == [str(pods[0].address(4)), PORT]
    assert client.ask("ask(s)") == pods[0].name


@pytest.mark.parametrize("version", [4, 6])
def test_bound_before(web: KernelNode, client: Remote, version: int) -> None:
    client.do(f"s = new({version}, STREAM); s.bind(('::' if {version} == 6 else '0.0.0.0', 41000 + {version}))")
    client.do(f"s.connect(('{WEB[version]}', 80))")
    assert client.ask("s.recv(100).decode().strip()") in NAMES
    assert client.ask("s.getsockname()[1]") == 41000 + version


@pytest.mark.parametrize("version", [4, 6])
def test_multipath_tcp(web: KernelNode, client: Remote, version: int) -> None:
    """Its subflows dial. What the socket itself says of its peer is the backend's address (docs/socket-lb.md)."""
    client.do(f"s = socket.socket({{4: socket.AF_INET, 6: socket.AF_INET6}}[{version}], STREAM, 262); s.settimeout(5)")
    client.do(f"s.connect(('{WEB[version]}', 80))")
    assert client.ask("s.recv(100).decode().strip()") in NAMES


def test_a_pod_keeps_its_favourite(node: KernelNode, client: Remote, testbed: Testbed, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods, affinity=600)))
    try:
        (name,) = set(client.ask(f"many(20, 4, '{WEB[4]}')"))
        others = [pod for pod in pods if pod.name != name]
        node.run(node.datapath.set_services(services(WEB, others, affinity=600)))
        (second,) = set(client.ask(f"many(20, 4, '{WEB[4]}')"))
        assert second != name
        node.run(node.datapath.set_services(services(WEB, pods, affinity=600)))
        assert set(client.ask(f"many(20, 4, '{WEB[4]}')")) == {second}
        _let_pass(node, 599)
        assert set(client.ask(f"many(20, 4, '{WEB[4]}')")) == {second}  # and the time began anew
        for _ in range(20):
            _let_pass(node, -5)  # another processor may have been there after this one looked at the clock
            assert client.ask(f"name_of(4, '{WEB[4]}')") == second
        seen = set()
        for _ in range(60):
            _let_pass(node, 601)
            seen.add(client.ask(f"name_of(4, '{WEB[4]}')"))
        assert seen == set(NAMES)
        with Remote.of(testbed.pod("neighbour")) as neighbour:
            found = set()
            for _ in range(60):
                _let_pass(node, 601)
                found.add((neighbour.ask(f"name_of(4, '{WEB[4]}')"), client.ask(f"name_of(4, '{WEB[4]}')")))
            assert any(one != other for one, other in found)  # each has its own
    finally:
        clear(node)


def _let_pass(node: KernelNode, seconds: int) -> None:
    """As if so much time had passed since every pod's last connection."""
    with_seen = lbabi.LbAffinity.from_buffer_copy
    opened = libbpf.BpfMap.open(node.datapath._maps.root / "maps" / "lb_affinities", "lb_affinities")
    try:
        for key, raw in list(opened.items()):
            value = with_seen(raw)
            value.seen -= seconds * 1_000_000_000
            opened.update(key, bytes(value))
    finally:
        opened.close()


def test_sockets_of_the_node_itself_are_left_alone(web: KernelNode, testbed: Testbed) -> None:
    """A pod with host networking: in the pods' cgroup, in the node's network namespace."""
    web.run(web.datapath.set_services(services(WEB, [])))
    code = (
        "import errno, socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try:\n"
        f"    s.connect(('{WEB[4]}', 80)); print('connected')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    cgroup = testbed.pod("client").cgroup
    done = processes.run(testbed.node.info.netns, cgroup, [sys.executable, "-c", code], os.environ, 20.0)
    assert done.stdout.strip() in ("connected", "ENETUNREACH", "EHOSTUNREACH")


def test_sockets_that_the_kernel_can_not_list_are_an_error() -> None:
    """It says so behind the last of none: a node without udp_diag would seem to have no UDP sockets."""
    with pytest.raises(KernelRefusedError, match="list sockets"):
        list(diag.dump(protocol=socket.IPPROTO_IPV6))


def test_a_frontend_is_shown_as_it_is(web: KernelNode, pods: list[Pod]) -> None:
    rows = {(row.address, row.protocol): row for row in web.datapath.services.dump()}
    assert set(rows) == {(address, protocol) for address in WEB.values() for protocol in ("TCP", "UDP")}
    row = rows[WEB[4], "TCP"]
    assert (row.service, row.port_name, row.kind, row.port) == ("default/web", "web", "ClusterIP", 80)
    assert {(one.address, one.port) for one in row.backends} == {(str(pod.address(4)), PORT) for pod in pods}
    assert Frontend(pods[0].address(4), PORT, Protocol.TCP) not in web.datapath.services.frontends
