"""Whether a request passes a rule set: one pure decision for the interpreter, the embedded proxy and the tests.

Order: what no proxy may pass on (400), what two servers could read differently (403), then the rules (403), those of
the client's end before those of the server's. Source: http.md, «one meaning in every data path».
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from spliceway.policy.httpmatch import HeaderChange, HttpRequest, apply, ask, text
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.table import RuleRef, RuleSet
from spliceway.policy.verdict import Reason, Verdict

__all__ = ["METHODS", "HeaderChange", "HttpDecision", "HttpRequest", "decide", "framed_target", "judge", "origin_form"]

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


class HttpDecision(msgspec.Struct, frozen=True):
    """Verdict on a request. `path` is the normalised `:path`, empty when it was refused before that.

    `rule` is the id of the rule that let it pass, 0 otherwise (where both ends have rules: the server's);
    `nearest_miss` says for people why none did. ALLOW with a reason that denies is audit: the request passes, and
    would not if the policies in audit mode were enforced. `changes`: what mismatch actions of the rules that match do
    to the request on its way, in order. `also`: it is the other end's rules that decided (`RuleSet.also`).
    `client_rule`: the rule of the client's end, where both have let it pass by one; `rule` is the server's then.
    """

    verdict: Verdict
    reason: Reason
    rule: int = 0
    path: bytes = b""
    nearest_miss: str = ""
    changes: tuple[HeaderChange, ...] = ()
    also: bool = False
    client_rule: int = 0

    @property
    def status(self) -> int:
        """HTTP status of the answer; 200 when the request passes."""
        return 200 if self.verdict is Verdict.ALLOW else STATUS[self.reason]


def decide(request: HttpRequest, rule_set: RuleSet, names: Mapping[int, RuleRef] | None = None) -> HttpDecision:
    """Whether the request passes. `names` are the rules of the table, for the nearest miss.

    Where no rules are enforced everything passes. What is malformed no proxy can take for a request there: the embedded
    one relays such a connection unread, and Envoy, which can't, refuses it all the same (docs/modes.md).
    """
    try:
        target = origin_form(request)
    except TargetError as refused:
        return _not_asked(rule_set, refused)
    return judge(request, target, rule_set, names)


def judge(
    request: HttpRequest,
    target: bytes,
    rule_set: RuleSet,
    names: Mapping[int, RuleRef] | None = None,
    *,
    explain: bool = True,
) -> HttpDecision:
    """The same for a request whose `origin_form` is known: `target`. `explain` False: without the nearest miss."""
    also = rule_set.also
    try:
        path = normalise(target)
    except TargetError as refused:
        return _not_asked(rule_set, refused)
    found = _one_end(request, path, rule_set, names, explain)
    if also is None or found.verdict is Verdict.DENY:
        return found
    # The server's end sees what the client's end makes of the request, as if two proxies stood in a row.
    return _both_ends(found, _one_end(apply(request, found.changes), path, also, names, explain))


def _not_asked(rule_set: RuleSet, refused: TargetError) -> HttpDecision:
    verdict = Verdict.DENY if rule_set.enforces else Verdict.ALLOW
    return HttpDecision(verdict, refused.reason, nearest_miss=refused.why)


def _one_end(
    request: HttpRequest, path: bytes, rule_set: RuleSet, names: Mapping[int, RuleRef] | None, explain: bool
) -> HttpDecision:
    passed = HttpDecision(Verdict.ALLOW, Reason.HTTP_ALLOWED, path=path)
    if rule_set.rules is not None:
        found = ask(request, path, rule_set.rules, names, explain=explain)
        if not found.rule:
            return HttpDecision(Verdict.DENY, Reason.HTTP_DENIED, 0, path, found.nearest_miss)
        passed = msgspec.structs.replace(passed, rule=found.rule, changes=found.changes)
    if rule_set.audit is not None:
        found = ask(request, path, rule_set.audit, names, explain=explain)
        if not found.rule:
            return msgspec.structs.replace(passed, reason=Reason.HTTP_DENIED, rule=0, nearest_miss=found.nearest_miss)
        passed = msgspec.structs.replace(passed, rule=passed.rule or found.rule)
    return passed


def _both_ends(client: HttpDecision, server: HttpDecision) -> HttpDecision:
    server = msgspec.structs.replace(server, also=True)
    if server.verdict is Verdict.DENY:
        return server
    changes = (*client.changes, *server.changes)
    for half in (client, server):
        if half.reason.denies:
            return msgspec.structs.replace(half, changes=changes)
    rule, client_rule = (server.rule, client.rule) if server.rule else (client.rule, 0)
    return msgspec.structs.replace(server, rule=rule, client_rule=client_rule, changes=changes)


def origin_form(request: HttpRequest) -> bytes:
    """The target as `/path?query`, once method, framing and host are known to be unambiguous. Raises TargetError."""
    if request.method not in METHODS:
        raise TargetError(Reason.HTTP_MALFORMED, f"method {text(request.method)} is not accepted")
    for name, value in request.headers:
        if not _HEADER_NAME.fullmatch(name) or any(byte in value for byte in b"\r\n\0"):
            raise TargetError(Reason.HTTP_MALFORMED, f"header {text(name)} is malformed")
    values = request.values
    return framed_target(request, values(b"host"), values(b"content-length"), values(b"transfer-encoding"))


def framed_target(
    request: HttpRequest, hosts: Sequence[bytes], lengths: Sequence[bytes], encodings: Sequence[bytes]
) -> bytes:
    """The same for headers whose names and values are known to be sound. Raises TargetError.

    `hosts`, `lengths`, `encodings`: the values of Host, Content-Length and Transfer-Encoding.
    """
    if request.method not in METHODS:
        raise TargetError(Reason.HTTP_MALFORMED, f"method {text(request.method)} is not accepted")
    if encodings and (lengths or request.version == "1.0"):
        with_what = "Content-Length" if lengths else "HTTP/1.0"
        raise TargetError(Reason.HTTP_MALFORMED, f"Transfer-Encoding with {with_what}")
    if encodings and [value.lower() for value in encodings] != [b"chunked"]:
        raise TargetError(Reason.HTTP_MALFORMED, "Transfer-Encoding other than chunked")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise TargetError(Reason.HTTP_MALFORMED, "Content-Length twice or not a number")
    if len(hosts) != 1:
        raise TargetError(Reason.HTTP_MALFORMED, f"{len(hosts)} Host headers" if hosts else "no Host header")
    if not _HOST.fullmatch(hosts[0]):
        raise TargetError(Reason.HTTP_MALFORMED, f"Host {text(hosts[0]) or '(empty)'} is not accepted")
    if request.path[:1] != b"/" and (found := _ABSOLUTE.fullmatch(request.path)):
        if found[1].lower() != hosts[0].lower():
            raise TargetError(Reason.HTTP_MALFORMED, "the target names another host than Host")
        return found[2] or b"/"
    return request.path
