"""What the agent says of Istio's pods on its node: how many, what is accelerated, which settings clash. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from spliceway.agent.lefttoistio import Left
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.parse_metadata import HTTP_RULES
from spliceway.policy.table import PolicyTable

#: So many pods are named in a sentence.
_NAMED = 5


class Setting(msgspec.Struct, frozen=True):
    """What the configuration says: `istio.enabled`, `splice.mode` as it is now, `datapath.socketLb`."""

    enabled: bool
    splice: str
    socket_lb: str


def is_accelerated(endpoint: LocalEndpoint, setting: Setting) -> bool:
    """Whether what its application and its sidecar say to each other may be spliced."""
    wanted = endpoint.splice and endpoint.sidecar is not None
    return wanted and setting.enabled and setting.splice != "off"


def istio_status(endpoints: Iterable[LocalEndpoint], setting: Setting, left: Left) -> dict[str, Any]:
    """How many pods of this node there are of each kind (`istiopods.mesh_of`), and of how many the inside is spliced.

    `socketLb`: whether the socket load balancer is on, and leaves their sockets alone. `left`: HTTP rules that sidecars
    ask, and not the wire.
    """
    pods = [one for one in endpoints if one.mesh]
    return {
        "enabled": setting.enabled,
        "pods": dict(sorted(Counter(one.mesh for one in pods).items())),
        "accelerated": sum(is_accelerated(one, setting) for one in pods),
        "leftAloneBySocketLb": len(pods) if setting.socket_lb != "off" else 0,
        "httpRulesLeft": {"rules": left.rules, "pods": left.pods},
    }


def istio_warnings(endpoints: Iterable[LocalEndpoint], setting: Setting, table: PolicyTable | None) -> list[str]:
    """Settings that don't go together, each with what to do."""
    pods = [one for one in endpoints if one.mesh]
    found = []
    sidecars = [one.name for one in pods if one.sidecar is not None]
    if sidecars and not setting.enabled:
        found.append(
            f"istio: {_named(sidecars)} with sidecars, and nothing of what applications say to these is accelerated: "
            "istio.enabled: true (the chart's mode: istio) allows it"
        )
    if sidecars and setting.enabled and setting.splice == "off":
        found.append(
            f"istio: {_named(sidecars)} with sidecars, and istio.enabled does nothing: splice.mode is off; say auto"
        )
    ruled = sorted({one.name for one in pods} & (with_http_rules(table) if table is not None else set()))
    if ruled:
        found.append(
            f"istio: {_named(ruled)} of Istio's with HTTP rules, which can't be asked where the mesh encrypts: there "
            "all is refused that they cover: have Istio enforce them (`spliceway policy istio translate`), and leave "
            f"rules.http out of what is enforced here, or leave them to Istio ({HTTP_RULES}: istio)"
        )
    return found


def with_http_rules(table: PolicyTable) -> set[str]:
    """Pods with rows that lead to a rule set, in either direction. Costs a look at each row."""
    policies = {key.policy_id for key, row in table.rows.items() if row.rule_set}
    return {name for name, policy in table.endpoints.items() if policy.policy_id in policies}


class IstioViews:
    """The same for one agent; which pods have HTTP rules is found once for each table."""

    def __init__(self) -> None:
        """No table is known yet."""
        self._for: tuple[PolicyTable | None, frozenset[str], tuple[str, ...]] | None = None

    def warnings(
        self, endpoints: Iterable[LocalEndpoint], setting: Setting, table: PolicyTable | None
    ) -> tuple[str, ...]:
        """As `istio_warnings`; without Istio's pods the table is not looked at."""
        pods = [one for one in endpoints if one.mesh]
        if not pods:
            return ()
        key = frozenset(f"{one.name} {one.sidecar} {setting}" for one in pods)
        if self._for is None or self._for[0] is not table or self._for[1] != key:
            self._for = (table, key, tuple(istio_warnings(pods, setting, table)))
        return self._for[2]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} pod{'' if len(names) == 1 else 's'} ({', '.join(sorted(names)[:_NAMED])}{more})"
