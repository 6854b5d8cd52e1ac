"""What the client of the agent is made of: resources, changes, requests and responses as values."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


class ResourceValue(msgspec.Struct, frozen=True):
    """One resource: its version (for our agent a digest of its content) and its serialized message."""

    version: str
    body: bytes

    def __repr__(self) -> str:
        # The body may hold values of Secrets.
        return f"ResourceValue({self.version!r}, {len(self.body)} bytes)"


#: Type URL -> name -> resource.
Resources = dict[str, dict[str, ResourceValue]]


class Batch(msgspec.Struct, frozen=True):
    """What one response changes of one type: names never stand in both, and nothing in it is as it was before."""

    type_url: str
    changed: dict[str, ResourceValue]
    removed: tuple[str, ...] = ()


class Response(msgspec.Struct, frozen=True):
    """A DeltaDiscoveryResponse.

    `resources`: the last of each name. `unusable`: name -> why it is none, of those whose content is missing or of
    another type.
    """

    type_url: str
    nonce: str
    resources: Mapping[str, ResourceValue] = {}
    unusable: Mapping[str, str] = {}
    removed: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True):
    """A DeltaDiscoveryRequest without its node. `initial`: name -> version. `error`: the message of a NACK."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: Mapping[str, str] = {}
    nonce: str = ""
    error: str | None = None
