"""What our checks let through, a real Envoy accepts: rule sets at the edges of what a policy can say.

Nothing of it may be a NACK, nor an error that isn't about this rule set: it would hold up the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.resources.build import unfit
from support.envoy import EnvoyThread

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

_BATCH = 60
_MISMATCHES = tuple(Mismatch)
#: Around the limit of 1,000 for a program's size, and what makes many instructions of few characters.
_PATTERNS = (
    *(f"[a-z]{{{count}}}" for count in (990, 995, 996, 997)),
    *(
        f"{what}{{{count}}}"
        for what in (".", "[^/]", r"\xff", r"[\x80-\xff]", r"\w", "(?i)k")
        for count in (300, 495, 499)
    ),
    *(r"\pL{30}", r"\C{900}", "(a|b){330}", ".*" * 240, "x*y*" * 240, "(" * 900 + "a" + ")" * 900, "(?:a?){490}"),
    *("(a{10}){90}", r"\b" * 100, "(?P<n>a)", "(?U)a+", r"\Qa.c\E", "(?m)^a$", "(?s).", r"[[:^ascii:]]{400}"),
)
_VALUES = (
    "",
    "a" * 60_000,
    "\xe9",
    "\xe9" * 900,
    "\xe9" * 1100,
    " a ",
    "a,b",
    "%s %REQ(X-A)%",
    "'\"\\{}",
    "\t",
    "\n",
    "\0",
)
_NAMES = ("x-a", "x|y", "x%y", "x'y", "x`y", "!", "x.y", "cookie", "te", "connection", "x-envoy-foo", "x" * 10_000)


def _edges() -> Iterator[tuple[HttpRule, ...]]:
    for pattern in _PATTERNS:
        for field in ("method", "path", "host"):
            yield (HttpRule(1, **{field: pattern}),)
    for name in _NAMES:
        yield from ((HttpRule(1, headers=(HeaderMatch(name, value),)),) for value in (None, "1"))
    for value in _VALUES:
        for mismatch in _MISMATCHES:
            yield (HttpRule(1, headers=(HeaderMatch("x-a", value, mismatch is Mismatch.LOG, mismatch),)),)
    for count in (10, 45, 100, 1000):
        for wanted in (None, "a"):
            yield (HttpRule(1, headers=tuple(HeaderMatch(f"x-{number}", wanted) for number in range(count))),)
    for count in (1000, 5000):
        yield tuple(HttpRule(number, "GET", f"/a{number}") for number in range(1, count + 1))
    # Combinations of rules with actions: 63, each with the conditions of up to six rules.
    for count in (1, 8, 20):
        yield tuple(
            HttpRule(
                number,
                path=f"/a{number}",
                headers=(
                    *(HeaderMatch(f"x-{number}-{other}", "a") for other in range(count)),
                    HeaderMatch("x-a", str(number), False, Mismatch.REPLACE),
                ),
            )
            for number in range(1, 7)
        )


def _random_pattern(random: Random, depth: int = 0) -> str:
    kinds = ("atom", "atom", "join", "either", "repeat", "repeat") if depth < 5 else ("atom",)
    match random.choice(kinds):
        case "join":
            return "".join(_random_pattern(random, depth + 1) for _ in range(random.randint(1, 4)))
        case "either":
            return "(?:" + "|".join(_random_pattern(random, depth + 1) for _ in range(random.randint(1, 4))) + ")"
        case "repeat":
            count = random.choice(("*", "+", "?", "*?", "{0,3}", "{7}", "{2,}", "{40}", "{200}"))
            return f"(?:{_random_pattern(random, depth + 1)}){count}"
        case _:
            return random.choice(
                (".", "a", "/", r"\d", r"\W", r"[^a-c]", r"\x{e9}", r"\pN", "^", "$", r"\b", "(?i:k)", r"[\s\S]")
            )


def _random_patterns(count: int) -> Iterator[tuple[HttpRule, ...]]:
    random = Random(4)
    while count:
        pattern = _random_pattern(random)
        try:
            compile_regex(pattern)
        except RegexError:
            continue
        count -= 1
        yield (HttpRule(1, path=pattern, headers=(HeaderMatch("x-a", chr(random.randrange(256)) * 50),)),)


@pytest.mark.timeout(300)
def test_envoy_accepts_what_the_checks_let_through(tmp_path: Path) -> None:
    cases = [*_edges(), *_random_patterns(300)]
    with EnvoyThread(tmp_path) as envoy:
        served = 0
        for begin in range(0, len(cases), _BATCH):
            batch = {
                number: RuleSet(number, f"case {number}", rules)
                for number, rules in enumerate(cases[begin : begin + _BATCH], 1)
            }
            refused = unfit(batch)
            fit = [rule_set for number, rule_set in batch.items() if number not in refused]
            served += len(fit)
            envoy.run(envoy.node.apply(*fit))
        print(f"{len(cases)} cases, {served} served")
        assert served > 400
