"""Between the machine's values and the messages of the wire."""

from __future__ import annotations

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
    message = discovery_pb2.DiscoveryResponse(
        version_info=response.version,
        type_url=url,
        nonce=response.nonce,
        resources=[
            Any(type_url=_WRAPPER, value=_wrapped(url, resource, response).SerializeToString())
            if ttl and (resource.ttl is not None or response.heartbeat)
            else Any(type_url=url, value=resource.body)
            for resource in response.resources
        ],
        control_plane={"identifier": identifier},
    )
    return bytes(message.SerializeToString())


def delta_message_of(response: Response, identifier: str, *, ttl: bool = False) -> bytes:
    """A response of the incremental variant, serialized. A resource's version there is its digest."""
    message = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=response.version,
        type_url=response.type_url,
        nonce=response.nonce,
        removed_resources=response.removed,
        control_plane={"identifier": identifier},
    )
    for resource in response.resources:
        made = message.resources.add(name=resource.name, version=resource.digest)
        if not response.heartbeat:
            made.resource.type_url = response.type_url
            made.resource.value = resource.body
        if ttl and resource.ttl is not None:
            made.ttl.CopyFrom(_duration(resource.ttl))
    return bytes(message.SerializeToString())


def client_of(node: base_pb2.Node) -> Client:
    """What a client says of itself."""
    build = node.user_agent_build_version.version
    version = f"{build.major_number}.{build.minor_number}.{build.patch}" if build.major_number else ""
    warning = ""
    if node.user_agent_name == "envoy" and version:
        warning = unsafe((build.major_number, build.minor_number, build.patch)) or ""
    return Client(
        node=node.id,
        cluster=node.cluster,
        agent=node.user_agent_name,
        version=version,
        features=tuple(node.client_features),
        warning=warning,
    )


def can_forget(client: Client, *, delta: bool) -> bool:
    """Whether resources with a time to live may be sent as such to this client."""
    return _TTL in client.features and (delta or not _UNWRAPS.isdisjoint(client.features))


def _wrapped(url: str, resource: Resource, response: Response) -> discovery_pb2.Resource:
    made = discovery_pb2.Resource(name=resource.name, version=response.version)
    if not response.heartbeat:
        made.resource.type_url = url
        made.resource.value = resource.body
    if resource.ttl is not None:
        made.ttl.CopyFrom(_duration(resource.ttl))
    return made


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made
