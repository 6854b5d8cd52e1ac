"""Rule sets of one end and of both, in force and in audit, with headers that are changed; and what requests get."""

from __future__ import annotations

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.policy.verdict import Reason, Verdict

A, B, C = (HttpRule(number, path=f"/{letter}.*") for number, letter in ((11, "a"), (12, "b"), (13, "c")))
ANY = HttpRule(14)
PAIR, AUDIT, NOBODY, BESIDE, CLIENT_AUDIT, SERVER_AUDIT, BOTH_AUDIT = range(1, 8)
ADD, DELETE, REPLACE, LOG, PAIRED, SEVERAL, SECOND, AUDITED, GIVEN = range(11, 20)
ALLOWED, DENIED, AMBIGUOUS, MALFORMED = (
    Reason.HTTP_ALLOWED,
    Reason.HTTP_DENIED,
    Reason.HTTP_AMBIGUOUS,
    Reason.HTTP_MALFORMED,
)


def _header(name: str, value: str | None, action: Mismatch) -> HeaderMatch:
    return HeaderMatch(name, value, mismatch=action)


def with_action(rule: int, action: Mismatch, value: str | None = "right", path: str = "") -> HttpRule:
    """A rule with one condition, on x-a, and what to do where it does not hold."""
    return HttpRule(rule, path=path, headers=(_header("x-a", value, action),))


def other(*rules: HttpRule, audit: tuple[HttpRule, ...] | None = None) -> RuleSet:
    """The other end."""
    return RuleSet(99, "other end", rules or None, audit)


SETS = (
    RuleSet(PAIR, "pair", (HttpRule(21, "GET"), HttpRule(22, path="/b.*")), also=other(A, B)),
    RuleSet(AUDIT, "audit", None, audit=(A,)),
    RuleSet(NOBODY, "nobody", None, audit=()),
    RuleSet(BESIDE, "beside", (A, B), audit=(HttpRule(23, path="/b.*"),)),
    RuleSet(CLIENT_AUDIT, "client audit", None, audit=(A,), also=other(A, B)),
    RuleSet(SERVER_AUDIT, "server audit", (A, B), also=other(audit=(A,))),
    RuleSet(BOTH_AUDIT, "both audit", None, audit=(A, B), also=other(audit=(A,))),
    RuleSet(ADD, "add", (with_action(31, Mismatch.ADD),)),
    RuleSet(DELETE, "delete", (with_action(31, Mismatch.DELETE),)),
    RuleSet(REPLACE, "replace", (with_action(31, Mismatch.REPLACE),)),
    RuleSet(LOG, "log", (with_action(31, Mismatch.LOG),)),
    # The client's end gives a token, the server's end asks for it.
    RuleSet(
        PAIRED,
        "paired",
        (with_action(31, Mismatch.REPLACE, path="/[ab].*"), with_action(32, Mismatch.DELETE, path="/c"), ANY),
        also=other(HttpRule(33, headers=(HeaderMatch("x-a", "right"),)), HttpRule(34, headers=(HeaderMatch("x-a"),))),
    ),
    RuleSet(
        SEVERAL,
        "several",
        (
            HttpRule(41, path="/a.*", headers=(HeaderMatch("x-b"), _header("x-a", "one", Mismatch.ADD))),
            HttpRule(42, "GET", headers=(_header("x-a", "two", Mismatch.ADD), _header("x-c", None, Mismatch.LOG))),
            HttpRule(43, path="/a.*"),
            HttpRule(44, "GET", headers=(_header("x-a", "two", Mismatch.ADD),)),
            HttpRule(45, path="/a/d", headers=(_header("x-a", "two", Mismatch.DELETE),)),
        ),
    ),
    RuleSet(SECOND, "second", (B,), also=other(with_action(51, Mismatch.REPLACE, "caf\xe9 100%"))),
    RuleSet(
        GIVEN,
        "given",
        (with_action(61, Mismatch.REPLACE, path="/a"), ANY),
        also=other(HttpRule(62, headers=(HeaderMatch("x-a"),))),
    ),
    RuleSet(AUDITED, "audited", None, audit=(with_action(52, Mismatch.DELETE),)),
)

#: rule set, method, path, verdict, reason, rule, rule of the client
VERDICTS = [
    (PAIR, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 21),
    (PAIR, "GET", "/b", Verdict.ALLOW, ALLOWED, 12, 21),
    (PAIR, "POST", "/b", Verdict.ALLOW, ALLOWED, 12, 22),
    (PAIR, "POST", "/a", Verdict.DENY, DENIED, 0, 0),  # the client's end refuses
    (PAIR, "GET", "/c", Verdict.DENY, DENIED, 0, 0),  # the server's end refuses
    (PAIR, "POST", "/c", Verdict.DENY, DENIED, 0, 0),
    (PAIR, "GET", "/a;x", Verdict.DENY, AMBIGUOUS, 0, 0),
    (AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 0),
    (AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (AUDIT, "GET", "/a;x", Verdict.ALLOW, AMBIGUOUS, 0, 0),
    (AUDIT, "GET", "/b%00", Verdict.DENY, MALFORMED, 0, 0),
    (NOBODY, "GET", "/a", Verdict.ALLOW, DENIED, 0, 0),
    (NOBODY, "GET", "/a%25", Verdict.ALLOW, AMBIGUOUS, 0, 0),
    (BESIDE, "GET", "/a", Verdict.ALLOW, DENIED, 0, 0),
    (BESIDE, "GET", "/b", Verdict.ALLOW, ALLOWED, 12, 0),
    (BESIDE, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (BESIDE, "GET", "/b;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (CLIENT_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (CLIENT_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (CLIENT_AUDIT, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (CLIENT_AUDIT, "GET", "/a;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (SERVER_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (SERVER_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (SERVER_AUDIT, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (SERVER_AUDIT, "GET", "/a;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (BOTH_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (BOTH_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (BOTH_AUDIT, "GET", "/c", Verdict.ALLOW, DENIED, 0, 0),
    (BOTH_AUDIT, "GET", "/c;", Verdict.ALLOW, AMBIGUOUS, 0, 0),
]

#: rule set, method, path, headers, rule, headers x-a as they reach the server, mismatches
CHANGES = [
    (ADD, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (ADD, "GET", "/", ["X-A: wrong"], 31, ["wrong", "right"], ("x-a",)),
    (ADD, "GET", "/", [], 31, ["right"], ("x-a",)),
    (ADD, "GET", "/", ["X-A: right", "X-A: right"], 31, ["right", "right", "right"], ("x-a",)),
    (DELETE, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (DELETE, "GET", "/", ["X-A: wrong"], 31, [], ("x-a",)),
    (DELETE, "GET", "/", [], 31, [], ()),
    (DELETE, "GET", "/", ["X-A: right", "X-A: right"], 31, [], ("x-a",)),
    (REPLACE, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (REPLACE, "GET", "/", ["X-A: wrong"], 31, ["right"], ("x-a",)),
    (REPLACE, "GET", "/", [], 31, ["right"], ("x-a",)),
    (REPLACE, "GET", "/", ["X-A: a", "X-B: 1", "X-A: right"], 31, ["right"], ("x-a",)),
    (LOG, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (LOG, "GET", "/", ["X-A: wrong"], 31, ["wrong"], ("x-a",)),
    (LOG, "GET", "/", [], 31, [], ("x-a",)),
    (PAIRED, "GET", "/a", ["X-A: wrong"], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/b", [], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/d", ["X-A: wrong"], 34, ["wrong"], ()),
    (PAIRED, "GET", "/a", ["X-A: w", "X-A: right"], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/d", [], 0, None, ()),
    (PAIRED, "GET", "/c", ["X-A: wrong"], 0, None, ("x-a",)),
    (PAIRED, "GET", "/c", ["X-A: right"], 33, ["right"], ()),
    (SEVERAL, "GET", "/a", ["X-B: 1"], 41, ["one", "two"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-A: two"], 41, ["two", "one"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-A: one"], 41, ["one", "two"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-B: 1", "X-C: 1"], 42, ["two"], ("x-a",)),
    (SEVERAL, "GET", "/b", ["X-C: 1"], 42, ["two"], ("x-a",)),
    (SEVERAL, "POST", "/a", [], 43, [], ()),
    (SEVERAL, "POST", "/a", ["X-B: 1"], 41, ["one"], ("x-a",)),
    (SEVERAL, "GET", "/a/d", ["X-A: zero", "X-C: 1"], 42, [], ("x-a",)),
    (SEVERAL, "POST", "/b", [], 0, None, ()),
    (SECOND, "GET", "/b", ["X-A: wrong"], 51, ["caf\xe9 100%"], ("x-a",)),
    (SECOND, "GET", "/b", ["X-A: caf\xe9 100%"], 51, ["caf\xe9 100%"], ()),
    (SECOND, "GET", "/a", ["X-A: wrong"], 0, None, ()),
    (GIVEN, "GET", "/a", [], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/a", ["X-A: wrong"], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/a", ["X-A: a", "X-A: b"], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/b", [], 0, None, ()),
    (GIVEN, "GET", "/b", ["X-A: a", "X-A: b"], 0, None, ()),
    (GIVEN, "GET", "/b", ["X-A: a"], 62, ["a"], ()),
    (AUDITED, "GET", "/", ["X-A: wrong"], 52, ["wrong"], ()),
]
