"""What the user's own listeners and clusters must not say, because policy would not hold any more. Pure.

The kernel trusts the proxy's sockets (ARCHITECTURE.md): one on a port of the rule sets' range counts as a rule set's
listener, and what comes from one with a pod's address counts as that pod's, judged by its rules. So the extra ones have
other ports and never another's address. And nobody may be led to the agent's own cluster or sockets through them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf.message import DecodeError, Message

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.typeurls import CLUSTER
from spliceway.xds.resources.facts import NOUNS, Facts, facts_of, wants_of
from spliceway.xds.resources.messagetypes import PREFIX, message_class
from spliceway.xds.resources.names import CLUSTER_AGENT, CLUSTER_ORIGINAL
from spliceway.xds.resources.walking import joined, walk
from spliceway.xds.resources.warming import WARMING

#: Names of policy's own. `rule-set-` is what `listener_name` begins with.
_OWN_NAMES = frozenset((CLUSTER_AGENT, CLUSTER_ORIGINAL))
_OWN_PREFIX = "rule-set-"
#: The key of filter state by which a connection's cluster is chosen while it runs.
_TCP_CLUSTER = "envoy.tcp_proxy.cluster"
_CHOSEN = "is not allowed: a request could choose a cluster of policy's own"
#: Socket options that say nothing about addresses, marks or routes, by (level, name).
_HARMLESS_OPTIONS = frozenset(
    (level, getattr(socket, f"{prefix}_{name}"))
    for level, prefix, names in (
        (socket.SOL_SOCKET, "SO", "KEEPALIVE RCVBUF SNDBUF LINGER"),
        (socket.IPPROTO_TCP, "TCP", "NODELAY MAXSEG QUICKACK CONGESTION FASTOPEN KEEPIDLE KEEPINTVL KEEPCNT SYNCNT"),
        (socket.IPPROTO_TCP, "TCP", "USER_TIMEOUT DEFER_ACCEPT WINDOW_CLAMP NOTSENT_LOWAT"),
    )
    for name in names.split()
)


class Broken(NamedTuple):
    """What must not be, and where."""

    at: str
    reason: str


@lru_cache(maxsize=1024)
def extra_facts(url: str, name: str, body: bytes) -> Facts:
    """Check one of the user's own resources; what it has to do with others.

    Raises:
        InconsistentSnapshotError: it says what it must not, or its bytes are not of that type.
    """
    kind = message_class(url.removeprefix(PREFIX))
    assert kind is not None
    try:
        broken = next(broken_rules(kind.FromString(body)), None)
    except DecodeError:
        raise InconsistentSnapshotError(f"{NOUNS[url]} {name!r}: is not a {kind.DESCRIPTOR.full_name}") from None
    if broken:
        where = f"{broken.at}: " if broken.at else ""
        raise InconsistentSnapshotError(f"{NOUNS[url]} {name!r}: {where}{broken.reason}")
    return facts_of(url, name, body)


def broken_rules(message: Message, at: str = "") -> Iterator[Broken]:
    """What a resource says that it must not; `at` is the path of the message."""
    name = getattr(message, "name", "")
    if name in _OWN_NAMES or name.startswith(_OWN_PREFIX):
        yield Broken(joined(at, "name"), f"{name} is a name of policy's own")
    for want in wants_of(message, at):
        if want.url == CLUSTER and want.name in _OWN_NAMES:
            yield Broken(want.at, f"{want.name} is a cluster of policy's own")
    for path, part in walk(message, at):
        if rule := _RULES.get(part.DESCRIPTOR.full_name):
            yield from rule(part, path)
        if waits := WARMING.get(part.DESCRIPTOR.full_name):
            yield from (Broken(*found) for found in waits(part, path))
        yield from _sources(part, path)
        yield from _chosen_later(part, path)


def _listener(listener: Any, at: str) -> Iterator[Broken]:
    for field in ("transparent", "freebind"):
        if listener.HasField(field) and getattr(listener, field).value:
            yield Broken(joined(at, field), "is not allowed: it would speak with addresses that are not the node's")
    if listener.HasField("use_original_dst") and listener.use_original_dst.value:
        yield Broken(joined(at, "use_original_dst"), "is not allowed: it hands connections to other listeners")
    if listener.HasField("api_listener"):
        yield Broken(joined(at, "api_listener"), "is not allowed: it is for clients, not for a proxy")
    if listener.HasField("internal_listener"):
        return
    if not listener.HasField("address"):
        yield Broken(joined(at, "address"), "is required")
    more = enumerate(each.address for each in listener.additional_addresses)
    numbered = ((f"additional_addresses[{index}].address", address) for index, address in more)
    for path, address in (("address", listener.address), *numbered):
        if address.HasField("socket_address"):
            where = joined(joined(at, path), "socket_address")
            if not address.socket_address.port_value:
                yield Broken(joined(where, "port_value"), "is required: a port from 1 to 65535")


def _cluster(cluster: Any, at: str) -> Iterator[Broken]:
    is_type = cluster.WhichOneof("cluster_discovery_type") == "type"
    if is_type and cluster.type == cluster_pb2.Cluster.ORIGINAL_DST:
        yield Broken(joined(at, "type"), "ORIGINAL_DST is not allowed: clients would say where it connects to")
    if any(kind in cluster.cluster_type.name for kind in ("original_dst", "dynamic_forward_proxy")):
        yield Broken(joined(at, "cluster_type"), "is not allowed: clients would say where it connects to")


def _bind(config: Any, at: str) -> Iterator[Broken]:
    reason = "is not allowed: it could be another's address; the kernel chooses one of the node's"
    if config.freebind.value:
        yield Broken(joined(at, "freebind"), reason)
    if config.HasField("source_address") and not _is_unspecified(config.source_address.address):
        yield Broken(joined(at, "source_address"), reason)
    for field in ("extra_source_addresses", "additional_source_addresses"):
        if getattr(config, field):
            yield Broken(joined(at, field), reason)
    if config.HasField("local_address_selector"):
        yield Broken(joined(at, "local_address_selector"), reason)


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def _option(option: Any, at: str) -> Iterator[Broken]:
    if (option.level, option.name) not in _HARMLESS_OPTIONS:
        reason = (
            f"socket option {option.level}/{option.name} is not allowed: only those of keepalive, buffers and TCP are"
        )
        yield Broken(at, reason)


def _socket_address(address: Any, at: str) -> Iterator[Broken]:
    """Of a listener, or the own end of connections to a cluster."""
    if address.network_namespace_filepath:
        reason = "is not allowed: policy does not know the sockets of other namespaces"
        yield Broken(joined(at, "network_namespace_filepath"), reason)


def _udp_proxy(config: Any, at: str) -> Iterator[Broken]:
    if config.use_original_src_ip:
        reason = "is not allowed: it would speak with addresses that are not the node's"
        yield Broken(joined(at, "use_original_src_ip"), reason)


def _filter_state(value: Any, at: str) -> Iterator[Broken]:
    if value.object_key == _TCP_CLUSTER:
        yield Broken(joined(at, "object_key"), f"{_TCP_CLUSTER} {_CHOSEN.replace('request', 'connection')}")


def _original_source(_: Any, at: str) -> Iterator[Broken]:
    yield Broken(at, "original_src is not allowed: it would speak with addresses that are not the node's")


def _typed_struct(_: Any, at: str) -> Iterator[Broken]:
    yield Broken(at, "a TypedStruct is not allowed: what is in it can't be checked; write the message itself")


#: Rules by the full name of a message, wherever it is.
_RULES: dict[str, Callable[[Any, str], Iterator[Broken]]] = {
    "envoy.config.listener.v3.Listener": _listener,
    "envoy.config.cluster.v3.Cluster": _cluster,
    "envoy.config.core.v3.BindConfig": _bind,
    "envoy.config.core.v3.SocketAddress": _socket_address,
    "envoy.config.core.v3.SocketOption": _option,
    "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue": _filter_state,
    "envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig": _udp_proxy,
    "envoy.extensions.filters.listener.original_src.v3.OriginalSrc": _original_source,
    "envoy.extensions.filters.http.original_src.v3.OriginalSrc": _original_source,
    "xds.type.v3.TypedStruct": _typed_struct,
    "udpa.type.v1.TypedStruct": _typed_struct,
}
#: Fields that may name a source elsewhere: certificates are data; filters and routes that come later can't be checked.
_SOURCES = frozenset(("sds_config", "eds_config"))  # endpoints have a reason of their own, in `warming`


def _sources(part: Message, at: str) -> Iterator[Broken]:
    for field, _ in part.ListFields():
        kind = field.message_type
        if kind is not None and kind.full_name == "envoy.config.core.v3.ConfigSource" and field.name not in _SOURCES:
            yield Broken(
                joined(at, field.name), "is not allowed: what comes from elsewhere can't be checked; write it here"
            )


def _chosen_later(part: Message, at: str) -> Iterator[Broken]:
    """Clusters that are chosen by a header or a plugin: a client could choose the agent's."""
    for field, value in part.ListFields():
        chosen = field.name in ("cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin")
        if chosen and value:
            yield Broken(joined(at, field.name), _CHOSEN)
