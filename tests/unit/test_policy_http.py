"""HTTP decisions beyond the table of cases: nearest misses, Latin-1, what Envoy makes of slashes."""

from __future__ import annotations

import pytest

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HttpRule, RuleRef, RuleSet
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
