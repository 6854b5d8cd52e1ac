"""HTTP decisions beyond the table of cases: nearest misses, Latin-1, what Envoy makes of slashes."""

from __future__ import annotations

import pytest

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleRef, RuleSet
from spliceway.policy.verdict import Reason, Verdict

RULES = RuleSet(1, "x", (HttpRule(7, "GET", "/articles/[0-9]+"), HttpRule(8, "POST", "/submit"), HttpRule(9, "PUT")))
NAMES = {7: RuleRef("CiliumNetworkPolicy default/api", "spec.ingress[0].toPorts[0].rules.http[0]")}


@pytest.mark.parametrize(
    ("method", "path", "miss"),
    [
        (
            "GET",
            "/x",
            "rule CiliumNetworkPolicy default/api spec.ingress[0].toPorts[0].rules.http[0]: "
            "method matches, path /x does not match /articles/[0-9]+",
        ),
        ("GET", "/submit", "rule 8: method GET does not match POST, path matches"),
        ("DELETE", "/x", "rule 9: method DELETE does not match PUT, path matches"),
        ("GET", "/a%2fb", "%2f in the path"),
        ("GET", "/a;b", "; in the path"),
        ("get", "/", "method get is not accepted"),
    ],
)
def test_nearest_miss(method: str, path: str, miss: str) -> None:
    assert decide(HttpRequest.of(method, path), RULES, NAMES).nearest_miss == miss


def test_no_rules_deny() -> None:
    found = decide(HttpRequest.of("GET", "/"), RuleSet(1, "x", ()))
    assert (found.verdict, found.reason, found.status) == (Verdict.DENY, Reason.HTTP_DENIED, 403)
    assert found.nearest_miss == "the rule set has no rules"


def test_allowed_names_the_rule_and_the_path_sent_upstream() -> None:
    found = decide(HttpRequest.of("GET", "//articles/./%31"), RULES)
    assert (found.verdict, found.rule, found.path, found.status) == (Verdict.ALLOW, 7, b"/articles/1", 200)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"//", b"//"),  # what Envoy's mergeSlashes makes of it
        (b"///", b"//"),
        (b"/\\", b"//"),
        (b"/a//", b"/a/"),
        (b"/a/../", b"/"),
        (b"/..", b"/"),
        (b"/a?", b"/a?"),
        (b"/a?b?c", b"/a?b?c"),
        (b"/%2b%2B", b"/%2b%2B"),
    ],
)
def test_normalised_as_envoy_does(target: bytes, path: bytes) -> None:
    assert normalise(target) == path


def test_every_byte_of_a_path_is_decided() -> None:
    """Accepted ones are stable: what is sent upstream is normalised to itself."""
    accepted = set()
    for byte in range(256):
        for target in (b"/a" + bytes((byte,)) + b"b", b"/a%%%02xb" % byte, b"/a%%%02Xb" % byte):
            try:
                path = normalise(target)
            except TargetError:
                continue
            assert normalise(path) == path
            accepted.add(path)
    assert all(0x20 < byte < 0x7F for path in accepted for byte in path)


def test_expressions_are_latin_1_and_whole() -> None:
    assert compile_regex("/\\xe9.").fullmatch("/éé".encode("latin-1"))
    assert not compile_regex("/.").fullmatch("/é".encode())  # two bytes
    assert not compile_regex("/a").fullmatch(b"/ab")
    assert not compile_regex("/a|/b").fullmatch(b"/ac")
    assert not compile_regex("/a$").fullmatch(b"/a\n")
    with pytest.raises(RegexError, match="ASCII"):
        compile_regex("é")


def test_headers_that_are_not_headers() -> None:
    for name, value in (("a b", "x"), ("", "x"), ("a", "x\ny"), ("a", "x\0")):
        request = HttpRequest.of("GET", "/submit", [("host", "server"), (name, value)])
        assert decide(request, RULES).reason is Reason.HTTP_MALFORMED


HOSTED = RuleSet(
    1,
    "x",
    (
        HttpRule(1, path="/hosted", host="api\\.example(:[0-9]+)?"),
        HttpRule(2, path="/exact", headers=(HeaderMatch("x-team", "blue"),)),
        HttpRule(3, path="/present", headers=(HeaderMatch("x-team"),)),
        HttpRule(4, path="/secret", headers=(HeaderMatch("x-token", "s3cret", secret=True),)),
        HttpRule(5, path="/two", headers=(HeaderMatch("x-team", "blue"), HeaderMatch("x-user"))),
    ),
)


@pytest.mark.parametrize(
    ("path", "headers", "rule", "miss"),
    [
        ("/hosted", [("Host", "api.example")], 1, ""),
        ("/hosted", [("Host", "api.example:8080")], 1, ""),
        # Literally as it came: case, a trailing dot and a port count.
        ("/hosted", [("Host", "API.example")], 0, "host API.example does not match api\\.example(:[0-9]+)?"),
        ("/hosted", [("Host", "api.example.")], 0, "host api.example. does not match"),
        ("/hosted", [("Host", "xapi.example")], 0, "host xapi.example does not match"),
        ("/hosted", [("Host", "apixexample")], 0, "host apixexample does not match"),
        ("/exact", [("Host", "h"), ("X-TEAM", "blue")], 2, ""),
        ("/exact", [("Host", "h"), ("x-team", "Blue")], 0, "header x-team is not blue"),
        ("/exact", [("Host", "h"), ("x-team", "blue,blue")], 0, "header x-team is not blue"),
        ("/exact", [("Host", "h")], 0, "header x-team is missing"),
        ("/exact", [("Host", "h"), ("x-team", "blue"), ("X-Team", "blue")], 0, "header x-team is there 2 times"),
        ("/present", [("Host", "h"), ("X-Team", "")], 3, ""),
        ("/present", [("Host", "h")], 0, "header x-team is missing"),
        ("/present", [("Host", "h"), ("x-team", "a"), ("x-team", "b")], 0, "header x-team is there 2 times"),
        ("/secret", [("Host", "h"), ("x-token", "s3cret")], 4, ""),
        ("/secret", [("Host", "h"), ("x-token", "guess")], 0, "header x-token is not the value of its secret"),
        ("/two", [("Host", "h"), ("x-team", "blue"), ("x-user", "u")], 5, ""),
        ("/two", [("Host", "h"), ("x-team", "red")], 0, "header x-team is not blue, header x-user is missing"),
    ],
)
def test_host_and_headers(path: str, headers: list[tuple[str, str]], rule: int, miss: str) -> None:
    found = decide(HttpRequest.of("GET", path, headers), HOSTED)
    assert (found.rule, found.reason) == (rule, Reason.HTTP_ALLOWED if rule else Reason.HTTP_DENIED)
    assert miss in found.nearest_miss
    assert bool(miss) == bool(found.nearest_miss)
    assert "s3cret" not in found.nearest_miss
    assert "guess" not in found.nearest_miss


def with_action(action: Mismatch, value: str | None = "good") -> RuleSet:
    return RuleSet(1, "x", (HttpRule(1, path="/x", headers=(HeaderMatch("x-a", value, mismatch=action),)),))


@pytest.mark.parametrize(
    ("action", "value", "sent", "changes", "received"),
    [
        # cilium/proxy, HeaderMatch::allowed: what each action does when the header is right, wrong, missing, twice
        (Mismatch.LOG, "good", ["good"], [], ["good"]),
        (Mismatch.LOG, "good", ["bad"], [(Mismatch.LOG, None)], ["bad"]),
        (Mismatch.LOG, "good", [], [(Mismatch.LOG, None)], []),
        (Mismatch.ADD, "good", ["good"], [], ["good"]),
        (Mismatch.ADD, "good", ["bad"], [(Mismatch.ADD, "good")], ["bad", "good"]),
        (Mismatch.ADD, "good", [], [(Mismatch.ADD, "good")], ["good"]),
        (Mismatch.DELETE, "good", ["good"], [], ["good"]),
        (Mismatch.DELETE, "good", ["bad"], [(Mismatch.DELETE, None)], []),
        (Mismatch.DELETE, "good", [], [], []),
        (Mismatch.DELETE, "good", ["bad", "good"], [(Mismatch.DELETE, None)], []),
        (Mismatch.DELETE, None, [], [], []),
        (Mismatch.REPLACE, "good", ["good"], [], ["good"]),
        (Mismatch.REPLACE, "good", ["bad"], [(Mismatch.REPLACE, "good")], ["good"]),
        (Mismatch.REPLACE, "good", [], [(Mismatch.REPLACE, "good")], ["good"]),
        (Mismatch.REPLACE, "good", ["bad", "good"], [(Mismatch.REPLACE, "good")], ["good"]),
    ],
)
def test_mismatch_actions(
    action: Mismatch,
    value: str | None,
    sent: list[str],
    changes: list[tuple[Mismatch, str | None]],
    received: list[str],
) -> None:
    request = HttpRequest.of("GET", "/x", [("Host", "h"), *(("X-A", text) for text in sent)])
    found = decide(request, with_action(action, value))
    assert found.verdict is Verdict.ALLOW
    assert [(change.action, change.value) for change in found.changes] == changes
    assert apply(request, found.changes).values(b"x-a") == [text.encode() for text in received]


def test_an_action_is_only_for_requests_that_the_rule_matches() -> None:
    rules = (
        HttpRule(1, path="/x|/y"),
        HttpRule(2, path="/x", headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.ADD),)),
        HttpRule(3, path="/x", headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.ADD),)),
        HttpRule(4, path="/x", headers=(HeaderMatch("x-b", "2", mismatch=Mismatch.ADD), HeaderMatch("x-c"))),
    )
    for path, added in (("/x", ["1"]), ("/y", [])):
        found = decide(HttpRequest.of("GET", path), RuleSet(1, "x", rules))
        assert (found.rule, [change.value for change in found.changes]) == (1, added)


def test_a_secret_is_not_shown_by_a_change() -> None:
    rules = (HttpRule(1, headers=(HeaderMatch("x-a", "s3cret", secret=True, mismatch=Mismatch.REPLACE),)),)
    found = decide(HttpRequest.of("GET", "/"), RuleSet(1, "x", rules))
    assert found.changes[0].value == "s3cret"
    assert "s3cret" not in repr(found)


ONLY_A, ONLY_B = (HttpRule(1, path="/a"),), (HttpRule(2, path="/b"),)


@pytest.mark.parametrize(
    ("rule_set", "path", "verdict", "reason", "rule"),
    [
        (RuleSet(1, "x", None, audit=ONLY_A), "/a", Verdict.ALLOW, Reason.HTTP_ALLOWED, 1),
        (RuleSet(1, "x", None, audit=ONLY_A), "/b", Verdict.ALLOW, Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", None, audit=()), "/a", Verdict.ALLOW, Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", None), "/a", Verdict.ALLOW, Reason.HTTP_ALLOWED, 0),
        (RuleSet(1, "x", ONLY_A, audit=ONLY_B), "/a", Verdict.ALLOW, Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", ONLY_A, audit=ONLY_B), "/b", Verdict.DENY, Reason.HTTP_DENIED, 0),
        # What could be read in two ways, or in none, passes where nothing is enforced.
        (RuleSet(1, "x", None, audit=ONLY_A), "/a;b", Verdict.ALLOW, Reason.HTTP_AMBIGUOUS, 0),
        (RuleSet(1, "x", None, audit=ONLY_A), "/a%2fb", Verdict.ALLOW, Reason.HTTP_MALFORMED, 0),
        (RuleSet(1, "x", None, audit=ONLY_A, also=RuleSet(2, "y", ONLY_B)), "/a%2fb", Verdict.DENY,
         Reason.HTTP_MALFORMED, 0),
        (RuleSet(1, "x", ONLY_A, audit=ONLY_B), "/a;b", Verdict.DENY, Reason.HTTP_AMBIGUOUS, 0),
        # Both ends
        (RuleSet(1, "x", ONLY_A, also=RuleSet(2, "y", ONLY_B)), "/a", Verdict.DENY, Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", ONLY_A, also=RuleSet(2, "y", (*ONLY_B, HttpRule(3)))), "/a", Verdict.ALLOW,
         Reason.HTTP_ALLOWED, 3),
        (RuleSet(1, "x", ONLY_A, also=RuleSet(2, "y", None, audit=ONLY_B)), "/a", Verdict.ALLOW,
         Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", None, audit=ONLY_A, also=RuleSet(2, "y", ONLY_B)), "/b", Verdict.ALLOW,
         Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", None, audit=ONLY_A, also=RuleSet(2, "y", ONLY_B)), "/a", Verdict.DENY,
         Reason.HTTP_DENIED, 0),
        (RuleSet(1, "x", None, audit=ONLY_A, also=RuleSet(2, "y", ONLY_B)), "/a;", Verdict.DENY,
         Reason.HTTP_AMBIGUOUS, 0),
        (RuleSet(1, "x", None, audit=ONLY_A, also=RuleSet(2, "y", None, audit=ONLY_B)), "/a;", Verdict.ALLOW,
         Reason.HTTP_AMBIGUOUS, 0),
    ],
)  # fmt: skip
def test_audit_and_both_ends(rule_set: RuleSet, path: str, verdict: Verdict, reason: Reason, rule: int) -> None:
    found = decide(HttpRequest.of("GET", path), rule_set)
    assert (found.verdict, found.reason, found.rule) == (verdict, reason, rule)
    assert found.status == (200 if verdict is Verdict.ALLOW else 400 if reason is Reason.HTTP_MALFORMED else 403)
    assert bool(found.nearest_miss) == reason.denies
    if verdict is Verdict.DENY and reason is Reason.HTTP_DENIED:
        assert found.also == (rule_set.also is not None)  # in these cases the server's end denies


def test_the_servers_rules_see_what_the_clients_rules_made_of_the_request() -> None:
    server = RuleSet(2, "y", (HttpRule(2, headers=(HeaderMatch("x-token", "t"),)),))
    adds = (HttpRule(1, headers=(HeaderMatch("x-token", "t", mismatch=Mismatch.REPLACE),)),)
    found = decide(HttpRequest.of("GET", "/"), RuleSet(1, "x", adds, also=server))
    assert (found.verdict, len(found.changes)) == (Verdict.ALLOW, 1)
    assert decide(HttpRequest.of("GET", "/"), RuleSet(1, "x", (HttpRule(1),), also=server)).verdict is Verdict.DENY
    # A set in audit changes nothing.
    dry = decide(HttpRequest.of("GET", "/"), RuleSet(1, "x", None, audit=adds, also=server))
    assert (dry.verdict, dry.changes) == (Verdict.DENY, ())


@pytest.mark.parametrize(
    ("path", "host", "headers", "nearest"),
    [
        # A rule whose path holds is nearer than one whose host or headers hold; a condition that holds counts, one that
        # is not there does not.
        ("/a", "x", [], 1),
        ("/z", "h", [], 2),
        ("/z", "x", [("x-a", "1")], 3),
        ("/z", "h", [("x-a", "1")], 2),
        ("/a", "h", [("x-a", "1")], 1),
    ],
)
def test_the_nearest_miss_is_the_rule_of_which_most_holds(
    path: str, host: str, headers: list[tuple[str, str]], nearest: int
) -> None:
    rules = (
        HttpRule(9, method="PUT"),
        HttpRule(1, "PUT", "/a"),
        HttpRule(2, "PUT", "/b", "h"),
        HttpRule(3, "PUT", "/b", "g", (HeaderMatch("x-a", "1"),)),
    )
    found = decide(HttpRequest.of("GET", path, [("host", host), *headers]), RuleSet(1, "x", rules))
    assert found.nearest_miss.startswith(f"rule {nearest}: method GET does not match PUT")
