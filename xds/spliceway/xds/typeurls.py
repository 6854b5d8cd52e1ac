"""The resource types that are served, in the order in which a change is sent.

Source: Envoy's xDS protocol page, «Eventual consistency considerations»: CDS, EDS, LDS, RDS when adding (make), the
reverse when removing (break).
"""

from __future__ import annotations

import msgspec

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


class TypeInfo(msgspec.Struct, frozen=True):
    """How one type behaves in the state-of-the-world protocol.

    `full_set`: a response carries every subscribed resource and what it leaves out is deleted; an empty resource name
    list means all of them (wildcard). Otherwise a response may be partial, and empty means nothing.
    `one_each`: one changed resource in a response, because a NACK of one also holds back the good one beside it (seen
    with RDS in Envoy 1.40); new ones may come together, and one by one after a NACK. `referenced`: other types name
    these, so what goes away goes last.
    """

    url: str
    short: str
    full_set: bool
    one_each: bool
    referenced: bool


#: Every served type, in sending order.
TYPES: dict[str, TypeInfo] = {
    info.url: info
    for info in (
        TypeInfo(CLUSTER, "CDS", full_set=True, one_each=False, referenced=True),
        TypeInfo(ENDPOINT, "EDS", full_set=False, one_each=False, referenced=False),
        TypeInfo(LISTENER, "LDS", full_set=True, one_each=False, referenced=False),
        TypeInfo(ROUTE, "RDS", full_set=False, one_each=True, referenced=False),
    )
}
