"""What is told in the API of policies, put for people. Pure."""

from __future__ import annotations

from typing import Any

from spliceway.agent.printable import printable


def writing_line(found: dict[str, Any], now: float) -> list[str]:
    """«reported 12 s ago; written by node1», «…; written by this agent: 200 policies, 50 nodes»; or nothing."""
    if not found.get("enabled"):
        return []
    ago = f"reported {max(0, round(now - found['reported']))} s ago" if found["reported"] else "not reported yet"
    if found["leads"]:
        policies = f"{found['policies']} polic{'y' if found['policies'] == 1 else 'ies'}"
        nodes = f"{found['nodes']} node{'' if found['nodes'] == 1 else 's'}"
        who = f"written by this agent: {policies}, {nodes}"
    else:
        who = f"written by {found['writer']}" if found["writer"] else "nobody writes"
    return [printable("; ".join((ago, who, *_applied(found))))]


def _applied(found: dict[str, Any]) -> list[str]:
    """«for Istio: 12 AuthorizationPolicies, 2 kept of refused translations», of the agent that writes."""
    applied = found.get("authorization") or {"mode": "off"}
    if applied["mode"] == "off" or not found["leads"]:
        return []
    parts = [f"{applied['emitted']} AuthorizationPolic{'y' if applied['emitted'] == 1 else 'ies'}"]
    for count, what in (
        (applied["kept"], "kept of refused translations"),
        (applied["going"], "to be deleted"),
        (applied["refused"], "policies refused"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return [f"for Istio: {', '.join(parts)}"]
