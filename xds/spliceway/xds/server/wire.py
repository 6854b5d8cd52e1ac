"""Between the machine's values and the messages of the wire."""

from __future__ import annotations

from functools import lru_cache

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

from spliceway.xds.debug.status import Client
from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.protocol.ledger import Response
from spliceway.xds.protocol.snapshot import Resource
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.versions import unsafe

#: The features that a client announces when it can forget resources by itself, and, in the state of the world, unwrap
#: them (two spellings: the protocol page's and that of Envoy's list of client features).
_TTL = "xds.config.supports-resource-ttl"
_UNWRAPS = {"xds.config.supports-resource-in-sotw", "xds.config.resource-in-sotw"}
#: So many characters of a name, and so many features, are kept of what a client says of itself.
_SHOWN = 100
_WRAPPER = "type.googleapis.com/envoy.service.discovery.v3.Resource"


def request_of(message: discovery_pb2.DiscoveryRequest, default_url: str = "") -> Request:
    """A DiscoveryRequest as a value. `error_detail` alone makes a NACK, even with an empty message."""
    return Request(
        type_url=message.type_url or default_url,
        names=tuple(message.resource_names),
        version=message.version_info,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def delta_request_of(message: discovery_pb2.DeltaDiscoveryRequest, default_url: str = "") -> DeltaRequest:
    """A DeltaDiscoveryRequest as a value."""
    return DeltaRequest(
        type_url=message.type_url or default_url,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial=dict(message.initial_resource_versions),
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def message_of(response: Response, identifier: str, *, ttl: bool = False) -> bytes:
    """A response of the state of the world, serialized; `identifier` says who is speaking.

    `ttl`: the client can forget resources by itself, so that those which have a time to live come wrapped.
    """
    url = response.type_url
    head = discovery_pb2.DiscoveryResponse(
        version_info=response.version, type_url=url, nonce=response.nonce, control_plane={"identifier": identifier}
    )
    parts = [head.SerializeToString()]
    for resource in response.resources:
        if ttl and (resource.ttl is not None or response.bare):
            wrapped = _wrapped(url, resource, response.version, empty=response.bare).SerializeToString()
            parts += (_any_field(_WRAPPER, len(wrapped)), wrapped)
        else:
            parts += (_any_field(url, len(resource.body)), resource.body)
    return b"".join(parts)


def delta_message_of(response: Response, identifier: str, *, ttl: bool = False) -> bytes:
    """A response of the incremental variant, serialized. A resource's version there is its digest."""
    url = response.type_url
    head = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=response.version,
        type_url=url,
        nonce=response.nonce,
        removed_resources=response.removed,
        control_plane={"identifier": identifier},
    )
    parts = [head.SerializeToString()]
    for resource in response.resources:
        if response.bare or (ttl and resource.ttl is not None):
            wrapped = _wrapped(url, resource, resource.digest, empty=response.bare).SerializeToString()
            parts += (_field(_RESOURCES, len(wrapped)), wrapped)
        else:
            parts += (_resource_field(url, resource.name, resource.digest, len(resource.body)), resource.body)
    return b"".join(parts)


def client_of(node: base_pb2.Node) -> Client:
    """What a client says of itself, cut to what is of use (node id and cluster are as they came)."""
    build = node.user_agent_build_version.version
    numbers = (build.major_number, build.minor_number, build.patch)
    version = ".".join(map(str, numbers)) if any(numbers) else ""
    warning = ""
    if node.user_agent_name == "envoy" and version:
        warning = unsafe(numbers) or ""
    return Client(
        node=node.id,
        cluster=node.cluster,
        agent=node.user_agent_name[:_SHOWN],
        version=version,
        features=tuple(feature[:_SHOWN] for feature in node.client_features[:_SHOWN]),
        warning=warning,
    )


def can_forget(client: Client, *, delta: bool) -> bool:
    """Whether resources with a time to live may be sent as such to this client."""
    return _TTL in client.features and (delta or not _UNWRAPS.isdisjoint(client.features))


def _wrapped(url: str, resource: Resource, version: str, *, empty: bool) -> discovery_pb2.Resource:
    made = discovery_pb2.Resource(name=resource.name, version=version)
    if not empty:
        made.resource.type_url = url
        made.resource.value = resource.body
    if resource.ttl is not None:
        made.ttl.CopyFrom(_duration(resource.ttl))
    return made


# A resource is serialized once, however many clients get it: in a response it is its own bytes behind a few others,
# which say how long it is. Source: Protocol Buffers, «Encoding»; fields of a message may be put together as bytes.

#: Numbers of the fields `resources` of both responses, and of `resource` and `value` where the bytes come last.
_RESOURCES, _RESOURCE, _VALUE = 2, 2, 2


@lru_cache(maxsize=65536)
def _any_field(url: str, size: int) -> bytes:
    """What stands before the `size` bytes of a message in an Any in `resources`."""
    inner = Any(type_url=url).SerializeToString() + _field(_VALUE, size)
    return bytes(_field(_RESOURCES, len(inner) + size) + inner)


@lru_cache(maxsize=65536)
def _resource_field(url: str, name: str, version: str, size: int) -> bytes:
    """The same for a message in an Any in a Resource."""
    value = Any(type_url=url).SerializeToString() + _field(_VALUE, size)
    inner = discovery_pb2.Resource(name=name, version=version).SerializeToString()
    inner += _field(_RESOURCE, len(value) + size) + value
    return bytes(_field(_RESOURCES, len(inner) + size) + inner)


def _field(number: int, size: int) -> bytes:
    """Key and length of a field with a length, for numbers below 16."""
    made = bytearray([number << 3 | 2])
    while size > 0x7F:
        made.append(size & 0x7F | 0x80)
        size >>= 7
    made.append(size)
    return bytes(made)


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made
