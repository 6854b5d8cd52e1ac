"""What Istio makes of AuthorizationPolicies at a workload: filters of Envoy, as JSON of its API.

Written from Istio's reference alone (AuthorizationPolicy, «Conditions», «Implicit enablement»), apart from what
translates policies into it: DENY before ALLOW, each one RBAC filter with a policy for each rule; any source, any
operation, all conditions; `*` at the margin of a value is a wildcard, and alone means «is there». With `tcp` the
filter sees connections only: rules of an ALLOW policy that ask for HTTP are left out, of a DENY policy what asks for
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any

Doc = dict[str, Any]
_HTTP_KEYS = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_TYPES = "type.googleapis.com/envoy.extensions."
_NOTED = "experimental.envoy.filters."
#: Names of «any of», of its items, and of «not».
_PERMISSIONS, _PRINCIPALS = ("or_rules", "rules", "not_rule"), ("or_ids", "ids", "not_id")
_SERVER_KEYS = ("destination.port",)


class BadPolicyError(Exception):
    """What Istio's API would refuse, or what is not known here."""


def applying(documents: Iterable[Doc], namespace: str, labels: Mapping[str, str], root: str) -> list[Doc]:
    """The policies that are about a workload with a sidecar."""
    found = []
    for one in documents:
        if one["kind"] != "AuthorizationPolicy" or one["metadata"]["namespace"] not in (namespace, root):
            continue
        if one["spec"].get("targetRefs"):
            continue
        if one["spec"].get("selector", {}).get("matchLabels", {}).items() <= labels.items():
            found.append(one)
    return found


def filters(documents: Iterable[Doc], *, tcp: bool = False) -> list[Doc]:
    """Filters of a chain, in order."""
    documents = list(documents)
    found = []
    for action in ("DENY", "ALLOW"):
        about = [one for one in documents if one["spec"].get("action", "ALLOW") == action]
        if not about:
            continue
        policies = {}
        for one in about:
            for index, rule in enumerate(one["spec"].get("rules", [])):
                made = _policy(rule, action, tcp, one["metadata"]["namespace"])
                if made is not None:
                    policies[f"ns[{one['metadata']['namespace']}]-policy[{one['metadata']['name']}]-rule[{index}]"] = (
                        made
                    )
        rules = {"action": action, "policies": policies}
        kind = "network" if tcp else "http"
        config = {"@type": f"{_TYPES}filters.{kind}.rbac.v3.RBAC", "rules": rules}
        if tcp:
            config["stat_prefix"] = "tcp."
        found.append({"name": f"envoy.filters.{kind}.rbac", "typed_config": config})
    return found


def _policy(rule: Doc, action: str, tcp: bool, namespace: str) -> Doc | None:
    _known(rule, ("from", "to", "when"))
    http = any(set(_HTTP_KEYS) & set(to["operation"]) for to in rule.get("to", ()))
    http = http or any(one["key"].startswith("request.") for one in rule.get("when", ()))
    if tcp and http and action == "ALLOW":
        return None
    conditions: dict[bool, list[Doc]] = {False: [], True: []}  # whether they are about the server
    for one in rule.get("when", ()):
        at_server = one["key"] in _SERVER_KEYS or one["key"].startswith(_NOTED)
        conditions[at_server] += _condition(one, tcp, namespace)
    permissions = [
        _all([*_operation(to["operation"], tcp), *conditions[True]], "and_rules", "rules")
        for to in rule.get("to", [{"operation": {}}])
    ]
    sources = [_source(one["source"], namespace) for one in rule.get("from", ())] or [[]]
    principals = [_all([*one, *conditions[False]], "and_ids", "ids") for one in sources]
    return {"permissions": permissions, "principals": principals}


def _operation(operation: Doc, tcp: bool) -> list[Doc]:
    _known(operation, (*_HTTP_KEYS, "ports", "notPorts"))
    found: list[Doc] = []
    for key, make in (
        ("hosts", lambda value: {"header": _header(":authority", value, ignore_case=True)}),
        ("methods", lambda value: {"header": _header(":method", value)}),
        ("paths", _path),
        ("ports", lambda value: {"destination_port": int(value)}),
    ):
        if tcp and key != "ports":
            continue
        found += _either(operation, key, make, *_PERMISSIONS)
    return found


def _noted(condition: Doc) -> Doc:
    """What a filter has written down: `experimental.envoy.filters.a.b[c]` is `c` of the filter `envoy.filters.a.b`."""
    _known(condition, ("key", "values"))
    found = re.fullmatch(r"experimental\.(envoy\.filters\.[a-z_.]+)\[([a-z_]+)\]", condition["key"])
    if not found or not condition["values"] or any(value[0] == "[" for value in condition["values"]):
        raise BadPolicyError(f"condition {condition}")
    values = [{"string_match": _text(value)} for value in condition["values"]]
    wanted = values[0] if len(values) == 1 else {"or_match": {"value_matchers": values}}
    matcher = {"filter": found[1], "path": [{"key": found[2]}], "value": wanted}
    return {"metadata": matcher}


def _source(source: Doc, namespace: str) -> list[Doc]:
    makers = _clients(namespace)
    _known(source, [name for key in makers for name in (key, _negative(key))])
    return [part for key, make in makers.items() for part in _either(source, key, make, *_PRINCIPALS)]


def _clients(namespace: str) -> dict[str, Any]:
    """What each field of a source asks of clients, by a value of it. `namespace`: of the policy."""
    return {
        "principals": _principal,
        "namespaces": lambda value: _certificate({"safe_regex": {"regex": f".*/ns/{_glob(value)}/.*"}}),
        "serviceAccounts": lambda value: _account(value, namespace),
        "ipBlocks": _block,
    }


def _condition(condition: Doc, tcp: bool, namespace: str) -> list[Doc]:
    key = condition["key"]
    if key.startswith(_NOTED):
        return [_noted(condition)]
    _known(condition, ("key", "values", "notValues"))
    if not condition.get("values") and not condition.get("notValues"):
        raise BadPolicyError("values or notValues must be there")
    if key == "destination.port":
        return _either(condition, "values", lambda value: {"destination_port": int(value)}, *_PERMISSIONS)
    fields = {"source.ip": "ipBlocks", "source.namespace": "namespaces", "source.principal": "principals"}
    fields["source.serviceAccount"] = "serviceAccounts"
    if key in fields:
        return _either(condition, "values", _clients(namespace)[fields[key]], *_PRINCIPALS)
    if not (found := re.fullmatch(r"request\.headers\[(.+)\]", key)):
        raise BadPolicyError(f"condition {key}")
    if tcp:
        return []
    return _either(condition, "values", lambda value: {"header": _header(found[1], value)}, *_PRINCIPALS)


def _either(part: Doc, key: str, make: Any, any_of: str, items: str, negation: str) -> list[Doc]:
    found = []
    for name, negate in ((key, False), (_negative(key), True)):
        values = part.get(name)
        if values is None:
            continue
        if not values or not all(isinstance(value, str) and value for value in values):
            raise BadPolicyError(f"{name}: {values}")
        made = {any_of: {items: [make(value) for value in values]}}
        found.append({negation: made} if negate else made)
    return found


def _negative(key: str) -> str:
    return f"not{key[0].upper()}{key[1:]}"


def _all(parts: list[Doc], all_of: str, items: str) -> Doc:
    return {all_of: {items: parts or [{"any": True}]}}


def _text(value: str, *, ignore_case: bool = False) -> Doc:
    if value.startswith("*"):
        found: Doc = {"suffix": value[1:]}
    elif value.endswith("*"):
        found = {"prefix": value[:-1]}
    else:
        found = {"exact": value}
    return {**found, "ignore_case": True} if ignore_case else found


def _header(name: str, value: str, *, ignore_case: bool = False) -> Doc:
    if value == "*":
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": _text(value, ignore_case=ignore_case)}


def _path(value: str) -> Doc:
    if "{*}" in value or "{**}" in value:
        template = value.replace("{**}", "**").replace("{*}", "*")
        config = {"@type": f"{_TYPES}path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": template}
        return {"uri_template": {"name": "uri-template", "typed_config": config}}
    return {"url_path": {"path": {"safe_regex": {"regex": ".+"}} if value == "*" else _text(value)}}


def _principal(value: str) -> Doc:
    if value == "*":
        return _certificate({"safe_regex": {"regex": ".+"}})
    if value.startswith("*"):
        return _certificate({"safe_regex": {"regex": "spiffe://.*" + re.escape(value[1:])}})
    if value.endswith("*"):
        return _certificate({"prefix": f"spiffe://{value[:-1]}"})
    return _certificate({"exact": f"spiffe://{value}"})


def _account(value: str, namespace: str) -> Doc:
    of, _, name = value.rpartition("/")
    pattern = f"spiffe://.+/ns/{re.escape(of or namespace)}/(.+/|)sa/{re.escape(name)}(/.+)?"
    return _certificate({"safe_regex": {"regex": pattern}})


def _certificate(match: Doc) -> Doc:
    return {"authenticated": {"principal_name": match}}


def _block(value: str) -> Doc:
    block = ip_network(value)
    return {"direct_remote_ip": {"address_prefix": str(block.network_address), "prefix_len": block.prefixlen}}


def _glob(value: str) -> str:
    return ".*".join(map(re.escape, value.split("*")))


def _known(part: Doc, keys: Iterable[str]) -> None:
    if unknown := set(part) - set(keys):
        raise BadPolicyError(f"unknown {unknown}")
