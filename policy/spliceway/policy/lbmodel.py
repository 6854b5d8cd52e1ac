"""What load balancing means on a node: addresses that clients dial, and who answers. Values only."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import msgspec

from spliceway.policy.verdict import Protocol

IPAddress = IPv4Address | IPv6Address


class Frontend(msgspec.Struct, frozen=True):
    """An address of a Service as clients dial it; `port` is 1 to 65535."""

    address: IPAddress
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{_end(self.address, self.port)}/{self.protocol.name}"


class Backend(msgspec.Struct, frozen=True):
    """Where connections to a Service go."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return _end(self.address, self.port)


class FrontendState(msgspec.Struct, frozen=True):
    """Who answers at a frontend. `service` is «namespace/name», `kind` ClusterIP, ExternalIP or LoadBalancer.

    Without `backends` it refuses. `affinity_seconds`: how long a client keeps its backend, 0: for a connection.
    """

    service: str
    port_name: str
    kind: str
    backends: tuple[Backend, ...]
    affinity_seconds: int = 0


def _end(address: IPAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
