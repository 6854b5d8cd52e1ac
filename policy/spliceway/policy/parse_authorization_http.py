"""What an AuthorizationPolicy asks of requests (`to[].operation`), as expressions.

Istio knows exact values, prefixes, suffixes and «is there»; paths without their query, hosts without regard to case,
path templates. Here requests are normalised more than there (slashes merged, what is ambiguous refused), so that a path
which no request has any more is refused: a rule about it would never hold.
Sources: Istio, AuthorizationPolicy «Operation»; istio/istio, pilot/pkg/security/authz/matcher, pkg/config/security.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.model import HttpMatch
from spliceway.policy.parse_authorization_source import listed
from spliceway.policy.regex import RegexError, compile_regex

_LITERAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/_~@:,=&%!'-")
#: A method, and a host: what `policy.http` takes for one.
_METHOD = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()+=%:\[\]-]+")
#: What can be in a normalised path; `;` is refused in requests.
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()+,:@=/-]|%[0-9A-Fa-f]{2})*")
_ONE, _MANY = "{*}", "{**}"
#: A path goes on with its query, or ends.
_QUERY = r"(\?.*)?"
#: What the parts of a template stand for in Envoy (`istio.patterns.TEMPLATE`).
_SEGMENT = r"[A-Za-z0-9._~%!$&'()+,;:@=-]+"
_SEGMENTS = r"[A-Za-z0-9._~%!$&'()+,;:@=/-]*"

_Read = Callable[[str, Where], str]


def parse_http(fields: Fields, path: str) -> HttpMatch | None:
    """What an operation asks of requests, named by its field path; None: nothing."""
    found = {}
    for name, read in (("methods", _method), ("paths", _path), ("hosts", _host)):
        for key in (name, f"not{name[0].upper()}{name[1:]}"):
            if fields.has(key):
                found[key] = _expression(fields, key, read)
    if not found:
        return None
    method, target, host, no_method, no_path, no_host = (
        found.get(key, "") for key in ("methods", "paths", "hosts", "notMethods", "notPaths", "notHosts")
    )
    return HttpMatch(path, method, target, host, (), no_method, no_path, no_host)


def _expression(fields: Fields, key: str, read: _Read) -> str:
    where = fields.where.at(key)
    made = "|".join(dict.fromkeys(read(text, place) for place, text in listed(fields, key)))
    try:
        compile_regex(made)
    except RegexError as error:
        where.refuse(f"{error}: fewer values in one operation, and more operations, say the same")
    return made


def _method(text: str, where: Where) -> str:
    first, text, last = _ends(text, where)
    if text and not _METHOD.fullmatch(text):
        where.refuse(f"{shown(text)} is no method")
    return _between(first, escaped(text), last) if text else ".+"


def _host(text: str, where: Where) -> str:
    """Without regard to case; a port is part of it, as it is in Istio."""
    first, text, last = _ends(text, where)
    if text and not _HOST.fullmatch(text):
        where.refuse(f"{shown(text)} is no host")
    return f"(?i:{_between(first, escaped(text), last)})" if text else ".+"


def _path(text: str, where: Where) -> str:
    if "{" in text or "}" in text:
        return _template(text, where)
    first, text, last = _ends(text, where)
    if not text:
        return ".+"
    _check_path(text, where, begins=not first, ends=not last)
    if last:
        return escaped(text) + ".*"
    return ("[^?]*" if first else "") + escaped(text) + _QUERY


def _template(text: str, where: Where) -> str:
    """`{*}` is one segment, `{**}` any number of them, and stands behind all `{*}`."""
    if "*" in text.replace(_MANY, "").replace(_ONE, ""):
        where.refuse(f"{shown(text)}: a template has no other wildcards")
    found, many = [], False
    for segment in text.split("/"):
        if segment in (_ONE, _MANY):
            if many:
                where.refuse(f"{shown(text)}: nothing but text may be behind {{**}}")
            many = segment == _MANY
            found.append(_SEGMENTS if many else _SEGMENT)
        elif "{" in segment or "}" in segment:
            where.refuse(f"{shown(text)}: only {{*}} and {{**}}, each a whole segment")
        else:
            found.append(escaped(segment))
    _check_path(text.replace(_MANY, "x").replace(_ONE, "x"), where, begins=True, ends=True)
    return "/".join(found) + _QUERY


def _check_path(text: str, where: Where, *, begins: bool, ends: bool) -> None:
    """Refuse what no path has that gets as far as the rules. `begins`, `ends`: it is a path from there, or to there."""
    if begins and not text.startswith("/"):
        where.refuse(f"{shown(text)} does not begin with /")
    if not _PATH.fullmatch(text):
        where.refuse(f"{shown(text)} has what no path has: no query, no `;`, no incomplete or odd characters")
    segment = "" if begins else "x"  # what comes before it is not known, nor what comes behind
    whole = ("" if begins else "/") + segment + text + ("" if ends else "x")
    try:
        normal = normalise(whole.encode())
    except TargetError as error:
        where.refuse(f"{shown(text)}: {error.why}, so that such a request is always refused")
    if normal != whole.encode():
        where.refuse(f"{shown(text)}: requests are normalised before they are asked, and then have no such path")


def _ends(text: str, where: Where) -> tuple[bool, str, bool]:
    """Whether anything may come first, the text, and whether anything may come last."""
    if text == "*":
        return True, "", True
    first, last = text.startswith("*"), text.endswith("*")
    inner = text[first : len(text) - last]
    if (first and last) or "*" in inner or not inner:
        where.refuse(f"{shown(text)}: «*» is a wildcard at one end only")
    return first, inner, last


def _between(first: bool, text: str, last: bool) -> str:
    return (".*" if first else "") + text + (".*" if last else "")


def escaped(text: str) -> str:
    """An expression for this text alone, which is visible ASCII."""
    return "".join(c if c in _LITERAL else f"\\{c}" for c in text)
