"""What the resources and the bootstrap need to know of the node."""

from __future__ import annotations

from pathlib import Path

import msgspec


class ResourceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the listeners and of the upstream side. Times in seconds, sizes in bytes.

    `upstream_mark`: socket mark of the proxy's upstream connections; it must not be the mark that steers packets to
    the proxy. `ipv6`: listen on [::1] too. `connect_timeout`: until an upstream connection is there. `idle_timeout`: a
    client's connection without requests, 0 never. `upstream_idle_timeout`: the same of an upstream connection; nothing
    else ends it when its client has gone (Envoy issue 37617), and a client that comes back later gets a new one.
    `headers_timeout`: from a request's first byte to the end of its head. `connection_age`: a client's connection that
    is older ends after its next answer, 0 never; of Envoy only, the embedded proxy has it in its own settings.
    `buffer_limit`: for each connection and direction; the embedded proxy wants 16 KiB, and reads no more than 256 KiB
    at once anyway. `max_head_kib`, `max_headers`: larger heads get a 431.
    `denied_body`: body of a 403. `explain_denied`: it goes on with the reason, as in `Access denied: http-denied`.
    `log_flush_interval`: how long an access log entry may wait for company.
    """

    upstream_mark: int = 0x1002
    ipv6: bool = True
    connect_timeout: float = 10.0
    idle_timeout: float = 3600.0
    upstream_idle_timeout: float = 4.0
    headers_timeout: float = 60.0
    connection_age: float = 0.0
    buffer_limit: int = 1 << 20
    max_head_kib: int = 64
    max_headers: int = 100
    denied_body: str = "Access denied"
    explain_denied: bool = False
    log_flush_interval: float = 0.1


class BootstrapSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What Envoy is started with. Paths are absolute, times in seconds.

    `node_id`, `cluster`: how it calls itself to the agent. `xds_socket`: the agent's Unix socket. `admin_socket`:
    Envoy's own admin interface. `max_connections`: downstream connections beyond this are refused, 0 never.
    `reconnect_max`: longest pause between two attempts to reach an agent that is away. `delta`: ask for what changed
    only, otherwise for the state of the world.
    """

    node_id: str
    cluster: str = "spliceway"
    xds_socket: Path
    admin_socket: Path
    max_connections: int = 200_000
    reconnect_max: float = 1.0
    delta: bool = True
