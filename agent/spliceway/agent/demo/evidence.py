"""What the agent says of one request: the flows of exactly its addresses and ports, and its sockets. Pure.

Flows and sockets are decoded JSON of the admin API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

Json = dict[str, Any]

KERNEL = "kernel"
PROXY = "proxy"
SPLICED = "proxy + splice"


class Tuple(msgspec.Struct, frozen=True):
    """A connection as its client sees it; `protocol` is TCP or UDP."""

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int


class Evidence(msgspec.Struct, frozen=True):
    """What decided a request. `data_path` is KERNEL, PROXY, SPLICED, or empty; `why`: what keeps it from SPLICED.

    `nearest_miss`: what the closest HTTP rule of a denied request lacked.
    """

    verdict: str = ""
    reason: str = ""
    rule: str = ""
    data_path: str = ""
    why: str = ""
    nearest_miss: str = ""


def decided(request: Tuple, flows: Iterable[Json]) -> Json | None:
    """The flow that decided a request, None as long as there is none.

    The proxy's verdict on the request is the last word; a steered connection without one is not decided yet. Else a
    denial, wherever in the kernel it was made; else the first verdict, which is the client's own node's.
    """
    own = [flow for flow in flows if _is_of(flow, request)]
    http = [flow for flow in own if flow["hook"] == "proxy"]
    if http:
        return http[0]
    denials = [flow for flow in own if flow["verdict"] == "deny"]
    if denials:
        return denials[0]
    if any(flow["verdict"] == "redirect" for flow in own):
        return None
    return own[0] if own else None


def gather(request: Tuple, flows: Sequence[Json], socks: Sequence[Json]) -> Evidence:
    """Verdict, reason, rule and data path of a request. Everything is empty when the agent has no flow of it."""
    flow = decided(request, flows)
    if flow is None:
        return Evidence()
    data_path, why = (KERNEL, "") if flow["hook"] != "proxy" else _proxied(request, socks, passed=_passed(flow))
    return Evidence(flow["verdict"], flow["reason"], flow["rule"], data_path, why, flow["nearestMiss"])


def _proxied(request: Tuple, socks: Sequence[Json], *, passed: bool) -> tuple[str, str]:
    """Spliced when the client's leg is and, for a request that passed, the server's too."""
    down = [
        sock
        for sock in socks
        if sock["leg"] == "downstream"
        and (_same(sock["endpoint"], request.source) and sock["endpointPort"] == request.source_port)
        and (_same(sock["peer"], request.destination) and sock["peerPort"] == request.destination_port)
    ]
    # The proxy dials from the client's address and a port of its own choice, which no flow names.
    up = [
        sock
        for sock in socks
        if sock["leg"] == "upstream"
        and (_same(sock["endpoint"], request.destination) and sock["endpointPort"] == request.destination_port)
        and _same(sock["peer"], request.source)
    ]
    for leg, found in (("client's leg", down), *([("server's leg", up)] if passed else [])):
        if not found:
            return PROXY, f"{leg}: no such socket"
        for sock in found:
            if sock["state"] != "spliced":
                return PROXY, f"{leg}: {sock['state']} {sock['why']}".strip()
    return SPLICED, ""


def _passed(flow: Json) -> bool:
    return bool(flow["verdict"] == "allow")


def _is_of(flow: Json, request: Tuple) -> bool:
    protocol = "TCP" if flow["hook"] == "proxy" else flow["protocol"]
    return (
        not flow["reply"]
        and flow["leg"] != "upstream"
        and protocol == request.protocol
        and flow["source"]["port"] == request.source_port
        and flow["destination"]["port"] == request.destination_port
        and _same(flow["source"]["address"], request.source)
        and _same(flow["destination"]["address"], request.destination)
    )


def _same(one: str, other: str) -> bool:
    return ip_address(one) == ip_address(other)
