"""The self-test's node: the real programs on a veth, one pod behind it, and a proxy that is played here.

Every connection is one of the two legs that are spliced. Clients: the pod connects to a host that isn't there and meets
the proxy's listener. Servers: the proxy connects to the pod in that host's name.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from spliceway.bpf.datapath import Datapath
from spliceway.bpf.selftest import ground, leftovers
from spliceway.bpf.selftest.factory import SocketFactory
from spliceway.bpf.selftest.report import Side
from spliceway.bpf.selftest.talk import STALL, BadError, wait
from spliceway.bpf.types import DatapathSettings, LocalEndpoint, SockEntry, SpliceLimits, SpliceState
from spliceway.policy.table import EndpointPolicy, HttpRule, PolicyTable, Row, RowKey, RuleRef, RuleSet
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
#: Where the pod listens, and where it connects to.
PORT = 80
#: Bytes that may wait unread in one direction of a connection here.
LIMIT = 1 << 20
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ENDPOINT = "selftest/pod"
_RULE_SET = 1
_WORLD, _POD = 2, 256  # identities
_TRANSPARENT = {4: (socket.IPPROTO_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}  # IP_TRANSPARENT, IPV6_TRANSPARENT
_SO_MARK = 36


class Pair(NamedTuple):
    """Both ends of one connection."""

    pod: socket.socket
    proxy: socket.socket

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.pod.close()
        self.proxy.close()


class Site:
    """A node where connections are spliced. Make one per process, in its only thread."""

    def __init__(
        self,
        pods_cgroup: Path,
        proxy_cgroup: Path,
        bpffs: Path,
        test_defines: Mapping[str, str] | None = None,
        program_cache: Path | None = None,
    ) -> None:
        """Build it. Raises OSError or DatapathError."""
        leftovers.sweep(pods_cgroup, proxy_cgroup)
        name = leftovers.own_name()
        self._cgroups = [pods_cgroup / name, proxy_cgroup / name]
        self._factories: list[SocketFactory] = []
        self._runner = asyncio.Runner()
        try:
            place = ground.make(bpffs)
            for cgroup, namespace in zip(self._cgroups, (place.pod, place.node), strict=True):
                cgroup.mkdir()
                self._factories.append(SocketFactory(cgroup, namespace))
            pods, proxy = self._cgroups
            self.settings = _settings(place, pods, proxy, program_cache)
            self.datapath = self._runner.run(self._start(place, test_defines))
            self._listeners = {version: self._proxy_listener(version) for version in FAMILY}
            self._servers = {version: self.server(version, str(ground.POD[version])) for version in FAMILY}
        except BaseException:
            self.close()
            raise

    async def _start(self, place: ground.Ground, test_defines: Mapping[str, str] | None) -> Datapath:
        datapath = await Datapath.open(self.settings, test_defines=test_defines)
        netns = Path(f"/proc/self/fd/{place.pod}")
        await datapath.set_endpoints([LocalEndpoint(_ENDPOINT, ground.INTERFACE, netns, tuple(ground.POD.values()))])
        await datapath.apply(_table())
        await datapath.set_listeners({_RULE_SET: self.settings.listener_ports[0]})
        return datapath

    def close(self) -> None:
        """Take away what would stay: the cgroups. All the rest ends with the process. Raises OSError."""
        for factory in self._factories:
            factory.close()
        for cgroup in self._cgroups:
            leftovers.remove(cgroup)
        self._runner.close()

    # ---- sockets ----

    def pod_socket(self, family: int) -> socket.socket:
        """A new socket of the pod."""
        return self._factories[0].make(family)[0]

    def _proxy_socket(self, version: int) -> socket.socket:
        one = self._factories[1].make(FAMILY[version])[0]
        one.setsockopt(*_TRANSPARENT[version], 1)
        return one

    def _proxy_listener(self, version: int) -> socket.socket:
        one = self._proxy_socket(version)
        one.bind((_LOOPBACK[version], self.settings.listener_ports[0]))
        one.listen(512)
        return one

    def server(self, version: int, address: str, port: int = PORT) -> socket.socket:
        """A listener of the pod's; on "::" it takes IPv4 as well."""
        one = self.pod_socket(FAMILY[version])
        if version == 6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != "::")
        one.bind((address, port))
        one.listen(512)
        return one

    def listener(self, side: Side, version: int) -> socket.socket:
        """Where connections of this side arrive."""
        return (self._listeners if side is Side.CLIENTS else self._servers)[version]

    def open_end(self, side: Side, version: int, *, port: int = 0, target_port: int = PORT) -> socket.socket:
        """The opening end of a new connection, connected; `port`: its own, 0 for any."""
        if side is Side.CLIENTS:
            one, source, target = self.pod_socket(FAMILY[version]), ground.POD[version], ground.REMOTE[version]
        else:
            one, source, target = self._proxy_socket(version), ground.REMOTE[version], ground.POD[version]
            one.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.settings.proxy_mark)
        if port:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((str(source), port))
        connect(one, (str(target), target_port))
        return one

    def connect(self, side: Side, version: int, *, port: int = 0) -> Pair:
        """A new connection that is spliced. Raises BadError when it is not."""
        one = self.open_end(side, version, port=port)
        pair = self.accept(side, one, self.listener(side, version))
        return self.spliced(pair)

    def accept(self, side: Side, one: socket.socket, listener: socket.socket) -> Pair:
        """The connection of which `one` is the opening end."""
        other = accept(listener)
        return Pair(one, other) if side is Side.CLIENTS else Pair(other, one)

    # ---- what the kernel says of a connection ----

    def entry(self, pair: Pair) -> SockEntry | None:
        """The kernel's entry of a connection, or None when there is none (any more)."""
        local, remote = pair.pod.getsockname(), pair.pod.getpeername()
        ports = (local[1], remote[1])
        mapped = remote[0].removeprefix("::ffff:")
        for entry in self.datapath.socks():
            if (entry.endpoint_port, entry.peer_port) == ports and str(entry.peer) == mapped:
                return entry
        return None

    def state(self, pair: Pair) -> str:
        """`spliced`, or what it is instead and why."""
        entry = self.entry(pair)
        if entry is None:
            return "unknown"
        return entry.state.label if entry.state is SpliceState.SPLICED else f"{entry.state.label} ({entry.why})"

    def spliced(self, pair: Pair) -> Pair:
        """The pair, which must be spliced. Raises BadError."""
        state = self.state(pair)
        if state != "spliced":
            pair.__exit__()
            raise BadError(f"a new connection is {state}, not spliced")
        return pair

    def unread(self, pair: Pair, *, from_pod: bool) -> int:
        """Bytes that the kernel programs see waiting in one direction. Raises BadError when it has no entry."""
        self._runner.run(self.datapath.measure())
        entry = self.entry(pair)
        if entry is None:
            raise BadError("the connection is unknown")
        return entry.to_proxy_unread if from_pod else entry.from_proxy_unread

    def until(self, pair: Pair, wanted: SpliceState, why: str) -> None:
        """Wait until a connection is in this state for this reason. Raises BadError."""
        deadline = time.monotonic() + STALL
        while (entry := self.entry(pair)) is None or (entry.state, entry.why) != (wanted, why):
            if time.monotonic() > deadline:
                raise BadError(f"the connection is {self.state(pair)}, not {wanted.label} ({why})")
            time.sleep(0.001)


def connect(one: socket.socket, target: tuple[str, int]) -> None:
    """Connect a non-blocking socket. Raises OSError or BadError."""
    try:
        one.connect(target)
    except BlockingIOError:
        wait(one, select.POLLOUT, f"the answer of {target[0]}")
        error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"connect to {target[0]}") from None


def accept(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking. Raises BadError when none comes."""
    wait(listener, select.POLLIN, "the connection")
    other, _ = listener.accept()
    other.setblocking(False)
    return other


def _settings(place: ground.Ground, pods: Path, proxy: Path, program_cache: Path | None) -> DatapathSettings:
    return DatapathSettings(
        bpffs=place.bpffs,
        state_dir=place.state,
        pods_cgroup=pods,
        proxy_cgroup=proxy,
        program_cache=program_cache,
        splice_limits=SpliceLimits(connection=LIMIT, endpoint=4 * LIMIT, node=4 * LIMIT),
        max_connections=4096,
        max_ipcache=64,
        max_rows=64,
        max_endpoints=4,
        max_pairs=4,
    )


def _table() -> PolicyTable:
    """Everything that the pod sends or gets is steered to one rule set."""
    row = Row(Verdict.REDIRECT, Reason.REDIRECTED, rule=1, rule_set=_RULE_SET)
    return PolicyTable(
        revision=1,
        identities={_WORLD: ("reserved:world",), _POD: ("selftest:pod",)},
        ipcache={
            **{ip_network(anywhere): _WORLD for anywhere in ("0.0.0.0/0", "::/0")},
            **{ip_network(address): _POD for address in ground.POD.values()},
        },
        endpoints={_ENDPOINT: EndpointPolicy(_POD, 1, ingress=True, egress=True)},
        classes={},
        rows={RowKey(1, direction, 0, Protocol.TCP, 0, 0): row for direction in Direction},
        rule_sets={_RULE_SET: RuleSet(_RULE_SET, "selftest", (HttpRule(1),))},
        rules={1: RuleRef("self-test", "spec")},
    )
