"""The control side of the socket load balancer: changes under connects, restarts, others' programs, size."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec
import pytest

from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import leftovers, libbpf, loaded
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.errors import DatapathError, KernelRefusedError, MapFullError
from spliceway.bpf.install import pin_root
from spliceway.bpf.links import SOCKET_LB_LINKS
from spliceway.bpf.maps import SERVICES_LAYOUT
from spliceway.bpf.services import FrontendRow, ServiceMaps
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol
from support.foreign import cgroup_program
from support.kernel import KernelNode
from support.lbpod import Remote, frontend, server, services, state
from support.node import pod_manifest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
NAMES = ("one", "two", "three")
SERVICES, ENDPOINTS = 10_000, 10
#: Changes of backends while pods connect.
CHANGES = int(os.environ.get("SPLICEWAY_LB_CHANGES", "60"))


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client"), *map(server, NAMES)]) as made:
        yield made


@pytest.fixture
def node(testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(testbed.node, socket_lb="on", max_frontends=1024, max_backends=4096) as made:
        made.apply()
        yield made


@pytest.fixture
def pods(testbed: Testbed) -> list[Pod]:
    return [testbed.pod(name) for name in NAMES]


@pytest.fixture
def client(testbed: Testbed) -> Iterator[Remote]:
    with Remote.of(testbed.pod("client")) as made:
        yield made


def restart(node: KernelNode, *, socket_lb: str = "on") -> None:
    """As an agent that ends and begins again, with everything in place meanwhile."""
    node.run(node.datapath.close())
    node.datapath = node.run(Datapath.open(msgspec.structs.replace(node.settings, socket_lb=socket_lb)))
    node.run(node.datapath.set_endpoints(node.endpoints))
    node.apply()


def rows(node: KernelNode) -> list[FrontendRow]:
    """What the kernel has, without what only the agent knows."""
    return [msgspec.structs.replace(row, service="", port_name="", kind="") for row in node.datapath.services.dump()]


@pytest.mark.parametrize("version", [4, 6])
def test_backends_change_while_pods_connect(node: KernelNode, client: Remote, pods: list[Pod], version: int) -> None:
    """Each connect lands at a backend that was one while it dialled; none fails, as there always is one."""
    dialled = frontend(WEB[version], Protocol.TCP)
    node.run(node.datapath.set_services({dialled: state(pods, version)}))
    client.do(
        "log, on = [], True\n"
        "def run():\n"
        "    while on:\n"
        "        began = time.monotonic_ns()\n"
        "        try:\n"
        f"            name = name_of({version}, '{WEB[version]}')\n"
        "        except OSError as error:\n"
        "            name = repr(error)\n"
        "        log.append((began, time.monotonic_ns(), name))\n"
        "threads = [threading.Thread(target=run) for _ in range(4)]\n"
        "for one in threads: one.start()"
    )
    steps: list[tuple[int, int, set[str]]] = [(0, 0, set(NAMES))]
    for number in range(CHANGES):
        chosen = [pod for place, pod in enumerate(pods) if (number % 7 + 1) >> place & 1]
        began = time.monotonic_ns()
        node.run(node.datapath.set_services({dialled: state(chosen, version)}))
        steps.append((began, time.monotonic_ns(), {pod.name for pod in chosen}))
    client.do("on = False\nfor one in threads: one.join()")
    log = client.ask("log")
    assert len(log) > CHANGES
    for began, ended, name in log:
        allowed: set[str] = set()
        for (started, _, names), following in zip(steps, [*steps[1:], None], strict=True):
            over = following[1] if following else ended
            if started <= ended and over >= began:
                allowed |= names
        assert name in allowed, (began, ended, name, allowed)


def test_another_service_is_never_reached(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """Frontends come and go beside one that stays; memory of elements is used again at once."""
    stays = frontend(WEB[4], Protocol.TCP)
    node.run(node.datapath.set_services({stays: state(pods[:1], 4)}))
    others = [Frontend(IPv4Address(f"10.96.2.{n}"), 80, Protocol.TCP) for n in range(1, 60)]
    stop, failed = threading.Event(), list[BaseException]()

    def churn() -> None:
        try:
            while not stop.is_set():
                node.run(node.datapath.set_services(dict.fromkeys(others, state(pods[1:], 4))))
                node.run(node.datapath.set_services(dict.fromkeys(others)))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert set(client.ask(f"many(1500, 4, '{WEB[4]}')")) == {pods[0].name}
    finally:
        stop.set()
        thread.join()
    assert not failed


def test_a_restart_keeps_numbers_and_sockets(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods)))
    client.do(f"u = new(4, DGRAM); c = new(6, DGRAM); c.connect(('{WEB[6]}', 80))")
    client.do(f"s, tcp = dial(4, '{WEB[4]}')")
    before = (client.ask(f"ask_to(u, '{WEB[4]}')[0]"), client.ask("ask(c)"), client.ask("tcp"))
    known = rows(node)
    restart(node)
    assert rows(node) == known
    assert (client.ask(f"ask_to(u, '{WEB[4]}')[0]"), client.ask("ask(c)"), client.ask("ask(s)")) == before
    assert client.ask("list(s.getpeername()[:2])") == [WEB[4], 80]
    applied = node.run(node.datapath.set_services(services(WEB, pods)))
    assert (applied.frontends, applied.backends_added, applied.backends_removed) == (0, 0, 0)
    assert rows(node) == known
    assert node.datapath.services.dump()[0].service == "default/web"


def test_what_an_interrupted_change_left_is_settled(node: KernelNode, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods)))
    known = rows(node)
    root = pin_root(node.settings)
    stray = libbpf.BpfMap.open(root / "maps" / "lb_backends", "lb_backends")
    places = libbpf.BpfMap.open(root / "maps" / "lb_rows", "lb_rows")
    stray.update((77).to_bytes(4, "little") + (78).to_bytes(4, "little"), bytes(20))
    places.update((77).to_bytes(4, "little") + bytes(4), bytes(64))
    members = len(list(stray.keys()))
    restart(node)
    try:
        assert rows(node) == known
        assert len(list(stray.keys())) == members - 1
        assert len(list(places.keys())) == len(known)
    finally:
        stray.close()
        places.close()


def test_a_change_that_the_kernel_refuses_half_way(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """Somebody has filled a map: every frontend keeps what it has, and the next try begins with what is there."""
    node.run(node.datapath.set_services(services(WEB, pods[:1])))
    known = rows(node)
    backends = libbpf.BpfMap.open(pin_root(node.settings) / "maps" / "lb_backends", "lb_backends")
    strays = [(0xFFFF).to_bytes(4, "little") + n.to_bytes(4, "little") for n in range(1, 4096 - len(known) - 2)]
    try:
        backends.update_many([(key, bytes(20)) for key in strays])
        with pytest.raises(KernelRefusedError, match="to map lb_backends: Argument list too long"):
            node.run(node.datapath.set_services(services(WEB, pods)))
        assert {(row.address, len(row.backends)) for row in rows(node)} == {(row.address, 1) for row in known}
        assert set(client.ask(f"many(10, 4, '{WEB[4]}')")) == {pods[0].name}
        applied = node.run(node.datapath.set_services(services(WEB, pods)))
        assert (applied.frontends, applied.backends_added) == (4, 8)
        assert len(list(backends.keys())) == 12
        assert set(client.ask(f"many(40, 4, '{WEB[4]}')")) == set(NAMES)
    finally:
        backends.close()


def test_switched_off_and_on(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods)))
    client.do(f"s, name = dial(4, '{WEB[4]}')")
    assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 1)
    restart(node, socket_lb="off")
    root = pin_root(node.settings)
    assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 0)
    left = {path.name for kind in ("links", "programs", "maps", "layout") for path in (root / kind).iterdir()}
    assert not left & {*SOCKET_LB_LINKS, *SERVICES_LAYOUT}
    assert client.ask("ask(s)") == client.ask("name")
    assert node.datapath.services.dump() == []
    with pytest.raises(DatapathError, match="socket_lb: it is switched off"):
        node.run(node.datapath.set_services(services(WEB, pods)))
    restart(node)
    assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 1)
    node.run(node.datapath.set_services(services(WEB, pods)))
    assert client.ask(f"name_of(4, '{WEB[4]}')") in NAMES


def attached(node: KernelNode) -> dict[str, int]:
    """How many programs of each name the pods' cgroup has."""
    found = {}
    for name, kind in SOCKET_LB_LINKS.items():
        programs = loaded.of_cgroup(node.settings.pods_cgroup, kind, effective=False)
        found[name] = [loaded.name_of(number) for number in programs].count(name)
    return found


def test_another_version_takes_over_and_back(node: KernelNode, client: Remote, pods: list[Pod]) -> None:
    """Its maps are shared, those in the sockets as well; links are taken over in place."""
    node.run(node.datapath.set_services(services(WEB, pods)))
    client.do(f"u = new(4, DGRAM); s, tcp = dial(6, '{WEB[6]}')")
    before = (client.ask(f"ask_to(u, '{WEB[4]}')"), client.ask("tcp"))
    known = rows(node)
    for defines, version in (({"ABI_VERSION": "1003"}, "v1003"), ({}, pin_root(node.settings).name)):
        node.run(node.datapath.close())
        node.datapath = node.run(Datapath.open(node.settings, test_defines=defines))
        node.run(node.datapath.set_endpoints(node.endpoints))
        node.apply()
        node.run(node.datapath._drain.look())
        assert {path.parent.parent.name for path in node.settings.bpffs.glob("spliceway/v*/links/lb_*")} == {version}
        assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 1)
        assert rows(node) == known
        assert (client.ask(f"ask_to(u, '{WEB[4]}')"), client.ask("ask(s)")) == before
        assert client.ask("list(s.getpeername()[:2])") == [WEB[6], 80]


def test_cleanup_knows_it(node: KernelNode, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods)))
    found = node.run(leftovers.find(node.settings))
    linked = {one.path.name for one in found if one.kind == "link" and one.path}
    assert linked >= set(SOCKET_LB_LINKS)
    node.run(node.datapath.remove())
    assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 0)
    assert node.run(leftovers.find(node.settings)) == []
    node.datapath = node.run(Datapath.open(node.settings))


@pytest.mark.parametrize("name", ["lb_connect4", "lb_sendmsg6"])
def test_it_makes_way_for_somebody_elses(node: KernelNode, client: Remote, pods: list[Pod], name: str) -> None:
    assert node.datapath.services.is_active
    with cgroup_program(node.settings.pods_cgroup.parent, SOCKET_LB_LINKS[name]):
        restart(node)
        assert not node.datapath.services.is_active
        assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 0)
        (problem,) = [each for each in node.loop.call(node.datapath.status).problems if "socket load balancing" in each]
        assert "cil_sock4_conn" in problem
        node.run(node.datapath.set_services(services(WEB, pods)))  # the maps are kept up
    node.run(node.datapath.services.look())
    assert node.datapath.services.is_active
    assert client.ask(f"name_of(4, '{WEB[4]}')") in NAMES
    node.datapath._pins |= {f"links/{name}" for name in SOCKET_LB_LINKS}  # as if they had been there from the start
    with cgroup_program(node.settings.pods_cgroup.parent, SOCKET_LB_LINKS[name]):
        node.run(node.datapath.set_services(services(WEB, pods[:1])))  # they have come meanwhile
        assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 0)
        assert [each for each in node.loop.call(node.datapath.status).problems if "pins" in each] == []
    node.run(node.datapath.set_services(services(WEB, pods)))
    assert attached(node) == dict.fromkeys(SOCKET_LB_LINKS, 1)
    assert node.loop.call(node.datapath.status).problems == ()


def test_too_much_is_refused_whole(node: KernelNode, pods: list[Pod]) -> None:
    node.run(node.datapath.set_services(services(WEB, pods)))
    known = rows(node)
    many = {Frontend(IPv4Address("10.97.0.0") + n, 80, Protocol.TCP): state(pods, 4) for n in range(1025)}
    with pytest.raises(MapFullError, match=r"lb_frontends: 1029 elements needed.*raise datapath\.maxFrontends"):
        node.run(node.datapath.set_services(many))
    pool = tuple(Backend(IPv4Address("10.244.0.1"), 1000 + n) for n in range(4097))
    large = {frontend(WEB[4], Protocol.TCP): FrontendState("default/web", "", "ClusterIP", pool)}
    with pytest.raises(MapFullError, match=r"lb_backends: 4106 elements needed.*raise datapath\.maxBackends"):
        node.run(node.datapath.set_services(large))
    bad = {frontend("10.97.0.1", Protocol.TCP): state(pods, 4), frontend("127.0.0.1", Protocol.TCP): state(pods, 4)}
    with pytest.raises(DatapathError, match=r"frontend 127\.0\.0\.1:80/TCP of default/web: address"):
        node.run(node.datapath.set_services(bad))
    assert rows(node) == known


def test_a_map_of_another_size_is_told(node: KernelNode, pods: list[Pod]) -> None:
    """One that is taken over keeps its size: to raise the number in the configuration changes nothing."""
    assert node.loop.call(node.datapath.status).warnings == ()
    node.run(node.datapath.close())
    room = node.settings.max_frontends
    larger = msgspec.structs.replace(node.settings, max_frontends=room + 1, max_connections=4096)
    node.datapath = node.run(Datapath.open(larger))
    try:
        told = node.loop.call(node.datapath.status).warnings
        assert [text.split()[0] for text in told] == ["datapath.maxConnections", "datapath.maxFrontends"]
        assert f"is {room + 1}, but map lb_frontends was made with {room}: `spliceway cleanup` and a start" in told[1]
        many = {Frontend(IPv4Address("10.97.0.0") + n, 80, Protocol.TCP): state(pods, 4) for n in range(room + 1)}
        with pytest.raises(
            MapFullError, match=f"it was made with {room}, {room + 1} are configured: `spliceway cleanup`"
        ):
            node.run(node.datapath.set_services(many))
    finally:
        node.run(node.datapath.close())
        node.datapath = node.run(Datapath.open(node.settings))


def test_ten_thousand_services(testbed: Testbed, client: Remote, pods: list[Pod]) -> None:
    def wanted(number: int) -> FrontendState:
        first = int(IPv4Address("10.128.0.0")) + number * ENDPOINTS
        backends = tuple(Backend(IPv4Address(first + n), 8080) for n in range(ENDPOINTS))
        return FrontendState(f"default/s{number}", "http", "ClusterIP", backends)

    every = {Frontend(IPv4Address("10.98.0.0") + n, 80, Protocol.TCP): wanted(n) for n in range(SERVICES)}
    with KernelNode(testbed.node, socket_lb="on") as node:
        node.apply()
        began = time.monotonic()
        node.run(node.datapath.set_services(every))
        filled = time.monotonic()
        node.run(node.datapath.set_services({**services(WEB, pods)}))
        added = time.monotonic()
        assert client.ask(f"name_of(4, '{WEB[4]}')") in NAMES
        reading = time.monotonic()
        maps = ServiceMaps(pin_root(node.settings))
        read = time.monotonic()
        assert len(maps.frontends) == SERVICES + 4
        maps.close()
        again = time.monotonic()
        assert node.run(node.datapath.set_services(every)).frontends == 0
        compared = time.monotonic()
        node.run(node.datapath.set_services(dict.fromkeys(every)))
        gone = time.monotonic()
        assert len(rows(node)) == 4
        print(
            f"\n{SERVICES} Services, {ENDPOINTS} backends each: filled in {filled - began:.2f} s, one more in"
            f" {added - filled:.3f} s, read back in {read - reading:.2f} s, compared in {compared - again:.2f} s,"
            f" removed in {gone - compared:.2f} s"
        )
