"""Istio's pods, put for people. Pure: decoded JSON in, texts out."""

from __future__ import annotations

from typing import Any

from spliceway.agent.printable import printable

Json = dict[str, Any]


def istio_line(found: Json) -> list[str]:
    """«3 pods: 1 ambient, 2 sidecar; 2 accelerated»; nothing where there are none and nothing is wanted."""
    pods = found.get("pods", {})
    if not pods:
        return ["accelerates sidecars; no pod of Istio's on this node"] if found.get("enabled") else []
    count = sum(pods.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in pods.items())
    text = f"{count} pod{'' if count == 1 else 's'}: {kinds}; {found['accelerated']} accelerated"
    if found["leftAloneBySocketLb"]:
        text += "; their sockets dial Services by themselves"
    if (left := found.get("httpRulesLeft", {})) and left["rules"]:
        rules, at = left["rules"], left["pods"]
        text += f"; {rules} HTTP rule{'s' if rules > 1 else ''} of {at} pod{'s' if at > 1 else ''} left to Istio"
    return [printable(text)]


def istio_text(endpoint: Json) -> str:
    """A cell of `endpoint list`: «sidecar, accelerated», «ambient», or empty."""
    mesh: str = endpoint.get("mesh", "")
    return f"{mesh}, accelerated" if mesh and endpoint.get("accelerated") else mesh
