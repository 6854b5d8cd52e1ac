"""Load balancing as the admin API shows it. Pure."""

from __future__ import annotations

from typing import Any

from spliceway.agent.jsonable import plain
from spliceway.policy.lbmodel import Frontend, FrontendState, Loser, frontend_order
from spliceway.policy.loadbalancing import Balance


def service_counts(balance: Balance) -> dict[str, int]:
    """How many there are: Services, frontends, of these without backends and in conflict, and Services left out."""
    return {
        "services": balance.services,
        "frontends": len(balance.frontends),
        "withoutBackends": balance.without_backends,
        "conflicts": len(balance.conflicts),
        "leftOut": len(balance.left_out),
    }


def service_rows(balance: Balance, namespace: str | None = None) -> dict[str, Any]:
    """`frontends` by Service and address, and `leftOut`: Services that have none for some of their addresses, and why.

    `namespace`: only of its Services, also where they lost a frontend to another one's.
    """
    prefix = f"{namespace}/" if namespace is not None else ""
    found = []
    for frontend, state in balance.frontends.items():
        losers = balance.conflicts.get(frontend, ())
        if any(name.startswith(prefix) for name in (state.service, *(loser.service for loser in losers))):
            found.append((frontend, state, losers))
    found.sort(key=lambda row: (row[1].service, frontend_order(row[0])))
    return {
        "frontends": [_row(*row) for row in found],
        "leftOut": [
            {"service": service, "why": list(why)}
            for service, why in sorted(balance.left_out.items())
            if service.startswith(prefix)
        ],
    }


def _row(frontend: Frontend, state: FrontendState, losers: tuple[Loser, ...]) -> dict[str, Any]:
    return {
        "service": state.service,
        "portName": state.port_name,
        "kind": state.kind,
        "address": str(frontend.address),
        "port": frontend.port,
        "protocol": frontend.protocol.name,
        "backends": [{"address": str(backend.address), "port": backend.port} for backend in state.backends],
        "affinitySeconds": state.affinity_seconds,
        "conflicts": plain(losers),
    }
