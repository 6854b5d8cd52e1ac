"""All four ends of proxied connections in one test: client, the proxy's two sockets, server.

The proxy is no program here. Its listening sockets and those that it opens are made in its cgroup, and the test holds
them: so a test sends and reads at any end, in any order, and no thread of anybody else gets in between.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from socket import ntohs
from typing import Any, Literal, Self

import msgspec

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import abi
from spliceway.bpf.abi import End
from spliceway.bpf.addresses import unpack_address
from spliceway.bpf.types import IPAddress, Leg, SockEntry, SpliceClasses, SpliceLimits, SpliceState
from support.kernel import KernelNode
from support.node import pod_manifest
from support.rps import set_rps
from support.socketmaker import SocketMaker
from support.waiting import LIMIT, until

#: What the servers listen on, what else has HTTP rules, and what is allowed without.
PORT, SECOND_PORT, PLAIN_PORT = 80, 8080, 81
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rows, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "8080", protocol: TCP}]
      rules: {http: [{method: GET}]}
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "81", protocol: TCP}]}]
"""
Veths = Literal["plain", "rps"]
#: For every wait in these tests, in seconds: none takes that long but one that fails.
PATIENCE = LIMIT

_IP_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT, _IPV6_TRANSPARENT = 19, 24, 75
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Pair:
    """One leg: the pod's end and the proxy's."""

    def __init__(self, bed: SpliceBed, leg: Leg, pod: socket.socket, proxy: socket.socket) -> None:
        self.leg, self.pod, self.proxy = leg, pod, proxy
        self._bed = bed
        self._ends = name_of(pod, socket.socket.getsockname)
        for end in (pod, proxy):
            end.settimeout(PATIENCE)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if leg is Leg.DOWNSTREAM:
            self._peer = name_of(pod, socket.socket.getpeername)
        else:
            self._peer = name_of(proxy, socket.socket.getsockname)

    def ends(self, *, to_pod: bool) -> tuple[socket.socket, socket.socket]:
        """Writer and reader of one direction."""
        return (self.proxy, self.pod) if to_pod else (self.pod, self.proxy)

    @property
    def address(self) -> IPAddress:
        """The pod's."""
        return self._ends[0]

    @property
    def port(self) -> int:
        """The pod's."""
        return self._ends[1]

    @property
    def entry(self) -> SockEntry | None:
        """What the datapath says of it now."""
        for one in self._bed.node.datapath.socks():
            if (one.endpoint, one.endpoint_port, one.peer, one.peer_port) == (self.address, self.port, *self._peer):
                return one
        return None

    @property
    def known(self) -> SockEntry:
        """As `entry`, which must be there."""
        entry = self.entry
        assert entry is not None, "no entry"
        return entry

    @property
    def state(self) -> SpliceState | None:
        """Of the entry."""
        entry = self.entry
        return entry.state if entry else None

    @property
    def members(self) -> set[End]:
        """Which ends are in the sockhash."""
        keys = [abi.SpliceKey.from_buffer_copy(raw) for raw, _ in self._bed.node.datapath._maps.socks.items()]
        own = [key for key in keys if (unpack_address(bytes(key.pod.w)), ntohs(key.pod_port)) == self._ends]
        return {End(key.end) for key in own if (unpack_address(bytes(key.peer.w)), ntohs(key.peer_port)) == self._peer}

    def room(self) -> int | None:
        """Ask as a proxy does: how many bytes may be sent to the pod now, None: as many as it likes."""
        try:
            return int(self.proxy.getsockopt(abi.SOCKOPT_LEVEL, abi.SOCKOPT_ROOM))
        except OSError:
            return None

    def wait_state(self, *states: SpliceState) -> SockEntry:
        """Wait until the entry is in one of these states."""
        return until(lambda: entry if (entry := self.entry) and entry.state in states else None)

    def close(self) -> None:
        self.pod.close()
        self.proxy.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpliceBed:
    """A node with a client's and a server's pod, a datapath, and the ends of what the tests connect."""

    def __init__(self, testbed: Testbed, **settings: Any) -> None:
        self.testbed = testbed
        self.node = KernelNode(testbed.node, **{"max_connections": 8192, **settings})
        self._stack = contextlib.ExitStack()
        self._handed_out: list[socket.socket] = []
        self._stack.callback(self.node.close)
        try:
            self._begin()
            for maker in self.makers.values():
                self._stack.callback(maker.close)
            self.listeners = {version: self._proxy_listener(version) for version in FAMILIES}
            self.servers = {version: self.server_listener(version) for version in FAMILIES}
            self._stack.callback(self._close_listeners)
            self.set_listeners()
            self._handed_out.clear()
        except BaseException:
            self._stack.close()
            raise

    def _begin(self) -> None:
        """Have a policy, and what makes sockets in each place."""
        testbed = self.testbed
        self.node.apply(POLICY)
        self.splice(clients=True, servers=True)
        spawners: dict[str, Callable[..., Any]] = {
            "client": testbed.pod("client").spawn,
            "server": testbed.pod("server").spawn,
            "proxy": lambda argv, **options: testbed.node.spawn_on_node(argv, "proxy", **options),
        }
        self.makers = {place: SocketMaker(spawn) for place, spawn in spawners.items()}

    def splice(self, *, clients: bool, servers: bool) -> None:
        """Which legs of new connections are spliced."""
        self.node.run(self.node.datapath.set_splice(SpliceClasses(clients=clients, servers=servers)))

    @contextlib.contextmanager
    def limited(self, limits: SpliceLimits) -> Iterator[None]:
        """Other limits: for the next message, and for the buffers of connections that come."""
        control = self.node.datapath._splices
        before = control._settings
        control._settings = msgspec.structs.replace(before, splice_limits=limits)
        self.node.loop.call(control.write)
        try:
            yield
        finally:
            control._settings = before
            self.node.loop.call(control.write)

    def set_veths(self, veths: Veths) -> None:
        """With receive packet steering: what pods receive on the first CPU, what the node receives on the second."""
        on = veths == "rps"
        set_rps(self.testbed.node, pods=0b01 * on, node_mask=0b10 * on)

    def address(self, pod: str, version: int) -> str:
        """Of a pod, as text."""
        return str(self.testbed.pod(pod).address(version))

    def make(self, place: str, version: int) -> socket.socket:
        """A TCP socket of `client`, `server` or `proxy`."""
        made = self.makers[place].make(FAMILIES[version])
        self._handed_out.append(made)
        made.settimeout(PATIENCE)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place == "proxy":
            if version == 4:
                made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        return made

    def opener(self, leg: Leg, version: int, port: int = 0) -> socket.socket:
        """The socket that will open a leg, not yet connected: the client's, or the proxy's with the client's address.

        `port`: its own.
        """
        if leg is Leg.DOWNSTREAM:
            made = self.make("client", version)
            if port:
                made.bind((self.address("client", version), port))
            return made
        made = self.make("proxy", version)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.node.settings.proxy_mark)
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((self.address("client", version), port))
        return made

    def target(self, version: int, port: int = PORT) -> tuple[str, int]:
        """Where both legs are opened to."""
        return self.address("server", version), port

    def listener(self, leg: Leg, version: int) -> socket.socket:
        """The listening socket of a leg: the proxy's or the server's."""
        return (self.listeners if leg is Leg.DOWNSTREAM else self.servers)[version]

    def accept(self, leg: Leg, version: int) -> socket.socket:
        """The next connection at the leg's listener."""
        accepted = self.listener(leg, version).accept()[0]
        self._handed_out.append(accepted)
        accepted.settimeout(PATIENCE)
        return accepted

    def pair_of(self, leg: Leg, opened: socket.socket, accepted: socket.socket) -> Pair:
        """The Pair of these two ends."""
        pod, proxy = (opened, accepted) if leg is Leg.DOWNSTREAM else (accepted, opened)
        return Pair(self, leg, pod, proxy)

    def connect(self, leg: Leg, version: int = 4, *, port: int = 0) -> Pair:
        """A connection of this leg, accepted, before its first byte."""
        opened = until(lambda: self._connected(leg, version, port))
        return self.pair_of(leg, opened, self.accept(leg, version))

    def _connected(self, leg: Leg, version: int, port: int) -> socket.socket | None:
        opened = self.opener(leg, version, port)
        try:
            opened.connect(self.target(version))
        except OSError as error:
            if not port or error.errno != errno.EADDRNOTAVAIL:
                raise
            return None  # the last packet of the connection before is still on its way
        return opened

    def spliced(self, leg: Leg, version: int = 4, *, port: int = 0, asks: bool = True) -> Pair:
        """As `connect`, and spliced: on another CPU, accept() may return before the accepting end is in the map.

        `asks`: the proxy has asked for room, as the embedded one does and Envoy does not.
        """
        pair = self.connect(leg, version, port=port)
        pair.wait_state(SpliceState.SPLICED)
        if asks:
            pair.room()
        return pair

    def _proxy_listener(self, version: int) -> socket.socket:
        made = self.make("proxy", version)
        made.bind(("127.0.0.1" if version == 4 else "::1", self.node.settings.listener_ports[0]))
        made.listen(4096)
        return made

    def server_listener(self, version: int) -> socket.socket:
        """One for `servers`, which stays when a test ends."""
        made = self.make("server", version)
        self._handed_out.remove(made)
        made.bind((self.address("server", version), PORT))
        made.listen(4096)
        return made

    def _close_listeners(self) -> None:
        for one in (*self.listeners.values(), *self.servers.values()):
            one.close()

    def set_listeners(self) -> None:
        """The proxy listens for every rule set of the table in force."""
        assert self.node.table is not None
        port = self.node.settings.listener_ports[0]
        self.node.run(self.node.datapath.set_listeners(dict.fromkeys(self.node.table.rule_sets, port)))

    def release(self) -> None:
        """Close every socket that was asked for."""
        for one in self._handed_out:
            one.close()
        self._handed_out.clear()

    def close(self) -> None:
        self.release()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def splice_bed(**settings: Any) -> Iterator[SpliceBed]:
    """Build it, with a testbed of its own."""
    manifests = [pod_manifest("client", {"role": "client"}), pod_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed, SpliceBed(testbed, **settings) as bed:
        yield bed


def name_of(sock: socket.socket, of: Callable[[socket.socket], Any]) -> tuple[IPAddress, int]:
    """Address and port of one end; an IPv4 address in an IPv6 socket is an IPv4 one."""
    address, port = of(sock)[:2]
    given = ip_address(address)
    if isinstance(given, IPv6Address) and given.ipv4_mapped:
        given = given.ipv4_mapped
    return given, port
