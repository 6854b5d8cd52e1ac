"""The latest flows in memory, and which of them somebody wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from spliceway.agent.ring import Ring


class FlowPeer(msgspec.Struct, frozen=True, rename="camel"):
    """One end of a flow. `pod` is «namespace/name», empty for anything that is no pod we know."""

    address: str
    port: int
    identity: int
    pod: str = ""
    labels: tuple[str, ...] = ()


class HttpPart(msgspec.Struct, frozen=True, rename="camel"):
    """The request of an HTTP verdict, as the client sent it. Duration in milliseconds.

    `details`: in the proxy's words, what became of it where that is not an answer of the server.
    """

    method: str
    path: str
    host: str
    status: int
    duration: float
    flags: str = ""
    details: str = ""


class Flow(msgspec.Struct, frozen=True, rename="camel"):
    """One verdict with names. `time` is RFC 3339 in UTC; `hook` is where in the kernel, or `proxy`.

    `verdict` is `audit` where it passed and would be denied if policies in audit were enforced. `rule` is the RuleRef
    as text (of the server's end, where both ends have HTTP rules; `client_rule` is then that of the client's);
    `rule_set` the name of the rule set; `nearest_miss` says what the closest rule of a denied request lacked;
    `mismatches`: headers that a rule's mismatch action changed or noted. `direction`: for default deny, which no rule
    makes, whether it is that of the client's `egress` or of the server's `ingress`; empty where that is not known.
    `services`: those that the server's end is of («namespace/name»), as what was dialled or as a backend of theirs.
    """

    time: str
    hook: str
    verdict: str
    reason: str
    source: FlowPeer
    destination: FlowPeer
    protocol: str
    leg: str
    reply: bool
    rule: str = ""
    rule_set: str = ""
    length: int = 0
    http: HttpPart | None = None
    nearest_miss: str = ""
    client_rule: str = ""
    mismatches: tuple[str, ...] = ()
    direction: str = ""
    services: tuple[str, ...] = ()


class FlowLog(Ring[Flow]):
    """The latest flows, and who follows them."""


def flow_filter(query: dict[str, str]) -> Callable[[Flow], bool]:
    """Make a predicate of `verdict`, `reason`, `hook`, `service`, `pod` and `port` (either end). Raises ValueError."""
    unknown = query.keys() - _FILTERS.keys()
    if unknown:
        raise ValueError(f"unknown filter {', '.join(sorted(unknown))} (there are {', '.join(_FILTERS)})")
    tests = [(_FILTERS[name], value) for name, value in query.items()]
    return lambda flow: all(test(flow, value) for test, value in tests)


_FILTERS: dict[str, Callable[[Flow, str], Any]] = {
    "verdict": lambda flow, value: flow.verdict == value,
    "reason": lambda flow, value: flow.reason == value,
    "hook": lambda flow, value: flow.hook == value,
    "service": lambda flow, value: value in flow.services,
    "pod": lambda flow, value: value in (flow.source.pod, flow.destination.pod),
    "port": lambda flow, value: value in (str(flow.source.port), str(flow.destination.port)),
}
