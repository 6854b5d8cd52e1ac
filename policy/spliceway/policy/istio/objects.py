"""AuthorizationPolicies as values, and as the documents that they are written as (security.istio.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

#: Label by which our own are known again.
MANAGED_BY = ("app.kubernetes.io/managed-by", "spliceway")
#: Annotation that names the policy that one came from.
TRANSLATED_FROM = "spliceway.io/translated-from"


def is_translated(content: Mapping[str, Any]) -> bool:
    """Whether an object is a translation of ours, by an agent or by hand: it says again what another policy says."""
    metadata = content.get("metadata")
    if content.get("kind") != "AuthorizationPolicy" or not isinstance(metadata, Mapping):
        return False
    labels, annotations = metadata.get("labels"), metadata.get("annotations")
    if not isinstance(labels, Mapping) or not isinstance(annotations, Mapping):
        return False
    return MANAGED_BY in labels.items() and TRANSLATED_FROM in annotations


class Source(msgspec.Struct, frozen=True):
    """Whom a rule means; all that is given must hold. Nothing given: everybody."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()

    @property
    def by_identity(self) -> bool:
        """Whether it asks for what only a client certificate tells."""
        return bool(self.principals or self.not_principals)


class Operation(msgspec.Struct, frozen=True):
    """What a request does; all that is given must hold."""

    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Condition(msgspec.Struct, frozen=True):
    """An entry of `when`."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


#: Prefix of what the filter of our EnvoyFilters writes down, and the condition that asks for it (envoyfilter.py).
METADATA_PREFIX = "spliceway_"
WELL_FORMED = Condition(f"experimental.envoy.filters.http.rbac[{METADATA_PREFIX}shadow_engine_result]", ("allowed",))


class AuthorizationRule(msgspec.Struct, frozen=True):
    """One rule: any of `sources` (empty: everybody) does `operation`, under all `conditions`."""

    sources: tuple[Source, ...] = ()
    operation: Operation = Operation()
    conditions: tuple[Condition, ...] = ()

    @property
    def http(self) -> bool:
        """Whether it asks for anything of a request; a connection that is no HTTP never has that."""
        return bool(self.operation.methods or self.operation.paths or self.conditions)


class AuthorizationPolicy(msgspec.Struct, frozen=True):
    """An AuthorizationPolicy; without rules it matches nothing. `services`: targetRefs, instead of a selector."""

    namespace: str
    name: str
    action: str
    rules: tuple[AuthorizationRule, ...]
    match_labels: tuple[tuple[str, str], ...] = ()
    services: tuple[str, ...] = ()
    origin: str = ""

    def document(self) -> dict[str, Any]:
        """As YAML has it."""
        spec: dict[str, Any] = {}
        if self.services:
            spec["targetRefs"] = [{"group": "", "kind": "Service", "name": name} for name in self.services]
        elif self.match_labels:
            spec["selector"] = {"matchLabels": dict(self.match_labels)}
        spec["action"] = self.action
        if self.rules:
            spec["rules"] = [_rule(rule) for rule in self.rules]
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace, "labels": dict([MANAGED_BY])}
        if self.origin:
            metadata["annotations"] = {TRANSLATED_FROM: self.origin}
        return {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": metadata,
            "spec": spec,
        }


def _rule(rule: AuthorizationRule) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rule.sources:
        found["from"] = [{"source": _filled(source)} for source in rule.sources]
    if operation := _filled(rule.operation):
        if "ports" in operation:
            operation["ports"] = [str(port) for port in operation["ports"]]
        if "notPorts" in operation:
            operation["notPorts"] = [str(port) for port in operation["notPorts"]]
        found["to"] = [{"operation": operation}]
    if rule.conditions:
        found["when"] = [_filled(condition) for condition in rule.conditions]
    return found


def _filled(part: Source | Operation | Condition) -> dict[str, Any]:
    """Fields that are given, named as Istio names them."""
    found = {}
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if value:
            first, *rest = name.split("_")
            found[first + "".join(word.title() for word in rest)] = list(value) if isinstance(value, tuple) else value
    return found
