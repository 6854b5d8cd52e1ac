"""Whether a request passes a rule set: one pure decision for the interpreter, the embedded proxy and the tests.

Order: what no proxy may pass on (400), what two servers could read differently (403), then the rules (403).
Source: http.md, «one meaning in every data path».
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.regex import compile_regex
from spliceway.policy.table import HttpRule, RuleRef, RuleSet
from spliceway.policy.verdict import Reason, Verdict

#: Methods that Envoy's HTTP/1 parser knows, without CONNECT: what it would connect to is no path.
METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE MSEARCH NOTIFY OPTIONS "
    b"PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK "
    b"UNSUBSCRIBE".split()
)
#: Status of each refusal.
STATUS = {Reason.HTTP_ALLOWED: 200, Reason.HTTP_DENIED: 403, Reason.HTTP_AMBIGUOUS: 403, Reason.HTTP_MALFORMED: 400}

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
#: Host: no userinfo, no list, nothing that ends a host (RFC 9110, 7.2).
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+=%:\[\]-]+")
_HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"[0-9]{1,19}")


class HttpRequest(msgspec.Struct, frozen=True):
    """Head of a request. `path` is the request target as it came; header names in any case, values without margins."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    version: str = "1.1"

    @classmethod
    def of(cls, method: str, path: str, headers: Iterable[tuple[str, str]] = (("host", "server"),)) -> HttpRequest:
        """From text: characters are Latin-1 bytes. Raises UnicodeEncodeError for others."""
        pairs = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
        return cls(method.encode("latin-1"), path.encode("latin-1"), pairs)

    def values(self, name: bytes) -> list[bytes]:
        """Values of a header; `name` is in lower case."""
        return [value for key, value in self.headers if key.lower() == name]


class HttpDecision(msgspec.Struct, frozen=True):
    """Verdict on a request. `path` is the normalised `:path`, empty when it was refused before that.

    `rule` is the id of the rule that let it pass, 0 otherwise; `nearest_miss` says for people why none did.
    """

    verdict: Verdict
    reason: Reason
    rule: int = 0
    path: bytes = b""
    nearest_miss: str = ""

    @property
    def status(self) -> int:
        """HTTP status of the answer; 200 when the request passes."""
        return STATUS[self.reason]


def decide(request: HttpRequest, rule_set: RuleSet, names: Mapping[int, RuleRef] | None = None) -> HttpDecision:
    """Whether any rule of the set matches. `names` are the rules of the table, for the nearest miss."""
    try:
        path = normalise(_origin_form(request))
    except TargetError as refused:
        return HttpDecision(Verdict.DENY, refused.reason, nearest_miss=refused.why)
    misses: list[tuple[int, str]] = []
    for rule in rule_set.rules or ():
        method_fits = _fits(rule.method, request.method)
        path_fits = _fits(rule.path, path)
        if method_fits and path_fits:
            return HttpDecision(Verdict.ALLOW, Reason.HTTP_ALLOWED, rule.rule, path)
        # A condition that is there and holds says more than one that is not there.
        said = 4 * (path_fits and bool(rule.path)) + 2 * (method_fits and bool(rule.method))
        near = said + (path_fits or method_fits)
        misses.append((near, _miss(rule, request.method, path, method_fits, path_fits, names)))
    nearest = max(misses, key=lambda miss: miss[0])[1] if misses else "the rule set has no rules"
    return HttpDecision(Verdict.DENY, Reason.HTTP_DENIED, 0, path, nearest)


def _origin_form(request: HttpRequest) -> bytes:
    """The target as `/path?query`, once method, framing and host are known to be unambiguous."""
    if request.method not in METHODS:
        raise TargetError(Reason.HTTP_MALFORMED, f"method {_text(request.method)} is not accepted")
    _check_headers(request)
    hosts = request.values(b"host")
    if len(hosts) != 1:
        raise TargetError(Reason.HTTP_MALFORMED, f"{len(hosts)} Host headers")
    if not _HOST.fullmatch(hosts[0]):
        raise TargetError(Reason.HTTP_MALFORMED, f"Host {_text(hosts[0]) or '(empty)'} is not accepted")
    if found := _ABSOLUTE.fullmatch(request.path):
        if found[1].lower() != hosts[0].lower():
            raise TargetError(Reason.HTTP_MALFORMED, "the target names another host than Host")
        return found[2] or b"/"
    return request.path


def _check_headers(request: HttpRequest) -> None:
    for name, value in request.headers:
        if not _HEADER_NAME.fullmatch(name) or any(byte in value for byte in b"\r\n\0"):
            raise TargetError(Reason.HTTP_MALFORMED, f"header {_text(name)} is malformed")
    lengths = request.values(b"content-length")
    encodings = request.values(b"transfer-encoding")
    if encodings and (lengths or request.version == "1.0"):
        with_what = "Content-Length" if lengths else "HTTP/1.0"
        raise TargetError(Reason.HTTP_MALFORMED, f"Transfer-Encoding with {with_what}")
    if encodings and [value.lower() for value in encodings] != [b"chunked"]:
        raise TargetError(Reason.HTTP_MALFORMED, "Transfer-Encoding other than chunked")
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise TargetError(Reason.HTTP_MALFORMED, "Content-Length twice or not a number")


def _fits(pattern: str, value: bytes) -> bool:
    return not pattern or compile_regex(pattern).fullmatch(value) is not None


def _miss(
    rule: HttpRule,
    method: bytes,
    path: bytes,
    method_fits: bool,
    path_fits: bool,
    names: Mapping[int, RuleRef] | None,
) -> str:
    name = names.get(rule.rule) if names else None
    parts = [
        f"method {'matches' if method_fits else f'{_text(method)} does not match {rule.method}'}",
        f"path {'matches' if path_fits else f'{_text(path)} does not match {rule.path}'}",
    ]
    return f"rule {name or rule.rule}: {', '.join(parts)}"


def _text(value: bytes) -> str:
    """Bytes as a message shows them: short and printable."""
    text = value[:200].decode("latin-1")
    return text if text.isprintable() else repr(text)[1:-1]
