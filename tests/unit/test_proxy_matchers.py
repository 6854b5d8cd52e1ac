"""Plain expressions that are compared instead of asked of RE2 mean what RE2 says, and rules what the reference says."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.http import decide
from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HttpRule, HttpTest, RuleSet
from spliceway.proxy.http.decision import Judge
from spliceway.proxy.http.head import read_head
from spliceway.proxy.http.matchers import exact, matcher
from support.envoycases import raw_of
from support.generated_http import generated_request, generated_rule_sets

#: Pieces that are nearly plain: what is taken for a literal by mistake shows soon.
PIECES = st.sampled_from(
    ["GET", "POST", "/a", "/b", "|", ".*", "(.*)", ".", "*", "a", "A", "-", "#", "&", "(", ")", "$"]
)
PATTERNS = st.lists(PIECES, max_size=5).map("".join)
VALUES = st.lists(st.sampled_from([b"GET", b"POST", b"/a", b"/b", b"|", b".", b"*", b"a", b"A", b"-", b"#", b"\xff"]))


@settings(max_examples=1000, deadline=None)
@given(PATTERNS, VALUES.map(b"".join))
def test_equal_to_re2(pattern: str, value: bytes) -> None:
    try:
        wanted = compile_regex(pattern).fullmatch(value) is not None
    except RegexError:
        with pytest.raises(RegexError):
            matcher(pattern)
        return
    assert matcher(pattern)(value) is wanted
    assert exact(pattern)(value) is wanted


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("GET", [b"GET"], [b"GETS", b"get", b"", b"AGET"]),
        ("GET|POST", [b"GET", b"POST"], [b"GET|POST", b"PUT", b""]),
        ("/pub/.*", [b"/pub/", b"/pub/a?b"], [b"/pub", b"/Pub/a"]),
        ("/pub(.*)", [b"/pub", b"/public"], [b"/pu"]),
        (".*", [b"", b"anything"], []),
        ("/a.c", [b"/abc", b"/a.c", b"/a\xffc"], [b"/ac"]),
        ("/a|/b.*", [b"/a", b"/b", b"/bc"], [b"/ac"]),
    ],
)
def test_by_hand(pattern: str, fits: list[bytes], does_not: list[bytes]) -> None:
    asked = matcher(pattern)
    assert [value for value in fits if not asked(value)] == []
    assert [value for value in does_not if asked(value)] == []


def test_rules_with_tests_are_asked_as_the_reference_asks_them() -> None:
    draw, seen = Random(7), Counter[tuple[bool, bool]]()
    for made in generated_rule_sets(150, draw):
        rules = tuple(msgspec.structs.replace(rule, headers=()) for rule in made.rules or ())
        rule_set = RuleSet(1, "", rules)
        judge = Judge(rule_set)
        assert repr(judge).endswith(", simple>")
        for _ in range(10):
            request = generated_request(draw)
            head = read_head(raw_of(request), 100)
            expected = decide(request, rule_set)
            assert judge.judge(head).decision == expected, (rule_set, request)
            matched = next((rule for rule in rules if rule.rule == expected.rule), None)
            seen[matched is not None, bool(matched and matched.tests)] += 1
    assert min(seen.values()) > 50, seen
    assert len(seen) == 3, seen


def test_a_denial_holds_where_an_expression_may_say_no_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of RE2's that runs out of memory says no: what must not match is asked otherwise."""
    monkeypatch.setattr("spliceway.proxy.http.matchers._set_of", lambda _pattern: lambda _value: False)
    denial = HttpTest(path=r"/secret(/.*)?(\?.*)?", negated=True)
    except_path = HttpTest(method="GET", unless_path=r"/open/(no|not)(\?.*)?")
    judge = Judge(RuleSet(1, "", (HttpRule(1, tests=((denial,), (except_path,))),)))
    for path, status in ((b"/secret", 403), (b"/secret/a?b", 403), (b"/open/not", 403), (b"/open/a", 200)):
        head = read_head(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n", 100)
        assert judge.judge(head).status == status, path
