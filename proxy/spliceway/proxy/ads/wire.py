"""Between values and the messages of the wire."""

from __future__ import annotations

import re
from importlib.metadata import version

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.proxy.ads.values import Request, ResourceValue, Response
from spliceway.proxy.model import ProxySettings

USER_AGENT = "spliceway-proxy"


def node_of(settings: ProxySettings) -> base_pb2.Node:
    """What the proxy says of itself. It announces no features: it forgets nothing by itself, and needs no wrapping."""
    node = base_pb2.Node(id=settings.node_id, cluster=settings.cluster, user_agent_name=USER_AGENT)
    numbers = [int(part) for part in re.findall(r"\d+", version("spliceway"))[:3]]
    number = node.user_agent_build_version.version
    number.major_number, number.minor_number, number.patch = (*numbers, 0, 0, 0)[:3]
    return node


def request_message(request: Request, node: base_pb2.Node | None = None) -> discovery_pb2.DeltaDiscoveryRequest:
    """A request; the node goes with the first one of a stream."""
    return discovery_pb2.DeltaDiscoveryRequest(
        node=node,
        type_url=request.type_url,
        resource_names_subscribe=request.subscribe,
        resource_names_unsubscribe=request.unsubscribe,
        initial_resource_versions=request.initial,
        response_nonce=request.nonce,
        error_detail={"code": _INTERNAL, "message": request.error} if request.error is not None else None,
    )


def response_of(message: discovery_pb2.DeltaDiscoveryResponse) -> Response:
    """A response. Of a name that is there twice the last counts."""
    url = message.type_url
    resources: dict[str, ResourceValue] = {}
    unusable: dict[str, str] = {}
    for item in message.resources:
        resources.pop(item.name, None)
        unusable.pop(item.name, None)
        if not item.name:
            unusable[item.name] = "a resource without a name"
        elif not item.HasField("resource"):
            unusable[item.name] = "has no content"
        elif item.resource.type_url != url:
            unusable[item.name] = f"is of type {item.resource.type_url}"
        else:
            resources[item.name] = ResourceValue(item.version, item.resource.value)
    return Response(url, message.nonce, resources, unusable, tuple(message.removed_resources))


#: google.rpc.Code of a NACK, as Envoy has it.
_INTERNAL = 13
