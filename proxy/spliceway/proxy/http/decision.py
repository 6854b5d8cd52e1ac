"""What a rule set makes of a request: the verdict, and the head that is sent upstream. Pure.

`policy.http` is the reference, and is asked whenever something has to be explained, as often as there is time for. Rule
sets that only ask for method, path and host (nearly all) are asked by expressions that are compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from spliceway.policy.http import HttpDecision, judge
from spliceway.policy.httpmatch import HttpRequest, apply
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.table import HttpRule, HttpTest, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http.head import Head
from spliceway.proxy.http.matchers import Matcher, exact, matcher, sure

_Tests = tuple[tuple[HttpTest, ...], ...]
_WEBSOCKET = b"websocket"
#: Upgrades to HTTP/2 on the same connection are never offered to the server: what followed could not be judged.
_H2C = b"h2c"
_NOT_UPGRADED = HttpDecision(
    Verdict.DENY, Reason.HTTP_MALFORMED, nearest_miss="an upgrade to something else than websocket"
)


class Judged(NamedTuple):
    """A decision, and the head for upstream, empty when it is denied.

    `mismatches`: names of headers that were not as rules want them. `status`: of the proxy's own answer, 200 for none.
    """

    decision: HttpDecision
    forward: bytes
    mismatches: tuple[str, ...]
    status: int


class _Test(NamedTuple):
    """A test: places of method, path and host, each with what it must be or must not be."""

    wanted: tuple[tuple[int, Matcher], ...]
    unless: tuple[tuple[int, Matcher], ...]
    negated: bool


class _Compiled(NamedTuple):
    rule: int
    method: Matcher | None
    path: Matcher | None
    host: Matcher | None
    tests: tuple[tuple[_Test, ...], ...]


class Judge:
    """Asks one rule set."""

    __slots__ = ("_explains", "_simple", "_size", "enforces", "rule_set")

    def __init__(self, rule_set: RuleSet, explains: Callable[[int], bool] = lambda _rules: True) -> None:
        """`explains`: whether the nearest miss among so many rules and tests may be looked for, at far more than a no.

        Raises RegexError for an expression that can't be compiled.
        """
        self.rule_set = rule_set
        self.enforces = rule_set.enforces
        self._explains = explains
        self._simple = _simple(rule_set)
        self._size = sum(1 + sum(map(len, rule.tests)) for rule in _rules(rule_set))

    def __repr__(self) -> str:
        return f"<Judge of {self.rule_set.name}{'' if self._simple is None else ', simple'}>"

    def judge(self, head: Head) -> Judged:
        """The same answer for the same head, remembered in it for the rule set that asked last."""
        if head.judge is not self:
            head.judged = self._judge(head)
            head.judge = self
        judged: Judged = head.judged
        return judged

    def _judge(self, head: Head) -> Judged:
        if head.upgrade and head.upgrade not in (_WEBSOCKET, _H2C):
            return Judged(_NOT_UPGRADED, b"", (), 403)
        decision = self._decide(head)
        if decision.verdict is Verdict.DENY:
            return Judged(decision, b"", (), decision.status)
        names = tuple(sorted({change.name for change in decision.changes}))
        return Judged(decision, forwarded(head, decision), names, 200)

    def _decide(self, head: Head) -> HttpDecision:
        request, rule_set = head.request, self.rule_set
        if self._simple is None:
            found = judge(request, head.target, rule_set, explain=False)
            # Only what is refused, or would be, has something to explain, and takes of what there is time for.
            if found.reason is Reason.HTTP_DENIED and self._explains(self._size):
                found = judge(request, head.target, rule_set)
            return found
        try:
            path = normalise(head.target)
        except TargetError:
            return judge(request, head.target, rule_set)
        for rule in self._simple:
            if _all(rule, request, path, head.authority):
                return HttpDecision(Verdict.ALLOW, Reason.HTTP_ALLOWED, rule.rule, path)
        if any(_surely(rule, request, path, head.authority) for rule in self._simple) or self._explains(self._size):
            return judge(request, head.target, rule_set)
        return HttpDecision(Verdict.DENY, Reason.HTTP_DENIED, 0, path)


def _all(rule: _Compiled, request: HttpRequest, path: bytes, host: bytes) -> bool:
    return (
        (rule.method is None or rule.method(request.method))
        and (rule.path is None or rule.path(path))
        and (rule.host is None or rule.host(host))
        and (not rule.tests or _passes(rule, (request.method, path, host)))
    )


def _surely(rule: _Compiled, request: HttpRequest, path: bytes, host: bytes) -> bool:
    return (
        (rule.method is None or sure(rule.method, request.method))
        and (rule.path is None or sure(rule.path, path))
        and (rule.host is None or sure(rule.host, host))
        and _passes(rule, (request.method, path, host))
    )


def _passes(rule: _Compiled, parts: tuple[bytes, bytes, bytes]) -> bool:
    """Whether of each group of tests one holds."""
    for group in rule.tests:
        for test in group:
            holds = all(asked(parts[part]) for part, asked in test.wanted) and not any(
                asked(parts[part]) for part, asked in test.unless
            )
            if holds is not test.negated:
                break
        else:
            return False
    return True


def forwarded(head: Head, decision: HttpDecision) -> bytes:
    """The head as it is sent upstream: written anew from what was understood, in the order and case it came in."""
    request = head.request
    if decision.changes:
        request = apply(request, decision.changes)
    headers = request.headers
    if head.upgrade == _H2C:
        headers = _without_h2c(headers)
    path = decision.path or head.target  # in audit the target may be one that can't be normalised
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"%b %b HTTP/%b\r\n%b\r\n" % (request.method, path, request.version.encode(), lines)


def _without_h2c(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """Headers without the wish to upgrade to HTTP/2, as Envoy takes it out."""
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower in (b"upgrade", b"http2-settings"):
            continue
        if lower == b"connection":
            tokens = [token.strip(b" \t") for token in value.split(b",")]
            left = [token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings")]
            if not left:
                continue
            value = b", ".join(left)
        kept.append((name, value))
    return tuple(kept)


def _simple(rule_set: RuleSet) -> tuple[_Compiled, ...] | None:
    """The rules, compiled, when nothing but method, path and host decides; else None (compiled all the same)."""
    every = _rules(rule_set)
    known: dict[_Tests, tuple[tuple[_Test, ...], ...]] = {}  # rules mostly have all the same
    compiled = tuple(_compile(rule, known) for rule in every)
    plain = rule_set.also is None and rule_set.audit is None and rule_set.rules is not None
    return compiled if plain and not any(rule.headers for rule in every) else None


def _rules(rule_set: RuleSet) -> list[HttpRule]:
    ends = [rule_set, *([rule_set.also] if rule_set.also is not None else [])]
    return [rule for end in ends for rule in (*(end.rules or ()), *(end.audit or ()))]


def _compile(rule: HttpRule, known: dict[_Tests, tuple[tuple[_Test, ...], ...]]) -> _Compiled:
    if (tests := known.get(rule.tests)) is None:
        tests = known[rule.tests] = tuple(tuple(map(_compile_test, group)) for group in rule.tests)
    method, path, host = (matcher(text) if text else None for text in (rule.method, rule.path, rule.host))
    return _Compiled(rule.rule, method, path, host, tests)


def _compile_test(test: HttpTest) -> _Test:
    parts = (test.method, test.path, test.host), (test.unless_method, test.unless_path, test.unless_host)
    wanted, unless = (tuple((part, exact(text)) for part, text in enumerate(texts) if text) for texts in parts)
    return _Test(wanted, unless, test.negated)
