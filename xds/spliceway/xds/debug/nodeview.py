"""What is known of one node, gathered as values, and its parts in the words of envoy.admin.v3. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.admin.v3 import config_dump_shared_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from spliceway.xds.debug.redact import Hider, decoded, redact
from spliceway.xds.debug.status import Client, ClientStatus, Held, ResourceStatus, TypeStatus
from spliceway.xds.debug.view import DebugView, Secrets
from spliceway.xds.protocol.typeurls import TYPES

_CLIENT = config_dump_shared_pb2.ClientResourceStatus

#: Type URL -> name -> resource.
Resources = Mapping[str, Mapping[str, Held]]


class NodeView:
    """All that is known of one node, as values that are good in another thread."""

    def __init__(self, view: DebugView, client: Client, service: Mapping[str, ClientStatus]) -> None:
        """`service`: short type -> the stream that serves it."""
        self.client = client
        self.types = view.current(client.node)
        #: Short type -> name -> status.
        self.resources = {short: {item.name: item for item in status.resources} for short, status in self.types.items()}
        self.sent: Resources = view.held(client.node, "sent")
        self.acked: Resources = view.held(client.node, "acked")
        self.secrets: Secrets = view.secrets(client.node)
        #: Types of which the client has been told that a name doesn't exist: its variant can say so.
        self.tells = frozenset(
            short
            for short, status in self.types.items()
            if status.sent_nonce
            and short in service
            and (service[short].protocol == "delta" or TYPES[status.type_url].full_set)
        )

    def __repr__(self) -> str:
        return f"<NodeView {self.client.node}>"


def nodes_of(status: Iterable[ClientStatus]) -> dict[str, tuple[Client, dict[str, ClientStatus]]]:
    """Node id -> its newest client, and short type -> the newest of its streams that has asked for the type."""
    found: dict[str, tuple[Client, dict[str, ClientStatus]]] = {}
    for client in status:
        _, streams = found.get(client.client.node, (client.client, {}))
        found[client.client.node] = (client.client, streams | {item.type: client for item in client.types})
    return found


def failure(node: NodeView, status: TypeStatus, resource: ResourceStatus, *, contents: bool) -> dict[str, Any]:
    """Fields of envoy.admin.v3.UpdateFailureState of a refused resource."""
    sent = node.sent.get(status.type_url, {}).get(resource.name)
    failed: dict[str, Any] = {"details": resource.error, "version_info": sent.version if sent else resource.version}
    if status.acked_at is not None:
        failed["last_update_attempt"] = timestamp(status.acked_at)
    if contents and sent is not None and sent.resource is not None:
        failed["failed_configuration"] = shown_any(status.type_url, sent, node.secrets)
    return failed


def shown_any(url: str, held: Held, secrets: Secrets, *, stand_in: bool = False) -> AnyMessage:
    """A resource in an Any, redacted (see `redact`); empty when it can't be read."""
    message = decoded(url, held.resource.body) if held.resource else None
    if held.resource is None or message is None:
        return AnyMessage(type_url=url)
    redact(message, Hider(held.resource.secrets | secrets.get(held.name, frozenset())), stand_in=stand_in)
    return AnyMessage(type_url=url, value=message.SerializeToString(deterministic=True))


def client_state(resource: ResourceStatus) -> int:
    """The envoy.admin.v3.ClientResourceStatus, as far as it can be known here."""
    if resource.state == "NACK":
        return int(_CLIENT.NACKED)
    return int(_CLIENT.ACKED if resource.acked else _CLIENT.REQUESTED)


def timestamp(seconds: float) -> Timestamp:
    """CLOCK_REALTIME in seconds as a Timestamp."""
    result = Timestamp()
    result.FromMicroseconds(round(seconds * 1e6))
    return result
