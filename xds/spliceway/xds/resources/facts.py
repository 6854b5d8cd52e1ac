"""What a resource has to do with others: its own name, the resources that it names, the addresses it listens on. Pure.

Found by walking over the whole message, whatever it is made of; policy's own resources are read in `shape` instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET
from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.protofiles import NAME_FIELDS
from spliceway.xds.resources.walking import joined, walk

#: What people call a resource of each type.
NOUNS = {
    CLUSTER: "cluster",
    ENDPOINT: "endpoints",
    SECRET: "secret",
    LISTENER: "listener",
    ROUTE: "route configuration",
    EXTENSION: "extension",
}


class Want(NamedTuple):
    """A resource that another one names at a path. `traffic`: a cluster that requests or connections go to."""

    url: str
    name: str
    at: str
    traffic: bool = True


class Address(NamedTuple):
    """Where a listener listens: «TCP» or «UDP», an IP address (in its shortest form), a port; or «pipe», a path, 0."""

    protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.protocol == "pipe" else f"{self.host} port {self.port}"


class Facts(NamedTuple):
    """What is known of one resource; `name` is what it calls itself."""

    name: str
    wants: tuple[Want, ...] = ()
    addresses: tuple[Address, ...] = ()


# What was read once is kept by content: a change is of a few resources among thousands.
@lru_cache(maxsize=16_384)
def facts_of(url: str, name: str, body: bytes) -> Facts:
    """Facts of a resource of that type URL that is stored under `name`.

    Raises:
        InconsistentSnapshotError: the bytes are not of that type.
    """
    kind = message_class(url.removeprefix(PREFIX))
    assert kind is not None
    try:
        message = kind.FromString(body)
        wants = tuple(wants_of(message))
    except DecodeError:
        raise InconsistentSnapshotError(f"{NOUNS[url]} {name!r}: is not a {kind.DESCRIPTOR.full_name}") from None
    addresses = addresses_of(message) if isinstance(message, listener_pb2.Listener) else ()
    return Facts(str(getattr(message, NAME_FIELDS[url])), wants, tuple(addresses))


def wants_of(message: Message, at: str = "") -> Iterator[Want]:
    """The resources that a message names, in the order of its fields.

    What comes from other servers or from files isn't among them, nor what is chosen while a request runs.
    """
    for path, part in walk(message, at):
        descriptor: Any = part.DESCRIPTOR
        if reader := _READERS.get(descriptor.full_name):
            yield from reader(part, path)
        for field in _cluster_fields(descriptor):
            value = getattr(part, field.name)
            for name in value if field.is_repeated else (value,):
                if name:
                    yield Want(CLUSTER, name, joined(path, field.name), descriptor.name in _TRAFFIC)


def addresses_of(listener: listener_pb2.Listener) -> Iterator[Address]:
    """The addresses that a listener binds; one for the inside of the proxy has none."""
    if listener.HasField("bind_to_port") and not listener.bind_to_port.value:
        return
    for address in (listener.address, *(each.address for each in listener.additional_addresses)):
        if address.HasField("pipe"):
            yield Address("pipe", address.pipe.path, 0)
        elif address.HasField("socket_address"):
            socket = address.socket_address
            yield Address("UDP" if socket.protocol else "TCP", _shortest(socket.address), socket.port_value)


def is_from_here(source: Any) -> bool:
    """Whether a ConfigSource means the server that the resource itself came from."""
    return source.WhichOneof("config_source_specifier") in ("ads", "self")


def _shortest(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


#: Fields with the name of a cluster, by their names alone: nothing else is called so (a test lists them all).
_CLUSTER_FIELDS = frozenset(
    (
        *("cluster", "cluster_name", "cluster_names", "clusters", "collector_cluster"),
        *("default_cluster", "override_upstream_cluster"),
    )
)
#: Messages whose fields of that name are something else.
_OTHER = frozenset(("ClusterLoadAssignment", "ClusterStats", "Node"))
#: Messages that send requests or connections to the clusters they name; others ask a service (authorization, logs).
_TRAFFIC = frozenset(
    (
        *("RouteAction", "RequestMirrorPolicy", "ClusterWeight", "Route"),
        *("ClusterConfig", "ClusterAction", "LuaConfig", "TcpProxy", "UdpProxyConfig"),
    )
)


@lru_cache(maxsize=4096)
def _cluster_fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    if descriptor.name in _OTHER:
        return ()
    names = _CLUSTER_FIELDS | {"name"} if descriptor.name == "ClusterWeight" else _CLUSTER_FIELDS
    return tuple(
        field for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING and field.name in names
    )


def _cluster(cluster: Any, at: str) -> Iterator[Want]:
    is_eds = cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type == cluster_pb2.Cluster.EDS
    if is_eds and is_from_here(cluster.eds_cluster_config.eds_config):
        name = cluster.eds_cluster_config.service_name or cluster.name
        yield Want(ENDPOINT, name, joined(at, "eds_cluster_config"))


def _rds(rds: Any, at: str) -> Iterator[Want]:
    if is_from_here(rds.config_source):
        yield Want(ROUTE, rds.route_config_name, joined(at, "route_config_name"))


def _secret(config: Any, at: str) -> Iterator[Want]:
    if is_from_here(config.sds_config):
        yield Want(SECRET, config.name, joined(at, "name"))


def _filter(item: Any, at: str) -> Iterator[Want]:
    if item.HasField("config_discovery") and is_from_here(item.config_discovery.config_source):
        yield Want(EXTENSION, item.name, joined(at, "name"))


_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3"
_READERS: dict[str, Callable[[Any, str], Iterator[Want]]] = {
    "envoy.config.cluster.v3.Cluster": _cluster,
    f"{_MANAGER}.Rds": _rds,
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": _secret,
    f"{_MANAGER}.HttpFilter": _filter,
    "envoy.config.listener.v3.Filter": _filter,
    "envoy.config.listener.v3.ListenerFilter": _filter,
}
