"""Expressions as Istio's forms: each form means exactly what RE2 matches."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from spliceway.policy.istio.patterns import TEMPLATE, Form, PatternError, forms
from spliceway.policy.regex import compile_regex

SAME = (
    "/a",
    "/a|/b",
    "/a/.*",
    "/a(/.*)?",
    "/a/.+",
    ".*",
    "/.*",
    r".*\.a",
    r"/a(\?.*)?",
    r"/a\?b=.*",
    "/[ab]/b",
    "/a{2}",
    "/(a|b){1,2}",
    "/a/.*/b",
    "/ab.*b",
    "/aba.*aba",
    "/a.*a",
    "^/a$|^/b$",
    "GET|HEAD",
    "(?:/a|/b/.*)",
    r"/\x61",
    "/a.+b",
    "/a?b?",
    ".+",
    ".+b",
)
REFUSED = (
    "/[0-9]+",
    "/[^/]+",
    "/a.b",
    "/a*",
    "(?i)/a",
    "/a(b|.*c.*)",
    "/a{2,}",
    r"/\w",
    "/[[:alpha:]]",
    "/a*?",
    r"\Q/a\E",
    "/[a-z]{3}",
    "a$b",
    "(^a)",
    "/a.+.+",
    "[^/?]+",
)


def has(form: Form, text: str) -> bool:
    """What the form says it is."""
    if form.exact:
        return text == form.prefix
    return text.startswith(form.prefix) and text.endswith(form.suffix) and text not in form.excluded


def texts(random: Random) -> list[str]:
    short = ["".join(chars) for length in range(5) for chars in itertools.product("/ab?", repeat=length)]
    long = ["".join(random.choices("/ab?=.c", k=random.randint(5, 12))) for _ in range(400)]
    return [*short, *long, "GET", "HEAD", "GETHEAD", "/aba", "/ababa", "/abaaba", "/ab", "/abb"]


@pytest.mark.parametrize("pattern", SAME)
def test_forms_are_equal_to_the_expression(pattern: str) -> None:
    regex, found = compile_regex(pattern), forms(pattern)
    for text in texts(Random(pattern)):
        assert any(has(form, text) for form in found) == (regex.fullmatch(text.encode()) is not None), text


@pytest.mark.parametrize("pattern", REFUSED)
def test_others_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        forms(pattern)


def test_random_expressions() -> None:
    random = Random(7)
    read = 0
    for _ in range(3000):
        pattern = expression(random, 3)
        try:
            found = forms(pattern)
        except PatternError:
            continue
        read += 1
        regex = compile_regex(pattern)
        for text in ["".join(random.choices("/ab?", k=random.randint(0, 6))) for _ in range(60)]:
            assert any(has(form, text) for form in found) == (regex.fullmatch(text.encode()) is not None), (
                pattern,
                text,
            )
    assert read > 1000


def expression(random: Random, depth: int) -> str:
    parts = []
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(8 if depth else 4)
        match kind:
            case 0 | 1:
                parts.append(random.choice(["/", "a", "b", r"\?", "[ab]", "ab"]))
            case 2:
                parts.append(random.choice(["a?", "[a/]?", "b{1,2}", "a{0}"]))
            case 3 | 4:
                parts.append(random.choice(["a", ".*", ".+", "/"]))
            case _:
                inner = expression(random, depth - 1)
                parts.append(f"({inner}|{expression(random, depth - 1)}){random.choice(['', '?', '{2}'])}")
    return "".join(parts)


def test_templates() -> None:
    segment = "[a-zA-Z0-9._~%!$&'()+,;:@=-]"
    assert forms(rf"/a/{segment}+(\?.*)?") == (Form(template="/a/{*}"),)
    assert forms(rf"/a/{segment}+/b(\?.*)?") == (Form(template="/a/{*}/b"),)
    found = forms(r"/a/[a-zA-Z0-9._~%!$&'()+,;:@=/-]*(\?.*)?")
    assert found == (Form(template="/a/{**}"),)
    assert "/" not in TEMPLATE
    for pattern in (rf"/a/{segment}+", rf"/a/x{segment}+(\?.*)?", rf"/a/{segment[:-1]}?]+(\?.*)?"):
        with pytest.raises(PatternError):
            forms(pattern)


def test_an_expression_that_stands_for_too_much() -> None:
    with pytest.raises(PatternError, match="more than 128"):
        forms("/[a-z][a-z]")
    with pytest.raises(PatternError):
        forms("a{17}")
