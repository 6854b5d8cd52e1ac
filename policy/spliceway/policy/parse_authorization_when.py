"""Conditions of an AuthorizationPolicy (`when`), as far as they ask what fields of a source or an operation ask.

Istio joins them to each source and each operation of their rule, so that those fields of the rule mean the same. What
only a condition can ask is refused.
Sources: Istio, «Authorization Policy Conditions»; istio/istio, pilot/pkg/security/authz/model, pkg/config/security.
"""

from __future__ import annotations

from typing import NamedTuple

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.parse_authorization_source import Demand, listed

#: Conditions on the client, and the field of a source that asks the same.
_SOURCES = {
    "source.ip": "ipBlocks",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "source.serviceAccount": "serviceAccounts",
}
_PORT = "destination.port"
#: All others, by what they begin with, and why they are refused.
_REFUSED = {
    "request.headers[": "a header that is there twice is not for both the same",
    "request.experimental.inline.headers[": "a header that is there twice is not for both the same",
    "request.auth.": "JSON web tokens are not read",
    "remote.ip": "what clients say in X-Forwarded-For is not believed",
    "destination.ip": "workloads are told by their labels",
    "connection.sni": "TLS is not read",
    "experimental.envoy.filters.": "there are no such filters here",
}


class Conditions(NamedTuple):
    """What all conditions of a rule demand of the client, and of the port."""

    sources: list[Demand]
    ports: list[Demand]


def parse_when(rule: Fields) -> Conditions:
    """The conditions of a rule, all of which must hold."""
    found = Conditions([], [])
    place = rule.where.at("when")
    if not rule.has("when"):
        return found
    for where, item in place.items(rule.take("when", list), dict):
        fields = Fields(item, where)
        key = fields.need("key", str)
        if key not in _SOURCES and key != _PORT:
            _refuse(key, where.at("key"))
        demands = [
            Demand(_SOURCES.get(key, "ports"), where.at(name), list(listed(fields, name)), name == "notValues")
            for name in ("values", "notValues")
            if fields.has(name)
        ]
        fields.done()
        if not demands:
            where.refuse("needs values or notValues")
        (found.ports if key == _PORT else found.sources).extend(demands)
    if not found.sources and not found.ports:
        place.refuse("is empty")
    return found


def _refuse(key: str, where: Where) -> None:
    for begin, why in _REFUSED.items():
        if key.startswith(begin):
            where.refuse(f"{shown(key)} is not supported: {why}")
    where.refuse(f"{shown(key)} is no condition of Istio's")
