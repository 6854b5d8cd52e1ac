"""Client status discovery (CSDS, envoy.service.status.v3): what each client has, for grpcdebug and Envoy's own tools.

`client_config` is pure: values in, a ClientConfig out. `handlers` makes the gRPC service of it, for
`XdsServer.add_services`. A control plane fills in `config_status`, and `client_status` as far as it can know: what a
client has acknowledged, refused, or asked for in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.service.status.v3 import csds_pb2

from spliceway.xds.debug.nodematch import Match, MatcherError, node_match
from spliceway.xds.debug.nodeview import NodeView, client_state, failure, nodes_of, shown_any, timestamp
from spliceway.xds.debug.status import Client, ResourceStatus, TypeStatus
from spliceway.xds.debug.view import DebugView
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.server.listen import TcpSettings, require_local

_SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"
#: State of a resource -> status of the configuration, as istioctl shows it.
_CONFIG = {
    "SYNCED": csds_pb2.SYNCED,
    "STALE": csds_pb2.STALE,
    "NOT SENT": csds_pb2.NOT_SENT,
    "NACK": csds_pb2.ERROR,
}
_CLIENT = config_dump_shared_pb2.ClientResourceStatus


def client_config(node: NodeView, *, contents: bool = True) -> csds_pb2.ClientConfig:
    """Status of every resource that the node has, shall have or has asked for. Without `contents` only the status."""
    config = csds_pb2.ClientConfig(node=node_message(node.client))
    for info in TYPES.values():
        status = node.types.get(info.short)
        if status is None:
            continue
        for resource in status.resources:
            config.generic_xds_configs.append(_known(node, status, resource, contents=contents))
        for name in sorted(set(status.names) - {resource.name for resource in status.resources} - {"*"}):
            config.generic_xds_configs.append(
                csds_pb2.ClientConfig.GenericXdsConfig(
                    type_url=info.url,
                    name=name,
                    config_status=csds_pb2.NOT_SENT,
                    client_status=_CLIENT.DOES_NOT_EXIST if info.short in node.tells else _CLIENT.REQUESTED,
                )
            )
    return config


def node_message(client: Client) -> dict[str, Any]:
    """What a client said of itself, as fields of envoy.config.core.v3.Node."""
    node: dict[str, Any] = {"id": client.node, "cluster": client.cluster, "client_features": client.features}
    if client.agent:
        node["user_agent_name"] = client.agent
    numbers = client.version.split(".")
    if len(numbers) == 3 and all(number.isdigit() for number in numbers):
        names = ("major_number", "minor_number", "patch")
        node["user_agent_build_version"] = {"version": dict(zip(names, map(int, numbers), strict=True))}
    return node


def handlers(view: DebugView, tcp: TcpSettings | None) -> Iterable[grpc.GenericRpcHandler[Any, Any]]:
    """The service, for `XdsServer.add_services`. `tcp` as the server has it; who may ask sees every node."""

    async def answer(request: Any, context: Any) -> csds_pb2.ClientStatusResponse:
        await require_local(context, tcp)
        try:
            meant = node_match(request.node_matchers)
        except MatcherError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort has raised") from error
        return await _respond(view, meant, contents=not request.exclude_resource_contents)

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[csds_pb2.ClientStatusResponse]:
        async for request in requests:
            yield await answer(request, context)

    codec = {
        "request_deserializer": csds_pb2.ClientStatusRequest.FromString,
        "response_serializer": csds_pb2.ClientStatusResponse.SerializeToString,
    }
    methods: dict[str, Any] = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(answer, **codec),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(stream, **codec),
    }
    return (grpc.method_handlers_generic_handler(_SERVICE, methods),)


async def _respond(view: DebugView, meant: Match, *, contents: bool) -> csds_pb2.ClientStatusResponse:
    response = csds_pb2.ClientStatusResponse()
    for node, (client, streams) in sorted(nodes_of(view.status(resources=False)).items()):
        if meant(node):
            # One after another, so that the streams are served in between.
            make = partial(client_config, NodeView(view, client, streams), contents=contents)
            response.config.append(await asyncio.to_thread(make))
    return response


def _known(node: NodeView, status: TypeStatus, resource: ResourceStatus, *, contents: bool) -> Any:
    acked = node.acked.get(status.type_url, {}).get(resource.name)
    config = csds_pb2.ClientConfig.GenericXdsConfig(
        type_url=status.type_url,
        name=resource.name,
        version_info=resource.acked,
        config_status=_CONFIG[resource.state],
        client_status=client_state(resource),
    )
    if resource.state == "NACK":
        config.error_state.CopyFrom(
            config_dump_shared_pb2.UpdateFailureState(**failure(node, status, resource, contents=contents))
        )
    if resource.acked and status.acked_at is not None:
        config.last_updated.CopyFrom(timestamp(status.acked_at))
    if contents and acked is not None and acked.resource is not None:
        config.xds_config.CopyFrom(shown_any(status.type_url, acked, node.secrets))
    return config
