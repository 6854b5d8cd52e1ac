"""Reads a route configuration: the rules of one listener, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from google.protobuf.message import Message

from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.model import RouteConfig
from spliceway.proxy.resources.changes import (
    Change,
    check_groups,
    combination_rules,
    read_items,
    script_shape,
    with_changes,
)
from spliceway.proxy.resources.conditions import first_values
from spliceway.proxy.resources.filters import AUDIT_AMBIGUOUS
from spliceway.proxy.resources.names import (
    CLUSTER_ORIGINAL,
    FILTER_AMBIGUOUS,
    MAIN,
    OTHER,
    ROUTE_METADATA,
    End,
    resource_name,
)
from spliceway.proxy.resources.rules import allow_list, enforced_rules
from spliceway.proxy.resources.shapes import Found, Hole, Maybe, Shape, check, joined, keyed, packed_bytes, parsed
from spliceway.proxy.resources.values import number, true

_ROUTE = "virtual_hosts[0].routes[0]"
_OVERRIDES = f"{_ROUTE}.typed_per_filter_config"
_METADATA = f"{_ROUTE}.metadata.filter_metadata"
_ITEMS = "list_value.values"


class _Half(msgspec.Struct, frozen=True):
    """The rules of one end, as in RuleSet."""

    rules: tuple[HttpRule, ...] | None
    audit: tuple[HttpRule, ...] | None

    @property
    def all_rules(self) -> tuple[HttpRule, ...]:
        return (*(self.rules or ()), *(self.audit or ()))


def _audit_changes(value: Any, at: str, found: Found) -> None:
    """Mismatch actions of rules in audit, by the name of the end's policy filter."""
    changes: dict[str, tuple[Change, ...]] = {}

    def reader(name: str) -> Shape:
        def items(value: Any, at: str, _: Found) -> None:
            changes[name] = read_items(value, at)

        return Maybe({"list_value": {"values": items}})

    check(value, {"struct_value": {"fields": {end.policy: reader(end.policy) for end in (MAIN, OTHER)}}}, at, found)
    found["audit"] = changes


_ROUTES: Shape = {
    "name": Hole("name"),
    "virtual_hosts": [
        {
            "name": "any",
            "domains": ["*"],
            "routes": [
                {
                    "name": Hole("id", number),
                    "match": {"prefix": "/"},
                    "route": {"cluster": CLUSTER_ORIGINAL, "timeout": 0.0},
                    "metadata": Maybe(
                        {
                            "filter_metadata": {
                                ROUTE_METADATA: {
                                    "fields": {
                                        "volatile": Maybe({"bool_value": Hole("volatile", true)}),
                                        "audit": Maybe(_audit_changes),
                                    }
                                }
                            }
                        }
                    ),
                    "typed_per_filter_config": Hole("overrides"),
                }
            ],
        }
    ],
}


def routes(body: bytes) -> RouteConfig:
    """Read a serialised `envoy.config.route.v3.RouteConfiguration`.

    The values of headers of a volatile one count as secret: which of them came from a Secret it does not say.

    Raises:
        UnenforceableError: it is not exactly what a rule set's routes are, or has rules that the proxy can't ask.
    """
    found: Found = {"volatile": False, "audit": {}}
    check(parsed(route_pb2.RouteConfiguration, body), _ROUTES, "", found)
    name, volatile = found["name"], found["volatile"]
    if name != resource_name(found["id"]):
        raise UnenforceableError("name", f"is not that of rule set {found['id']}")
    overrides = _Overrides(found["overrides"])
    main, other = (_end(overrides, end, found["audit"].pop(end.policy, ())) for end in (MAIN, OTHER))
    if main.rules is None and main.audit is None:
        raise UnenforceableError(keyed(_OVERRIDES, MAIN.policy), "lets every request pass")
    # The filter in front may let the ambiguous pass only, and must, where nothing is enforced behind it.
    if main.rules is None and other.rules is None:
        overrides.check(FILTER_AMBIGUOUS, http_rbac_pb2.RBACPerRoute, AUDIT_AMBIGUOUS)
    overrides.check_all_taken()
    if volatile:
        main, other = _hidden(main), _hidden(other)
    also = None if other.rules is None and other.audit is None else RuleSet(0, "", other.rules, other.audit)
    return RouteConfig(name=name, rule_set=RuleSet(found["id"], name, main.rules, main.audit, also), volatile=volatile)


class _Overrides:
    """What a route tells the filters of the chain. At the end all of it must have been taken."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        self._held = {name: held[name] for name in sorted(held)}

    def __repr__(self) -> str:
        return f"_Overrides(left={list(self._held)})"

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def take(self, name: str, kind: type[Message]) -> tuple[bytes, str]:
        """The bytes of a filter's configuration, and its path."""
        path = keyed(_OVERRIDES, name)
        if name not in self._held:
            raise UnenforceableError(path, "is required")
        return packed_bytes(self._held.pop(name), kind, path), path

    def check(self, name: str, kind: type[Message], shape: Shape) -> Found:
        """Read one by its shape."""
        data, path = self.take(name, kind)
        found: Found = {}
        check(parsed(kind, data, path), shape, path, found)
        return found

    def check_all_taken(self) -> None:
        """Refuse what is left."""
        for name in self._held:
            raise UnenforceableError(keyed(_OVERRIDES, name), "can't be enforced by this proxy")


def _end(overrides: _Overrides, end: End, audit_changes: tuple[Change, ...]) -> _Half:
    half = _policies(*overrides.take(end.policy, http_rbac_pb2.RBACPerRoute))
    rules, audit = half.rules, half.audit
    first = first_values(match for rule in half.all_rules for match in rule.headers)
    if first is not None:
        overrides.check(end.first, set_filter_state_pb2.Config, first)
    if rules is not None and (end.matches in overrides or end.changes in overrides):
        changes = overrides.check(end.changes, lua_pb2.LuaPerRoute, script_shape(end))["changes"]
        path = joined(keyed(_OVERRIDES, end.changes), f'filter_context.fields["changes"].{_ITEMS}')
        groups = check_groups(rules, changes, path)
        overrides.check(end.matches, http_rbac_pb2.RBACPerRoute, {"rbac": {"rules": combination_rules(groups)}})
        rules = with_changes(rules, changes, path)
    if audit_changes:
        path = f'{keyed(_METADATA, ROUTE_METADATA)}.fields["audit"].struct_value.fields["{end.policy}"].{_ITEMS}'
        audit = with_changes(audit or (), audit_changes, path)
    return _Half(rules, audit)


@lru_cache(maxsize=256)
def _policies(data: bytes, at: str) -> _Half:
    """The rules in an override of a policy filter. Many routes have the same: pairs, and where everything passes."""
    found: Found = {"shadow": None}
    shape = {"rbac": {"rules": Hole("rules"), "shadow_rules": Maybe(Hole("shadow"))}}
    check(parsed(http_rbac_pb2.RBACPerRoute, data, at), shape, at, found)
    shadow = found["shadow"]
    return _Half(
        enforced_rules(found["rules"], joined(at, "rbac.rules")),
        None if shadow is None else allow_list(shadow, joined(at, "rbac.shadow_rules")),
    )


def _hidden(half: _Half) -> _Half:
    def hidden(match: HeaderMatch) -> HeaderMatch:
        return match if match.value is None else msgspec.structs.replace(match, secret=True)

    def rules(held: tuple[HttpRule, ...] | None) -> tuple[HttpRule, ...] | None:
        if held is None:
            return None
        return tuple(msgspec.structs.replace(rule, headers=tuple(map(hidden, rule.headers))) for rule in held)

    return _Half(rules(half.rules), rules(half.audit))
