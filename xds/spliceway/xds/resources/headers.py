"""Conditions on headers, exactly: a header that is there more than once never matches.

Envoy has two ways of reading a header with several values, and neither will do alone: RBAC's header matchers ask each
value by itself and are content with one that fits, expressions (CEL) see all values joined with commas. What both of
them find equal to the wanted value is there once. For presence there is no wanted value: then it is the first value,
which the filter before the rules has put into the filter state, that must equal the join of all.

Headers that Envoy's codec itself joins (Cookie, Authorization, Accept-Encoding and a few more) are one value here and
go on to the server as that one value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HeaderMatch, Mismatch
from spliceway.xds.resources.names import first_value_key
from spliceway.xds.resources.rbac import regex_permission

#: A token of RFC 9110 in lower case; names with a colon are Envoy's own for parts of the request line.
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
#: Names that `%REQ()%` takes as they are. Others (`%`, `|`) mean something else there.
_PLAIN_NAME = re.compile(r"[a-z0-9!#$&'*+.^_`~-]+")
#: What Envoy sets when it is absent, so that a condition would hold for a request that did not have it.
_SET_BY_ENVOY = frozenset({"x-forwarded-proto"})

#: What belongs to one hop, to the framing or to the target: Envoy takes it away or makes it anew, and a script that
#: touched it would change another request.
_NOT_TO_BE_CHANGED = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
_CONTROLS = re.compile(r"[\r\n\0]")

_Expression = dict[str, Any]


def why_not(match: HeaderMatch) -> str | None:
    """Why Envoy can't be asked for this condition exactly; None when it can. Never says the value."""
    if not _NAME.fullmatch(match.name):
        return f"header {match.name!r}: no header has such a name"
    if match.name in _SET_BY_ENVOY:
        return f"header {match.name}: Envoy sets it where it is absent, so that it can't be asked for"
    if match.value is None and not _PLAIN_NAME.fullmatch(match.name) and match.mismatch is Mismatch.DENY:
        return f"header {match.name}: its presence can't be asked for under such a name"
    if match.mismatch is not Mismatch.DENY:
        if match.name in _NOT_TO_BE_CHANGED or match.name.startswith("x-envoy-"):
            return f"header {match.name}: mismatch action {match.mismatch.value} can't be done to this header"
        if _CONTROLS.search(match.value or ""):
            return f"header {match.name}: its value has characters that no header may have"
    value = match.value or ""
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return f"header {match.name}: its value has characters beyond Latin-1, which no header has"
    try:
        if not value.isascii():
            compile_regex(_escaped(value))
    except RegexError:
        return f"header {match.name}: its value of {len(value)} characters beyond ASCII is too long"
    return None


def permission(match: HeaderMatch) -> rbac_pb2.Permission:
    """That some value of the header fits. Only together with `condition` it is the only one."""
    if match.value is None:
        return rbac_pb2.Permission(header=route_components_pb2.HeaderMatcher(name=match.name, present_match=True))
    if match.value.isascii():
        exact = route_components_pb2.HeaderMatcher(name=match.name, string_match={"exact": match.value})
        return rbac_pb2.Permission(header=exact)
    # Strings in protobuf are UTF-8; expressions work on bytes and can name them.
    return regex_permission(match.name, _escaped(match.value))


def condition(matches: Sequence[HeaderMatch]) -> _Expression | None:
    """The expression (google.api.expr.v1alpha1.Expr) that each header, all values joined, is what it should be."""
    parts = [_call("_==_", _call("bytes", _header(match.name)), _wanted(match)) for match in matches]
    if not parts:
        return None
    while len(parts) > 1:
        # In pairs, and these in pairs: a chain would soon be deeper than the 100 levels that protobuf reads.
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [_call("_&&_", first, second) for first, second in pairs] + parts[len(parts) & ~1 :]
    [whole] = parts
    _number(whole, 0)
    return whole


def first_values(matches: Iterable[HeaderMatch]) -> set_filter_state_pb2.Config | None:
    """What the filter before the rules has to keep for these conditions; None when that is nothing."""
    names = sorted({match.name for match in matches if match.value is None})
    if not names:
        return None
    return set_filter_state_pb2.Config(
        on_request_headers=[
            {
                "object_key": first_value_key(name),
                "factory_key": "envoy.string",
                "format_string": {"text_format_source": {"inline_string": f"%REQ({name})%"}, "omit_empty_values": True},
            }
            for name in names
        ]
    )


def shown_forms(value: str) -> frozenset[str]:
    """Every form in which a value stands in resources as JSON, to take it out of what is shown."""
    raw = value.encode("latin-1", "replace")
    return frozenset({value, _escaped(value), base64.b64encode(raw).decode(), raw.hex()})


def _escaped(value: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{ord(c) & 0xFF:02x}" for c in value)


def _wanted(match: HeaderMatch) -> _Expression:
    if match.value is None:
        return _item({"ident_expr": {"name": "filter_state"}}, first_value_key(match.name))
    return {"const_expr": {"bytes_value": match.value.encode("latin-1")}}


def _header(name: str) -> _Expression:
    return _item({"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": "headers"}}, name)


def _item(operand: _Expression, key: str) -> _Expression:
    return _call("_[_]", operand, {"const_expr": {"string_value": key}})


def _call(function: str, *args: _Expression) -> _Expression:
    return {"call_expr": {"function": function, "args": list(args)}}


def _number(expression: _Expression, last: int) -> int:
    """Give each node the id that it needs, depth first; returns the last one."""
    last += 1
    expression["id"] = last
    for operand in expression.get("call_expr", {}).get("args", ()):
        last = _number(operand, last)
    if "select_expr" in expression:
        last = _number(expression["select_expr"]["operand"], last)
    return last
