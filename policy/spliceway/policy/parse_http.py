"""rules.http: conditions on requests.

Sources: Cilium pkg/policy/api/http.go, and pkg/envoy (getHTTPRule) for what the entries of `headers` mean.
"""

from __future__ import annotations

import re

from spliceway.policy.fields import DNS_LABEL, Fields, Where, shown
from spliceway.policy.model import HeaderCondition, HttpMatch
from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import Mismatch

#: A header name (RFC 9110, section 5.1), without «%» and «|», which mean something else in Envoy's expressions.
_TOKEN = re.compile(r"[!#$&'*+.^_`~0-9A-Za-z-]+")
#: Headers with another way to be asked for, or that the proxy sets where they are absent.
_NO_CONDITION = {
    "host": "Host is matched with the field host",
    "x-forwarded-proto": "X-Forwarded-Proto is set by the proxy where it is absent: no condition can be on it",
}
#: What belongs to one hop or to the framing of a message: nothing else may change it (RFC 9110, section 7.6.1).
_NOT_TO_BE_CHANGED = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade"}
)
#: A header value as it can come: visible ASCII, with blanks inside only (RFC 9110, section 5.5).
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?")
_MISMATCH = {action.value: action for action in Mismatch}


def parse_http_rules(fields: Fields, path: str, namespace: str) -> tuple[HttpMatch, ...]:
    """The HTTP rules of `rules`; `path` is that of the entry of toPorts, `namespace` the policy's ("": clusterwide)."""
    where = fields.where
    fields.unsupported(("dns", "kafka", "l7", "l7proto"))
    listed = fields.take("http", list, [])
    fields.done()
    if not listed:
        # In Cilium this allows every request; whoever writes it may well mean the opposite.
        where.at("http").refuse("needs at least one rule (to allow every request, leave rules out)")
    return tuple(
        _http_rule(Fields(item, place), f"{path}.rules.http[{index}]", namespace)
        for index, (place, item) in enumerate(where.at("http").items(listed, dict))
    )


def _http_rule(fields: Fields, path: str, namespace: str) -> HttpMatch:
    method, target, host = (_regex(fields, key) for key in ("method", "path", "host"))
    lines = fields.where.at("headers").items(fields.take("headers", list, []), str)
    headers = [_header_line(text, place) for place, text in lines]
    matches = fields.where.at("headerMatches").items(fields.take("headerMatches", list, []), dict)
    headers += [_header_match(Fields(item, place), namespace) for place, item in matches]
    fields.done()
    return HttpMatch(path, method, target, host, tuple(headers))


def _regex(fields: Fields, key: str) -> str:
    pattern: str = fields.take(key, str, "")
    try:
        compile_regex(pattern)
    except RegexError as error:
        fields.where.at(key).refuse(f"{shown(pattern)}: {error}")
    return pattern


def _header_line(text: str, where: Where) -> HeaderCondition:
    """`X-Name` (it is there) or `X-Name: value` (exactly this value; the colon may be missing, as in Cilium)."""
    name, blank, value = text.partition(" ")
    if not blank and ":" in name:
        where.refuse(f"{shown(text)} is neither a header name nor «name: value» (with a blank after the colon)")
    name = _header_name(name.rstrip(":") if blank else name, where)
    return HeaderCondition(name, _header_value(value, where) if blank else None)


def _header_match(fields: Fields, namespace: str) -> HeaderCondition:
    where = fields.where
    name = _header_name(fields.need("name", str), where.at("name"))
    value = fields.take("value", str, "")
    if value:
        _header_value(value, where.at("value"))
    secret = fields.take("secret", dict)
    mismatch = fields.take("mismatch", str, "")
    if mismatch not in _MISMATCH:
        known = ", ".join(filter(None, _MISMATCH))
        where.at("mismatch").refuse(f"{shown(mismatch)} is not an action on mismatch ({known})")
    fields.done()
    action = _MISMATCH[mismatch]
    if action in (Mismatch.ADD, Mismatch.DELETE, Mismatch.REPLACE) and not value and secret is None:
        where.at("mismatch").refuse(f"{mismatch} needs value or secret")
    if action is not Mismatch.DENY and (name.lower() in _NOT_TO_BE_CHANGED or name.lower().startswith("x-envoy-")):
        where.at("mismatch").refuse(f"{mismatch} can't be done to {name}, which is the proxy's own")
    reference = None
    if secret is not None:
        reference = _secret(Fields(secret, where.at("secret")), namespace)
    return HeaderCondition(name, value or None, reference, action)


def _secret(fields: Fields, namespace: str) -> tuple[str, str]:
    """The Secret's «namespace/name», without a key: it must have one entry only."""
    name = fields.need_name("name")
    if fields.has("namespace") or not namespace:
        namespace = fields.need_name("namespace", DNS_LABEL)
    fields.done()
    return f"{namespace}/{name}", ""


def _header_name(name: str, where: Where) -> str:
    if not _TOKEN.fullmatch(name):
        where.refuse(f"{shown(name)} is not a header name")
    if reason := _NO_CONDITION.get(name.lower()):
        where.refuse(reason)
    return name


def _header_value(value: str, where: Where) -> str:
    if not _VALUE.fullmatch(value):
        where.refuse(f"{shown(value)} is not a header value (visible ASCII, blanks inside only)")
    return value
