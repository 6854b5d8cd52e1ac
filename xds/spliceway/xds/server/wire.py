"""Between the machine's values and the messages of the wire."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any

from spliceway.xds.debug.status import Client
from spliceway.xds.protocol.subscription import Request, Response


def request_of(message: discovery_pb2.DiscoveryRequest) -> Request:
    """A DiscoveryRequest as a value. `error_detail` alone makes a NACK, even with an empty message."""
    return Request(
        type_url=message.type_url,
        names=tuple(message.resource_names),
        version=message.version_info,
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def message_of(response: Response, identifier: str) -> discovery_pb2.DiscoveryResponse:
    """A response as the message to be sent; `identifier` says who is speaking."""
    return discovery_pb2.DiscoveryResponse(
        version_info=response.version,
        type_url=response.type_url,
        nonce=response.nonce,
        resources=[Any(type_url=response.type_url, value=resource.body) for resource in response.resources],
        control_plane={"identifier": identifier},
    )


def client_of(node: base_pb2.Node) -> Client:
    """What a client says of itself."""
    build = node.user_agent_build_version.version
    version = f"{build.major_number}.{build.minor_number}.{build.patch}" if build.major_number else ""
    return Client(node=node.id, cluster=node.cluster, agent=node.user_agent_name, version=version)
