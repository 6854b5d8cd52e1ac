"""Load balancing as values: where clients dial to (frontends), and where that leads (backends)."""

from __future__ import annotations

import msgspec

from spliceway.policy.table import IPAddress
from spliceway.policy.verdict import Protocol

#: Kinds of frontends. Where several claim the same one, the kind that comes first here has it.
CLUSTER_IP = "ClusterIP"
LOAD_BALANCER = "LoadBalancer"
EXTERNAL_IP = "ExternalIP"
KINDS = (CLUSTER_IP, LOAD_BALANCER, EXTERNAL_IP)


class Frontend(msgspec.Struct, frozen=True):
    """An address, port and protocol of a Service, as a client dials it."""

    address: IPAddress
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        return f"{_written(self.address, self.port)}/{self.protocol.name}"


class Backend(msgspec.Struct, frozen=True):
    """An address and port behind a frontend, of the frontend's IP version and protocol."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return _written(self.address, self.port)


class FrontendState(msgspec.Struct, frozen=True):
    """What a frontend leads to: the Service («namespace/name») and the name of its port; `kind` is one of KINDS.

    `backends` are sorted by number (address, then port), so that the order of two of them never depends on others.
    Without any, connections are refused. `affinity_seconds`: how long a client stays with its backend, 0: not at all.
    """

    service: str
    port_name: str
    kind: str
    backends: tuple[Backend, ...]
    affinity_seconds: int = 0


class Claim(msgspec.Struct, frozen=True):
    """What a Service wants a frontend to be. `created` is the Service's, empty where it is not known."""

    state: FrontendState
    created: str = ""

    @property
    def rank(self) -> tuple[int, bool, str, str]:
        """The least has the frontend: by kind, then by age (unknown is younger), then by name."""
        return KINDS.index(self.state.kind), not self.created, self.created, self.state.service


class Loser(msgspec.Struct, frozen=True):
    """A Service that wants a frontend that another one has."""

    service: str
    port_name: str
    kind: str


def _written(address: IPAddress, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def frontend_order(frontend: Frontend) -> tuple[int, int, int, int]:
    """Sort key: by IP version, address, port, protocol."""
    return frontend.address.version, int(frontend.address), frontend.port, frontend.protocol


def backend_order(backend: Backend) -> tuple[int, int, int]:
    """Sort key: by IP version, address, port."""
    return backend.address.version, int(backend.address), backend.port
