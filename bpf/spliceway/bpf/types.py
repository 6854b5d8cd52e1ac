"""Values that cross the border between the datapath and the agent. No I/O here."""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

import msgspec

from spliceway.policy.verdict import Reason, Verdict

IPAddress = IPv4Address | IPv6Address


class Hook(IntEnum):
    """Where in the kernel a verdict was made."""

    FROM_POD = 0
    TO_POD = 1
    FROM_NETWORK = 2
    SK_MSG = 3
    SK_LOOKUP = 4
    TO_NETWORK = 5

    @property
    def label(self) -> str:
        """Kebab-case name, as in flows and metrics."""
        return self.name.lower().replace("_", "-")


class Leg(IntEnum):
    """Which connection of a path a socket or packet belongs to."""

    DIRECT = 0  # pod to peer, no proxy between
    DOWNSTREAM = 1  # client to proxy
    UPSTREAM = 2  # proxy to server
    SIDECAR = 3  # inside a pod, between its application and its sidecar

    @property
    def label(self) -> str:
        """Lower-case name."""
        return self.name.lower()


class SpliceState(IntEnum):
    """State word of a connection that may be spliced (see `redirect.bpf.c`)."""

    UNDECIDED = 0
    ACTIVE_IN = 1
    SPLICED = 2
    TCP_ONLY = 3
    REVOKED = 4

    @property
    def label(self) -> str:
        """Kebab-case name."""
        return self.name.lower().replace("_", "-")


class SpliceClasses(msgspec.Struct, frozen=True):
    """Which legs of new connections are spliced. `wanted` False: somebody wants none, whatever is safe."""

    clients: bool = True
    servers: bool = True
    wanted: bool = True


class SpliceLimits(msgspec.Struct, frozen=True):
    """Bytes that may be spliced and not yet read: one direction of a connection, an endpoint's, all of the node's."""

    connection: int = 4 << 20
    endpoint: int = 48 << 20
    node: int = 384 << 20


class DatapathSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the datapath needs to know of the node. Paths are absolute, marks and tables are numbers.

    `mark`/`mark_mask`: packets that are steered to the proxy; `proxy_mark`, under the same mask: what the proxy puts on
    its own upstream sockets; `route_table`/`rule_priority`: the policy route that delivers steered packets locally.
    docs/configuration.md tells why these numbers, and whose they stay clear of. `pods_cgroup` and `proxy_cgroup`:
    cgroup2 directories whose sockets are the pods' and the proxy's; `listener_ports`: first and last port that
    listeners may have; `unspliced_ports`: ports of servers whose connections are never spliced; `program_cache`: where
    compiled programs are kept, a directory of this user's own, or None; `tcx`: `auto` is TCX where the kernel has it;
    `devices`: names, with wildcards, of those by which packets come from outside, `auto`: see `devicechoice.py`;
    `socket_lb`: pods' sockets get Services from us (`socketlb.py`), up to so many frontends and backends, and pods that
    have a favourite of a Service's backends; where somebody else translates, `auto` and `on` both make way, and `on`
    calls it a problem; `sidecars`: connections inside of pods may be spliced, with their sidecars (`sidecars.py`).
    """

    bpffs: Path
    state_dir: Path
    pods_cgroup: Path
    proxy_cgroup: Path
    program_cache: Path | None = None
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    mark: int = 0x1000
    mark_mask: int = 0x1002
    proxy_mark: int = 0x1002
    route_table: int = 2480
    rule_priority: int = 7
    listener_ports: tuple[int, int] = (23000, 23999)
    splice: SpliceClasses = SpliceClasses()
    splice_limits: SpliceLimits = SpliceLimits()
    unspliced_ports: frozenset[int] = frozenset()
    max_connections: int = 262_144
    max_ipcache: int = 524_288
    max_rows: int = 262_144
    max_endpoints: int = 1024
    max_pairs: int = 4096
    socket_lb: Literal["auto", "on", "off"] = "off"
    max_frontends: int = 65_536
    max_backends: int = 262_144
    max_affinities: int = 32_768
    event_buffer_bytes: int = 4 << 20
    tcx: Literal["auto", "off"] = "auto"
    audit: bool = False
    disabled: bool = False
    sidecars: bool = False


class LocalEndpoint(msgspec.Struct, frozen=True):
    """A pod of this node and its veth. `name` is «namespace/name», `interface` the host side of the veth.

    `splice` False: its sockets are never spliced; `unspliced_ports`: those of connections to these servers' ports.
    `sidecar`: the user that its sidecar runs as, None: connections inside of it are left alone. `mesh`: how somebody
    else's mesh takes what it sends, for people; unless empty, its sockets get no Services from us.
    """

    name: str
    interface: str
    netns: Path
    addresses: tuple[IPAddress, ...]
    splice: bool = True
    unspliced_ports: frozenset[int] = frozenset()
    sidecar: int | None = None
    mesh: str = ""


class KernelFlow(msgspec.Struct, frozen=True):
    """One verdict of the kernel, from the ring buffer. `time` is CLOCK_MONOTONIC in nanoseconds.

    `rule`, `rule_set` and the identities are numbers of the PolicyTable. `port` 0 when the protocol has none; ICMP:
    type. `ended`: it lost its verdict by a change of policy, and has been ended for that.
    """

    time: int
    hook: Hook
    verdict: Verdict
    reason: Reason
    rule: int
    rule_set: int
    source: IPAddress
    source_port: int
    source_identity: int
    destination: IPAddress
    destination_port: int
    destination_identity: int
    protocol: int
    length: int
    leg: Leg
    reply: bool = False
    ended: bool = False

    @property
    def audit(self) -> bool:
        """Whether a policy in audit mode would have denied it, for this reason and by this rule. It passed."""
        return self.verdict is not Verdict.DENY and self.reason.denies


class CtEntry(msgspec.Struct, frozen=True):
    """One conntrack entry, in the perspective of the endpoint's own end. Age in seconds."""

    endpoint: IPAddress
    endpoint_port: int
    peer: IPAddress
    peer_port: int
    protocol: int
    leg: Leg
    endpoint_is_client: bool
    verdict: Verdict
    reason: Reason
    rule: int
    rule_set: int
    generation: int
    idle_seconds: float
    packets: int
    bytes: int


class SockEntry(msgspec.Struct, frozen=True):
    """One redirected connection: spliced or not, why not, and the bytes each way.

    `to_proxy_bytes`/`from_proxy_bytes`: redirected bytes from the pod's socket to the proxy's and back, and
    `…_unread` what of them waited when the kernel looked last. `member`: whether the pod's socket is in the sockhash.
    """

    endpoint: IPAddress
    endpoint_port: int
    peer: IPAddress
    peer_port: int
    leg: Leg
    state: SpliceState
    why: str
    rule_set: int
    to_proxy_bytes: int
    to_proxy_messages: int
    from_proxy_bytes: int
    from_proxy_messages: int
    to_proxy_unread: int = 0
    from_proxy_unread: int = 0
    member: bool = False
    age_seconds: float = 0.0


class ReasonCount(msgspec.Struct, frozen=True):
    """Packets and bytes (or messages) judged with one reason at one hook, all CPUs summed."""

    hook: Hook
    verdict: Verdict
    reason: Reason
    packets: int
    bytes: int


class SpliceCounters(msgspec.Struct, frozen=True):
    """Node-wide splice counters since load: bytes redirected, bytes that a member sent by TCP, outcomes.

    `left`: pods' sockets that left the sockhash in mid-life, and `leave_waits` the packets that waited for that;
    `sidecar_…`: what of `spliced` and `tcp_only` was between applications and their sidecars;
    `by_why`: connections not spliced, or not any more, by reason.
    """

    redirected_bytes: int
    redirected_messages: int
    tcp_bytes: int
    tcp_messages: int
    spliced: int
    tcp_only: int
    revoked: int
    left: int = 0
    leave_waits: int = 0
    sidecar_spliced: int = 0
    sidecar_tcp_only: int = 0
    by_why: dict[str, int] = {}


class HookStatus(msgspec.Struct, frozen=True):
    """Whether our programs are where packets pass, as of the last look. `kind`: tcx or clsact.

    `watched`: how many hooks of interfaces are looked at; of those `missing` lack our program, `behind` have somebody's
    in front of it, and neither could be mended. Since the agent's start `put_back` were taken off and attached again,
    and `moved` went back to the front; `last` tells of the latest of these, for people, at `last_time` (seconds since
    the epoch, 0: there was none).
    """

    kind: str = ""
    watched: int = 0
    missing: int = 0
    behind: int = 0
    put_back: int = 0
    moved: int = 0
    last: str = ""
    last_time: float = 0.0


class DeviceStatus(msgspec.Struct, frozen=True):
    """An interface of the node, and whether packets that come by it are judged there. `kind`: as `ip -d link` has it.

    `program`: the one that belongs there, empty: none; `attached`: whether it is; `why`, for people: why not.
    """

    name: str
    kind: str = ""
    program: str = ""
    attached: bool = False
    why: str = ""


class SocketLbStatus(msgspec.Struct, frozen=True):
    """Services of pods' sockets. `active`: their addresses are translated here; `foreign`: who does it instead.

    `mode` is the setting. `frontends` and `backends`: how many there are in the kernel, 0 where it is off.
    """

    mode: str = "off"
    active: bool = False
    foreign: tuple[str, ...] = ()
    frontends: int = 0
    backends: int = 0


class DatapathStatus(msgspec.Struct, frozen=True):
    """What is loaded and attached. `draining`: other versions' programs, and who still has them.

    `devices`: interfaces of the node's; `uncovered`: further ones of pods, whose packets no policy judges, for people.
    `problems` are sentences for people, empty when all is well; so are `warnings`, of what should be known.
    """

    abi: int
    generation: int
    taken_over: bool
    programs: dict[str, str]
    attached: tuple[str, ...]
    lost_events: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    hooks: HookStatus = HookStatus()
    devices: tuple[DeviceStatus, ...] = ()
    uncovered: tuple[str, ...] = ()
    socket_lb: SocketLbStatus = SocketLbStatus()
