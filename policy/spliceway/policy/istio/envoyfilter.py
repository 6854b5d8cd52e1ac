"""EnvoyFilters beside AuthorizationPolicies: which requests are well-formed, and how a path is read.

Spliceway refuses targets and hosts that two servers can read differently before any rule is asked (`;`, `%25`, `%2F`,
two Hosts). AuthorizationPolicies have exact values, prefixes, suffixes and templates, and none is equal to that. So an
RBAC filter with shadow rules goes in front of Istio's: it refuses nothing by itself, and writes down what it found
(dynamic metadata), which every rule with HTTP parts asks for (`WELL_FORMED`). Where the filter is missing, those rules
match nothing. Sources: Istio, EnvoyFilter and «Authorization Policy Conditions» (`experimental.envoy.filters.*`);
Envoy, «Role Based Access Control (RBAC) Filter», dynamic metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from spliceway.policy.istio.compilerules import Compiled, Entry
from spliceway.policy.istio.objects import MANAGED_BY, METADATA_PREFIX, TRANSLATED_FROM, AuthorizationRule
from spliceway.policy.wellformed import DOT_SEGMENTS, DOUBLE_SLASHES, ORIGIN_FORM, WELL_FORMED_HOST, WELL_FORMED_PATH

_FILTER = "spliceway.well-formed"
_TYPES = "type.googleapis.com/envoy.extensions.filters"
_MANAGER = "envoy.filters.network.http_connection_manager"
#: How Spliceway's own Envoy reads requests (xds, listeners).
_READING = {
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "REJECT_REQUEST",
    "http_protocol_options": {"accept_http_10": True, "allow_absolute_url": False},
}


class Judged(msgspec.Struct, frozen=True):
    """Ports at which whoever passes is judged by HTTP rules; those where some peers pass without them are `mixed`.

    None: every port.
    """

    ports: tuple[int, ...] | None = ()
    mixed: tuple[int, ...] | None = ()


class EnvoyFilter(msgspec.Struct, frozen=True):
    """An EnvoyFilter for workloads with a sidecar. `read`: ports at which paths are read as Spliceway does."""

    namespace: str
    name: str
    match_labels: tuple[tuple[str, str], ...] = ()
    read: tuple[int, ...] | None = ()
    origin: str = ""

    def document(self) -> dict[str, Any]:
        """As YAML has it."""
        spec: dict[str, Any] = {}
        if self.match_labels:
            spec["workloadSelector"] = {"labels": dict(self.match_labels)}
        places: list[dict[str, Any]] = [{}] if self.read is None else [{"destinationPort": port} for port in self.read]
        spec["configPatches"] = [
            _patch("HTTP_FILTER", {}, "INSERT_FIRST", {"name": _FILTER, "typed_config": _shadow()}),
            *(_patch("NETWORK_FILTER", place, "MERGE", _reading()) for place in places),
        ]
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace, "labels": dict([MANAGED_BY])}
        if self.origin:
            metadata["annotations"] = {TRANSLATED_FROM: self.origin}
        return {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": metadata,
            "spec": spec,
        }


def judged(ready: Iterable[tuple[Entry, Compiled]], allowing: Mapping[Entry, tuple[AuthorizationRule, ...]]) -> Judged:
    """Ports with HTTP rules of specifications that are about the same workloads."""
    boxes = [box for _, compiled in ready for box in compiled.boxes]
    plain = [rule.operation for rules in allowing.values() for rule in rules if not rule.http]
    if any(not box.ports for box in boxes):
        return Judged(mixed=None) if plain else Judged(None)
    ports = sorted({port for box in boxes for port in box.ports})
    mixed = tuple(
        port for port in ports if any(port in (one.ports or ports) and port not in one.not_ports for one in plain)
    )
    return Judged(tuple(port for port in ports if port not in mixed), mixed)


def _patch(about: str, chain: dict[str, Any], operation: str, value: dict[str, Any]) -> dict[str, Any]:
    place = {"filterChain": {**chain, "filter": {"name": _MANAGER}}}
    return {
        "applyTo": about,
        "match": {"context": "SIDECAR_INBOUND", "listener": place},
        "patch": {"operation": operation, "value": value},
    }


def _shadow() -> dict[str, Any]:
    refused = {
        "1-malformed-target": _header(":path", ORIGIN_FORM, unless=True),
        "2-malformed-host": _header(":authority", WELL_FORMED_HOST, unless=True),
        "3-ambiguous-path": _header(":path", WELL_FORMED_PATH, unless=True),
        # Whatever the mesh normalises, or doesn't.
        "4-dot-segments": _header(":path", DOT_SEGMENTS),
        "5-double-slashes": _header(":path", DOUBLE_SLASHES),
    }
    policies = {name: {"permissions": [asked], "principals": [{"any": True}]} for name, asked in refused.items()}
    return {
        "@type": f"{_TYPES}.http.rbac.v3.RBAC",
        "shadow_rules_stat_prefix": METADATA_PREFIX,
        "shadow_rules": {"action": "DENY", "policies": policies},
    }


def _header(name: str, pattern: str, *, unless: bool = False) -> dict[str, Any]:
    asked = {"header": {"name": name, "string_match": {"safe_regex": {"regex": pattern}}}}
    return {"not_rule": asked} if unless else asked


def _reading() -> dict[str, Any]:
    manager = f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager"
    return {"name": _MANAGER, "typed_config": {"@type": manager, **_READING}}
