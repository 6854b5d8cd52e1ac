"""What the parts of the proxy hand each other: settings, what xDS said, changes for workers, records of requests.

All of it are values that msgspec encodes, since supervisor and workers are processes. Times are in seconds and sizes in
bytes unless a name says otherwise; 0 is «never» or «no limit».
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from spliceway.policy.table import RuleSet

Count = Annotated[int, Meta(ge=0, le=10_000_000)]
#: A year at most.
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a node's clients may take of the proxy, beside what each listener says. Each has a reason and a counter.

    `connections`: of all clients, on all workers; `connections_per_client`: of one address. `connection_age`: a
    connection that is older is closed after its next answer. `body_idle`: how long a request's body may pause.
    `tunnel_idle`: how long an upgraded connection may be silent. `buffered`: bytes of all connections that wait to be
    sent or understood; beyond it those that have most are reset. `drain`: how long connections may go on when the
    proxy ends or another one takes over.
    """

    connections: Count = 100_000
    connections_per_client: Count = 20_000
    connection_age: Seconds = 0.0
    body_idle: Seconds = 300.0
    tunnel_idle: Seconds = 0.0
    buffered: Annotated[int, Meta(ge=0)] = 256 << 20
    drain: Seconds = 30.0


class ProxySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What `spliceway proxy` is started with (`--config`, JSON). Paths are absolute.

    `node_id`, `cluster`: how it calls itself to the agent. `xds_socket`: the agent's Unix socket. `admin_socket`: its
    own admin interface, mode 0600. `handover_socket`: where a new proxy asks for the listening sockets. `state_file`:
    the last good configuration. `workers`: 0 is one for each core. `reconnect_max`: longest pause between two attempts
    to reach an agent that is away.
    """

    node_id: str
    cluster: str = "spliceway"
    xds_socket: Path
    admin_socket: Path
    handover_socket: Path
    state_file: Path
    workers: int = 0
    reconnect_max: float = 1.0
    log_level: str = "info"
    limits: Limits = Limits()


class ListenerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A listener (LDS), reduced to what a proxy that does nothing else must know.

    `addresses`: (loopback address, port). `buffer_limit`: bytes that are read at once, at most, of what a client sends;
    no more is read until they are sent on. (Heads have limits of their own.) `upstream_mark`: socket mark of upstream
    connections. `route`: name of the route configuration that has its rules. `headers_timeout`: from a request's first
    byte to the end of its head; `idle_timeout`: a connection without requests. Heads with more than `max_head_bytes` or
    `max_headers` get a 431. `denied`: body of a 403 by reason label (`http-denied`, `http-ambiguous`); `denied_body`:
    of all other 403.
    """

    name: str
    addresses: tuple[tuple[str, int], ...]
    backlog: int
    buffer_limit: int
    upstream_mark: int
    route: str
    headers_timeout: float
    idle_timeout: float
    max_head_bytes: int
    max_headers: int
    denied_body: bytes
    denied: dict[str, bytes] = {}


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A route configuration (RDS): the rules of one listener. `volatile`: it must not be written to a disk.

    `rule_set.name` is the name of the resource; rules have ids, and names only in the agent.
    """

    name: str
    rule_set: RuleSet
    volatile: bool = False


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster (CDS) `original-destination`. `buffer_limit`: as a listener's, of what a server sends.

    The other limits are for heads of responses.
    """

    name: str
    connect_timeout: float
    buffer_limit: int
    max_headers: int
    max_head_bytes: int


class Change(msgspec.Struct, frozen=True, kw_only=True, tag="change"):
    """What changes in a worker, in one step. `revision` counts up; the worker answers with it.

    `listeners`: new and changed ones, by name; those in `sockets` are new, and one listening socket for each of their
    addresses comes with the message, in this order. A listener is given only together with, or after, its rules and
    the cluster. `rules`: by name of the route configuration. `gone`: names of listeners that are no more (their routes
    go with them).
    """

    revision: int
    listeners: dict[str, ListenerConfig] = {}
    sockets: tuple[str, ...] = ()
    rules: dict[str, RuleSet] = {}
    gone: tuple[str, ...] = ()
    cluster: ClusterConfig | None = None


class AccessRecord(msgspec.Struct, frozen=True, array_like=True):
    """One request that has ended, or a connection that was refused before it had one (`method` empty).

    `time`: CLOCK_REALTIME, nanoseconds. `path` is `:path` as it was matched (as it came, where it was refused before
    that). `verdict`, `reason`: numbers of `policy.verdict`. `status` 0: no answer was sent. `flags` are Envoy's names
    of response flags (`upstream_connection_failure`, …), `details` says in Envoy's words or ours why an answer is the
    proxy's own. `connection`: number of the downstream connection, unique on the node. `upstream_source` is empty when
    the proxy did not connect. Bytes are those on the wire.
    """

    time: int
    duration_ns: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: str
    method: str
    authority: str
    path: str
    status: int
    verdict: int
    reason: int
    rule_set: int
    rule: int = 0
    client_rule: int = 0
    nearest_miss: str = ""
    mismatches: tuple[str, ...] = ()
    details: str = ""
    flags: tuple[str, ...] = ()
    connection: int = 0
    upstream_source: str = ""
    upstream_source_port: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    upstream_sent_bytes: int = 0
    upstream_received_bytes: int = 0
