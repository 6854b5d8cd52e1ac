"""The resource types that are served, in the order in which a change is sent.

Source: Envoy's xDS protocol page, «Eventual consistency considerations»: CDS, EDS, LDS, RDS when adding (make), the
reverse when removing (break). SDS and ECDS are only asked for by resources that a client has already, so that their
place is free: certificates come before listeners, extensions last.
"""

from __future__ import annotations

import msgspec

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
EXTENSION = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"


class TypeInfo(msgspec.Struct, frozen=True):
    """How one type behaves on the wire.

    `full_set`: a state-of-the-world response carries every subscribed resource and what it leaves out is deleted; an
    empty list of names in the first request means all of them (wildcard). Otherwise a response may be partial, and
    empty means nothing.
    `one_each`: one changed resource in a response, because a NACK of one also holds back the good one beside it (seen
    with RDS in Envoy 1.40); new ones may come together, and one by one after a NACK. `referenced`: other types name
    these, so what goes away goes after what named it. `service`: the gRPC service that serves this type alone, and its
    methods for the state of the world and for deltas.
    """

    url: str
    short: str
    full_set: bool
    one_each: bool
    referenced: bool
    service: str
    sotw_method: str
    delta_method: str


def _type(
    url: str, short: str, folder: str, what: str, *, full_set: bool = False, one_each: bool = False, plural: str = ""
) -> TypeInfo:
    plural = plural or f"{what}s"
    return TypeInfo(
        url,
        short,
        full_set,
        one_each,
        referenced=url in (CLUSTER, ENDPOINT),
        service=f"envoy.service.{folder}.v3.{what}DiscoveryService",
        sotw_method=f"Stream{plural}",
        delta_method=f"Delta{plural}",
    )


#: Every served type, in sending order.
TYPES: dict[str, TypeInfo] = {
    info.url: info
    for info in (
        _type(CLUSTER, "CDS", "cluster", "Cluster", full_set=True),
        _type(ENDPOINT, "EDS", "endpoint", "Endpoint"),
        _type(SECRET, "SDS", "secret", "Secret"),
        _type(LISTENER, "LDS", "listener", "Listener", full_set=True),
        _type(ROUTE, "RDS", "route", "Route", one_each=True),
        _type(EXTENSION, "ECDS", "extension", "ExtensionConfig"),
    )
}

#: Short name -> type URL.
URLS: dict[str, str] = {info.short: url for url, info in TYPES.items()}
