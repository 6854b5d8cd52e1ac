"""What a rule asks of a request, as the agent writes it for Envoy: permissions, and an expression over headers (CEL).

A header that is there more than once never matches. Envoy needs two questions for that (each value by itself, and all
of them joined), and the proxy reads the condition only from both: together they are one `HeaderMatch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from spliceway.policy.table import HeaderMatch, HttpTest
from spliceway.proxy.resources.filters import ANYONE
from spliceway.proxy.resources.names import first_value_key
from spliceway.proxy.resources.shapes import Shape, Unsaid

#: Parts of the request line, and the host, as headers.
_PARTS = (":method", ":path", ":authority")
#: A header's name: a token of RFC 9110 in lower case.
NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
#: Names whose first value Envoy can keep; others mean something else in its format strings.
_PLAIN_NAME = re.compile(r"[a-z0-9!#$&'*+.^_`~-]+")
_ESCAPED = re.compile(r"(?:[0-9A-Za-z]|\\x[0-9a-f]{2})*")
_BYTE = re.compile(r"\\x([0-9a-f]{2})")


class Group(NamedTuple):
    """All that decides whether a rule matches: rules that are equal in it match the same requests."""

    method: str
    path: str
    host: str
    headers: tuple[HeaderMatch, ...]
    tests: tuple[tuple[HttpTest, ...], ...] = ()


def group_in(policy: Any) -> Group:
    """The group that a Policy is for, if it is for any: whether it is, `policy_of` tells."""
    patterns: dict[str, str] = {}
    headers: list[HeaderMatch] = []
    tests: list[tuple[HttpTest, ...]] = []
    permissions = policy.permissions[0].and_rules.rules if policy.permissions else ()
    for permission in permissions:
        header = permission.header
        if permission.WhichOneof("rule") == "or_rules":
            tests.append(tuple(map(_test_in, permission.or_rules.rules)))
        elif header.name.startswith(":"):
            patterns[header.name] = header.string_match.safe_regex.regex
        elif header.WhichOneof("header_match_specifier") == "present_match":
            headers.append(HeaderMatch(header.name))
        elif header.string_match.WhichOneof("match_pattern") == "safe_regex":
            headers.append(HeaderMatch(header.name, _unescaped(header.string_match.safe_regex.regex)))
        else:
            headers.append(HeaderMatch(header.name, header.string_match.exact))
    method, path, host = (patterns.get(name, "") for name in _PARTS)
    return Group(method, path, host, tuple(headers), tuple(tests))


def policy_of(groups: Sequence[Group]) -> Shape:
    """The Policy for the requests that all of these match."""
    wanted: list[Shape] = []
    for group in groups:
        patterns = ((":method", group.method), (":path", group.path), (":authority", group.host))
        wanted += [_header(name, _regex(pattern)) for name, pattern in patterns if pattern]
        wanted += [_permission(match) for match in group.headers]
        wanted += [{"or_rules": {"rules": list(map(_test, tests))}} for tests in group.tests]
    permission = {"and_rules": {"rules": wanted}} if wanted else {"any": True}
    result: Shape = {"permissions": [permission], "principals": ANYONE}
    headers = [match for group in groups for match in group.headers]
    return result | {"condition": _condition(headers)} if headers else result


def first_values(matches: Iterable[HeaderMatch]) -> Shape | None:
    """Configuration of the filter that keeps first values for these conditions, None where none is needed."""
    names = sorted({match.name for match in matches if match.value is None})
    if not names:
        return None
    return {
        "on_request_headers": [
            {
                "object_key": first_value_key(name),
                "factory_key": "envoy.string",
                "format_string": {"text_format_source": {"inline_string": f"%REQ({name})%"}, "omit_empty_values": True},
            }
            for name in names
        ]
    }


def why_not(match: HeaderMatch) -> str:
    """Why there is no such condition, empty when there is. Never says the value."""
    if not (NAME if match.value is not None else _PLAIN_NAME).fullmatch(match.name):
        return "is no name of a header that can be asked for"
    try:
        (match.value or "").encode("latin-1")
    except UnicodeEncodeError:
        return "has characters beyond Latin-1, which no header has"
    return ""


def escaped(value: str) -> str:
    """An expression that matches exactly this value."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{ord(c) & 0xFF:02x}" for c in value)


def _test_in(permission: Any) -> HttpTest:
    """The test that a Permission is, if it is any."""
    negated = permission.WhichOneof("rule") == "not_rule"
    wanted: dict[str, str] = {}
    unless: dict[str, str] = {}
    for part in (permission.not_rule if negated else permission).and_rules.rules:
        opposite = part.WhichOneof("rule") == "not_rule"
        header = (part.not_rule if opposite else part).header
        (unless if opposite else wanted)[header.name] = header.string_match.safe_regex.regex
    method, path, host = (wanted.get(name, "") for name in _PARTS)
    no_method, no_path, no_host = (unless.get(name, "") for name in _PARTS)
    return HttpTest(method, path, host, no_method, no_path, no_host, negated)


def _test(test: HttpTest) -> Shape:
    parts = [_header(name, _regex(pattern)) for name, pattern in test.wanted]
    parts += [{"not_rule": _header(name, _regex(pattern))} for name, pattern in test.unless]
    meant = {"and_rules": {"rules": parts}}
    return {"not_rule": meant} if test.negated else meant


def _unescaped(pattern: str) -> str:
    """The value that `escaped` made the expression of; any other expression is left, and does not come out again."""
    return _BYTE.sub(lambda found: chr(int(found[1], 16)), pattern) if _ESCAPED.fullmatch(pattern) else pattern


def _permission(match: HeaderMatch) -> Shape:
    if match.value is None:
        return {"header": {"name": Unsaid(match.name), "present_match": True}}
    if match.value.isascii():
        return _header(match.name, {"exact": Unsaid(match.value)})
    return _header(match.name, _regex(escaped(match.value)))


def _regex(pattern: str) -> Shape:
    return {"safe_regex": {"regex": Unsaid(pattern)}}


def _header(name: str, string_match: Shape) -> Shape:
    return {"header": {"name": Unsaid(name), "string_match": string_match}}


def _condition(matches: Sequence[HeaderMatch]) -> Shape:
    """google.api.expr.v1alpha1.Expr: each header, all values joined, is what it should be. In pairs, as a tree."""
    parts = [_call("_==_", _call("bytes", _joined(match.name)), _wanted(match)) for match in matches]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [_call("_&&_", first, second) for first, second in pairs] + parts[len(parts) & ~1 :]
    _number(parts[0], 0)
    return parts[0]


def _wanted(match: HeaderMatch) -> Shape:
    if match.value is None:
        return _item({"ident_expr": {"name": "filter_state"}}, first_value_key(match.name))
    return {"const_expr": {"bytes_value": Unsaid(match.value.encode("latin-1"))}}


def _joined(name: str) -> Shape:
    return _item({"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": "headers"}}, name)


def _item(operand: Shape, key: str) -> Shape:
    return _call("_[_]", operand, {"const_expr": {"string_value": Unsaid(key)}})


def _call(function: str, *args: Shape) -> Shape:
    return {"call_expr": {"function": function, "args": list(args)}}


def _number(expression: Shape, last: int) -> int:
    """Ids of nodes, depth first; gives the last one."""
    last += 1
    expression["id"] = last
    for operand in expression.get("call_expr", {}).get("args", ()):
        last = _number(operand, last)
    if "select_expr" in expression:
        last = _number(expression["select_expr"]["operand"], last)
    return last
