"""Why a request was denied, told by the agent: the access log has its method, path and host, and no headers."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from spliceway.agent.flows import Names
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, PolicyTable, RuleRef, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow

ARTICLES = HttpRule(1, "GET", "/articles/[0-9]+")
TOKEN = HttpRule(2, "DELETE", "/orders/.*", headers=(HeaderMatch("x-token", "s3cret", secret=True),))
LOGGED = HttpRule(3, "GET", "/logged", headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.LOG),))
BOTH = HttpRule(4, "PUT", "/both", headers=(HeaderMatch("x-a"), HeaderMatch("x-b", mismatch=Mismatch.LOG)))
CHARGE = HttpRule(5, "POST", "/charge")
RULES = {number: RuleRef("CiliumNetworkPolicy shop/api", f"http[{number}]") for number in range(1, 6)}


def told(
    rule_set: RuleSet,
    method: str,
    path: str,
    verdict: Verdict = Verdict.DENY,
    *,
    reason: Reason = Reason.HTTP_DENIED,
    said: str = "",
) -> str:
    world = {ip_network("0.0.0.0/0"): 9}
    table = PolicyTable(
        revision=1,
        identities={},
        ipcache=world,
        endpoints={},
        classes={},
        rows={},
        rule_sets={1: rule_set},
        rules=RULES,
    )
    record = HttpFlow(
        time=0, duration_ns=0, source=ip_address("10.240.1.10"), source_port=1, destination=ip_address("10.240.1.11"),
        destination_port=80, protocol="HTTP/1.1", method=method, authority="server", path=path, status=403,
        verdict=verdict, reason=reason, rule_set=1, rule=0, nearest_miss=said,
    )  # fmt: skip
    return Names(table).http(record).nearest_miss


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/articles/x", "http[1]: method matches, path /articles/x does not match /articles/[0-9]+"),
        ("DELETE", "/ordinary", "http[2]: method matches, path /ordinary does not match /orders/.*"),
        ("DELETE", "/orders/7", "http[2]: all but its conditions on headers matches (x-token)"),
        ("PUT", "/both", "http[4]: all but its conditions on headers matches (x-a)"),
        ("GET", "/logged", ""),  # matches with any headers: the rules have changed since
        ("GET", "/articles/1", ""),
    ],
)
def test_the_miss_is_told_without_the_headers(method: str, path: str, said: str) -> None:
    found = told(RuleSet(1, "api", (ARTICLES, TOKEN, LOGGED, BOTH)), method, path)
    assert found == (f"rule CiliumNetworkPolicy shop/api {said}" if said else "")


def test_headers_are_not_to_blame_where_another_rule_needs_none() -> None:
    assert told(RuleSet(1, "api", (TOKEN, HttpRule(1, "DELETE"))), "DELETE", "/orders/7") == ""


def test_the_end_that_denied_is_told() -> None:
    server = RuleSet(0, "pay", (CHARGE, TOKEN))
    both = RuleSet(1, "both", (ARTICLES, CHARGE, TOKEN), also=server)
    assert "http[1]: method matches, path /x does not match" in told(both, "GET", "/x")
    assert "http[5]: method GET does not match POST" in told(both, "GET", "/articles/1")
    assert "conditions on headers matches (x-token)" in told(both, "DELETE", "/orders/1")


def test_audit_is_told_by_the_rules_in_audit() -> None:
    mixed = RuleSet(1, "api", (ARTICLES, CHARGE), audit=(CHARGE,))
    assert "http[5]: method GET does not match POST" in told(mixed, "GET", "/articles/1", Verdict.ALLOW)
    # What was denied was denied by those in force.
    assert "http[1]: method matches" in told(mixed, "GET", "/x")
    # Whether the client had the token can't be seen; that the server's end has no such rule is sure.
    only = RuleSet(1, "api", None, audit=(TOKEN,), also=RuleSet(0, "pay", None, audit=(CHARGE,)))
    assert "http[5]: method DELETE does not match POST" in told(only, "DELETE", "/orders/1", Verdict.ALLOW)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("rule 2: header x-token is missing", "rule CiliumNetworkPolicy shop/api http[2]: header x-token is missing"),
        ("rule 99: method GET is not POST", "rule 99 (gone): method GET is not POST"),
        ("path /rule 2: does not match", "path /rule 2: does not match"),
        ("the rule set has no rules", "the rule set has no rules"),
    ],
)
def test_what_the_proxy_says_itself_gets_the_rules_name(said: str, shown: str) -> None:
    assert told(RuleSet(1, "api", (ARTICLES, TOKEN)), "GET", "/articles/x", said=said) == shown


def test_the_proxy_also_says_what_could_be_read_in_two_ways() -> None:
    assert (
        told(RuleSet(1, "api", (ARTICLES,)), "GET", "/a;b", reason=Reason.HTTP_AMBIGUOUS, said="; in path")
        == "; in path"
    )


def test_rules_of_tests_are_named_for_the_proxy() -> None:
    """It knows the rule that it asked by number, and not what stands beside that."""
    tests = (
        (HttpTest(path="/a.*", rule=2), HttpTest(path="/b", rule=3)),
        (HttpTest(path="/ab", negated=True, rule=4),),
    )
    rule_set = RuleSet(1, "api", (HttpRule(1, "GET", tests=tests),))
    denied = "rule 1: method matches, path matches, denied by another rule"
    said = told(rule_set, "GET", "/ab", said=denied)
    assert said == "rule CiliumNetworkPolicy shop/api http[1]: method matches, path matches, " + (
        "denied by rule CiliumNetworkPolicy shop/api http[4]"
    )
    assert told(rule_set, "GET", "/ab") == said  # of Envoy, which says nothing
    assert (
        "not allowed by rule CiliumNetworkPolicy shop/api http[2], rule CiliumNetworkPolicy shop/api http[3]"
        in told(
            rule_set,
            "GET",
            "/c",
            said="rule 1: method matches, path matches, not allowed by another rule, another rule",
        )
    )


def test_of_many_rules_of_tests_some_are_named() -> None:
    denials = tuple((HttpTest(path=f"/{letter}|/z", negated=True, rule=4),) for letter in "abcdefg")
    allowed = tuple(HttpTest(path=f"/{letter}", rule=2) for letter in "abcdefg")
    found = told(RuleSet(1, "api", (HttpRule(1, tests=denials),)), "GET", "/z")
    assert found.count("http[4]") == 5
    assert found.endswith("denied by rule CiliumNetworkPolicy shop/api http[4], and by more")
    rule_set = RuleSet(1, "api", (HttpRule(1, tests=(allowed,)),))
    named = told(rule_set, "GET", "/z")
    assert named.count("http[2]") == 5
    assert named.endswith("http[2] or 2 more")
    unnamed = "rule 1: method matches, path matches, not allowed by " + ", ".join(["another rule"] * 5) + " or 2 more"
    assert told(rule_set, "GET", "/z", said=unnamed) == named
