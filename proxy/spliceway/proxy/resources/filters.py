"""Shapes of RBAC messages that don't depend on rules, and of the filters in a listener's chain."""

from __future__ import annotations

from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from google.protobuf.message import Message

from spliceway.proxy.resources.names import (
    AMBIGUOUS_PATH,
    FILTER_AMBIGUOUS,
    FILTER_ROUTER,
    MAIN,
    MALFORMED_HOST,
    MALFORMED_TARGET,
    OTHER,
    PASS,
    PREFIXES,
    End,
)
from spliceway.proxy.resources.shapes import ANY, Packed, Shape

# What `policy.httppath` and `policy.http` refuse, as the agent says it to Envoy. Other expressions would be other
# rules, and the proxy has these built in.
_PLAIN = r"[^?%;\\\x00-\x20\x7f-\xff]"
_ENCODED = r"%(?:2[0-46-9a-dA-D]|3[0-9ac-fAC-F]|[46][0-9a-fA-F]|5[0-9abd-fABD-F]|7[0-9a-eA-E])"
WELL_FORMED_PATH = rf"(?s)(?:{_PLAIN}|{_ENCODED})*(?:\?.*)?"
ORIGIN_FORM = r"(?s)/.*"
WELL_FORMED_HOST = r"[A-Za-z0-9._~!$&'()*+=%:\[\]-]+"

#: Nobody else's addresses: (prefix, bits).
_OWN = (("0.0.0.0", 8), ("127.0.0.0", 8), ("::", 127), ("::ffff:0.0.0.0", 104), ("::ffff:127.0.0.0", 104))

ANYONE = [{"any": True}]


def regex(header: str, pattern: str) -> Shape:
    """A permission: the header's value matches the expression as a whole."""
    return {"header": {"name": header, "string_match": {"safe_regex": {"regex": pattern}}}}


def _policy(*permissions: Shape) -> Shape:
    return {"permissions": list(permissions), "principals": ANYONE}


def _unless(header: str, pattern: str) -> Shape:
    return _policy({"not_rule": regex(header, pattern)})


_MALFORMED = {
    MALFORMED_TARGET: _unless(":path", ORIGIN_FORM),
    MALFORMED_HOST: _unless(":authority", WELL_FORMED_HOST),
}
_AMBIGUOUS = {AMBIGUOUS_PATH: _unless(":path", WELL_FORMED_PATH)}

#: RBAC (rules): an allow list that every request passes.
PASS_POLICY = _policy({"any": True})
PASS_ALL = {"policies": {PASS: PASS_POLICY}}
#: RBAC (rules): an allow list without entries.
DENY_ALL: Shape = {}
DENY_AMBIGUOUS = {"action": "DENY", "policies": _MALFORMED | _AMBIGUOUS}
#: RBACPerRoute of the ambiguous filter where nothing is enforced.
AUDIT_AMBIGUOUS = {
    "rbac": {
        "rules": {"action": "DENY", "policies": _MALFORMED},
        "shadow_rules": {"action": "DENY", "policies": _AMBIGUOUS},
    }
}

NEVER_TO_ONESELF = Packed(
    network_rbac_pb2.RBAC,
    {
        "stat_prefix": ANY,
        "rules": {
            "action": "DENY",
            "policies": {
                "own-address": _policy(
                    *({"destination_ip": {"address_prefix": prefix, "prefix_len": bits}} for prefix, bits in _OWN)
                )
            },
        },
    },
)


def _filter(name: str, kind: type[Message], shape: Shape, *, on_demand: bool = False) -> Shape:
    # The configuration of a filter is read only when that of the chain is: keeping it apart would gain nothing.
    result = {"name": name, "typed_config": Packed(kind, shape, kept=1)}
    return result | {"disabled": True} if on_demand else result


def _rbac(name: str, rules: Shape, *, on_demand: bool = False) -> Shape:
    prefix = PREFIXES[name]
    shape = {"rules": rules, "rules_stat_prefix": prefix, "shadow_rules_stat_prefix": prefix}
    return _filter(name, http_rbac_pb2.RBAC, shape, on_demand=on_demand)


def _end(end: End) -> list[Shape]:
    return [
        _filter(end.first, set_filter_state_pb2.Config, {}, on_demand=True),
        _rbac(end.policy, DENY_ALL),
        _rbac(end.matches, PASS_ALL, on_demand=True),
        _filter(end.changes, lua_pb2.Lua, {"clear_route_cache": False}, on_demand=True),
    ]


#: The chain of HTTP filters.
CHAIN: list[Shape] = [
    _rbac(FILTER_AMBIGUOUS, DENY_AMBIGUOUS),
    *_end(MAIN),
    *_end(OTHER),
    _filter(FILTER_ROUTER, router_pb2.Router, {"suppress_envoy_headers": True}),
]
