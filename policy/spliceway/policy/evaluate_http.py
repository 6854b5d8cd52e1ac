"""The HTTP rules that a connection meets, read straight from the policies. Part of the reference interpreter."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spliceway.policy.evaluate_tiers import Half
from spliceway.policy.model import Cluster, HeaderCondition, HttpMatch, NetworkPolicy
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, RuleRef, RuleSet
from spliceway.policy.verdict import Verdict

#: No header of an accepted request has a line feed: a condition on it never holds.
_IMPOSSIBLE = "\n"
#: RFC 9110, 5.5: no control characters, no blanks at the margins.
_FIELD_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")


def rule_set(cluster: Cluster, *halves: Half | None) -> tuple[RuleSet, dict[int, RuleRef]]:
    """What a request must pass, and the names of its rules, numbered for this one decision.

    `halves`: the client's egress, then the server's ingress; at least one of them redirects.
    """
    names: dict[int, RuleRef] = {}
    found: RuleSet | None = None
    for half in reversed(halves):
        if half is not None and half.verdict is Verdict.REDIRECT:
            found = _of_half(cluster, half, names, found)
    assert found is not None
    return found, names


def _of_half(cluster: Cluster, half: Half, names: dict[int, RuleRef], also: RuleSet | None) -> RuleSet:
    refs = half.contributors or half.audit
    rules = _rules(cluster, names, half.contributors, half.allows, half.denies)
    would_ask = _rules(cluster, names, refs, half.would_allow, half.would_deny)
    name = "+".join(map(str, (*refs, *half.would_allow, *half.would_deny)))
    return RuleSet(1, name, rules, audit=None if would_ask == rules else would_ask, also=also)


def _rules(
    cluster: Cluster,
    names: dict[int, RuleRef],
    refs: tuple[RuleRef, ...],
    allows: tuple[RuleRef, ...],
    denies: tuple[RuleRef, ...],
) -> tuple[HttpRule, ...] | None:
    """Rules of which one must match, none of a denial, and one of `allows`. None: nothing is asked.

    What is allowed without HTTP rules passes by its own rule, and what is only not denied by that of the first denial.
    """
    if not (refs or allows or denies):
        return None
    wanted, allowing, denying = (_numbered(cluster, names, found) for found in (refs, allows, denies))
    never = tuple((_test(number, match, negated=True),) for number, match in denying)
    found = []
    for number, match in wanted or allowing:
        tests: tuple[tuple[HttpTest, ...], ...] = ()
        if any(_excepted(match)):
            tests = ((HttpTest("", "", "", *_excepted(match), rule=number),),)
        if wanted and allowing:
            tests += (tuple(_test(one, allowed, negated=False) for one, allowed in allowing),)
        headers = tuple(_header(cluster, header) for header in match.headers)
        patterns = (match.method_regex, match.path_regex, match.host_regex)
        found.append(HttpRule(number, *patterns, headers, tests + never))
    return tuple(found) or (HttpRule(denying[0][0], tests=never),)


def _numbered(cluster: Cluster, names: dict[int, RuleRef], refs: tuple[RuleRef, ...]) -> list[tuple[int, HttpMatch]]:
    """The HTTP rules of these rules, each with its number."""
    found: dict[RuleRef, HttpMatch] = {}
    for policy in cluster.ordered_policies():
        for match in _http_rules(policy, refs):
            found[RuleRef(policy.title, match.path)] = match
    known = {ref: number for number, ref in names.items()}
    for ref in found:
        if ref not in known:
            known[ref] = len(names) + 1
            names[known[ref]] = ref
    return [(known[ref], match) for ref, match in found.items()]


def _excepted(match: HttpMatch) -> tuple[str, str, str]:
    return match.unless_method, match.unless_path, match.unless_host


def _test(number: int, match: HttpMatch, *, negated: bool) -> HttpTest:
    patterns = (match.method_regex, match.path_regex, match.host_regex, *_excepted(match))
    return HttpTest(*patterns, negated=negated, rule=number)


def _http_rules(policy: NetworkPolicy, refs: tuple[RuleRef, ...]) -> Iterator[HttpMatch]:
    for spec in policy.specs:
        for rule in spec.rules:
            for entry in rule.to_ports:
                if entry.http and policy.ref(entry.path) in refs:
                    yield from entry.http


def _header(cluster: Cluster, condition: HeaderCondition) -> HeaderMatch:
    """A condition with its value.

    While the Secret is missing the value that is written beside it counts (Cilium, `HeaderMatch.value`). Without one,
    or when the Secret holds what no header can be, the condition holds for no request, whatever `mismatch` says.
    """
    name = condition.name.lower()
    secret = _secret(cluster, *condition.secret) if condition.secret is not None else b""
    if secret:
        if not _FIELD_VALUE.fullmatch(secret):
            return HeaderMatch(name, _IMPOSSIBLE, secret=True)
        return HeaderMatch(name, secret.decode("latin-1"), secret=True, mismatch=condition.mismatch)
    if condition.secret is not None and condition.value is None:
        return HeaderMatch(name, _IMPOSSIBLE, secret=True)
    return HeaderMatch(name, condition.value, mismatch=condition.mismatch)


def _secret(cluster: Cluster, name: str, key: str) -> bytes:
    """Value in a Secret; without a key it must be the only one. Empty: there is none."""
    found = cluster.secrets.get(name)
    data = found.data if found is not None else {}
    if not key and len(data) == 1:
        key = next(iter(data))
    return data.get(key, b"")
