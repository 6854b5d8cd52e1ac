"""When an endpoint goes, its connections, the proxy's for it and its splices go with it."""

from __future__ import annotations

import time

from spliceway.bpf import diag, views
from spliceway.bpf.maps import Maps
from spliceway.bpf.types import LocalEndpoint

#: The resets of an endpoint that goes have to reach it within this.
_RESETS_SECONDS = 0.25


def end_connections(maps: Maps, endpoint: LocalEndpoint) -> None:
    """End them, in the node's network namespace. Blocks."""
    own = set(endpoint.addresses)
    of_it = [one for one in diag.tcp_sockets() if one.local in own or one.remote in own]
    # Those with the endpoint first: a proxy whose other end has gone would send a FIN, which no pod has to heed.
    of_it.sort(key=lambda one: one.remote not in own)
    ended = [one for one in of_it if diag.destroy_this(one)]
    views.forget_connections(maps, own)
    # The resets are on their way, and only a known endpoint gets them.
    deadline = time.monotonic() + _RESETS_SECONDS
    while ended and views.has_socks(maps, own) and time.monotonic() < deadline:
        time.sleep(_RESETS_SECONDS / 50)
