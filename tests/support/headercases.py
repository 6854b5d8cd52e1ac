"""Rule sets with conditions on hosts and headers, and what requests with such headers get."""

from __future__ import annotations

from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet

EXACT, PRESENT, BOTH, HOST, COMMA, LATIN, EMPTY, NEVER, MIXED, NAMES, HOSTED = range(1, 12)
SECRET = "s3cr3t-never-shown"
SETS = (
    RuleSet(EXACT, "exact", (HttpRule(11, headers=(HeaderMatch("x-token", SECRET, secret=True),)),)),
    RuleSet(PRESENT, "present", (HttpRule(21, headers=(HeaderMatch("x-any"),)),)),
    RuleSet(BOTH, "both", (HttpRule(31, "GET", "/a", "api", (HeaderMatch("x-a", "1"), HeaderMatch("x-b"))),)),
    RuleSet(HOST, "host", (HttpRule(41, host="a.c(:80)?"),)),
    RuleSet(COMMA, "comma", (HttpRule(51, headers=(HeaderMatch("x-list", "a,b"),)),)),
    RuleSet(LATIN, "latin", (HttpRule(61, headers=(HeaderMatch("x-name", "Jos\xe9 (a+b)"),)),)),
    RuleSet(EMPTY, "empty", (HttpRule(71, headers=(HeaderMatch("x-e", ""),)),)),
    RuleSet(NEVER, "never", (HttpRule(81, headers=(HeaderMatch("x-token", "\n", secret=True),)),)),
    RuleSet(MIXED, "mixed", (HttpRule(91, headers=(HeaderMatch("x-a", "1"),)), HttpRule(92, path="/open"))),
    RuleSet(NAMES, "names", (HttpRule(101, headers=(HeaderMatch("x!#$&'*+.^_`~-1"), HeaderMatch("host", "api"))),)),
    RuleSet(HOSTED, "hosted", (HttpRule(111, headers=(HeaderMatch("host"),)),)),
)
TOKEN = f"X-Token: {SECRET}"

#: rule set, path, Host, further headers, rule that lets pass (0: none)
CASES = [
    (EXACT, "/", "api", [TOKEN], 11),
    (EXACT, "/", "api", [TOKEN.replace("X-T", "x-t")], 11),
    (EXACT, "/", "api", [], 0),
    (EXACT, "/", "api", ["X-Token: other"], 0),
    (EXACT, "/", "api", [TOKEN + "x"], 0),
    (EXACT, "/", "api", [TOKEN.upper()], 0),
    (EXACT, "/", "api", [TOKEN, TOKEN], 0),
    (EXACT, "/", "api", [TOKEN, "X-Token: other"], 0),
    (EXACT, "/", "api", ["X-Token: other", TOKEN], 0),
    (EXACT, "/", "api", [TOKEN, "X-Other: 1", "x-token: "], 0),
    (EXACT, "/", "api", [f"{TOKEN},{SECRET}"], 0),
    (EXACT, "/", "api", [f"{TOKEN}, other"], 0),
    (PRESENT, "/", "api", ["X-Any: 1"], 21),
    (PRESENT, "/", "api", ["X-Any: a, b,c"], 21),
    (PRESENT, "/", "api", ["X-Any: -"], 21),
    (PRESENT, "/", "api", ["X-Any: h\xe9"], 21),
    (PRESENT, "/", "api", ["X-Any: %REQ(X)% 100%"], 21),
    (PRESENT, "/", "api", ["X-Any:" + " v" * 10_000], 21),
    (PRESENT, "/", "api", [], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any: 1"], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any: 2"], 0),
    (PRESENT, "/", "api", ["X-Any: a,b", "X-Any: c"], 0),
    (PRESENT, "/", "api", ["X-Anyone: 1"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-B: 2"], 31),
    (BOTH, "/b", "api", ["X-A: 1", "X-B: 2"], 0),
    (BOTH, "/a", "web", ["X-A: 1", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 2", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 1"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-B: 2", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-A: 1", "X-B: 2"], 0),
    (HOST, "/", "abc", [], 41),
    (HOST, "/", "a.c", [], 41),
    (HOST, "/", "abc:80", [], 41),
    (HOST, "/", "abc:8080", [], 0),
    (HOST, "/", "ABC", [], 0),
    (HOST, "/", "xabc", [], 0),
    (HOST, "/", "abc.", [], 0),
    (COMMA, "/", "api", ["X-List: a,b"], 51),
    (COMMA, "/", "api", ["X-List: a", "X-List: b"], 0),
    (COMMA, "/", "api", ["X-List: a, b"], 0),
    (LATIN, "/", "api", ["X-Name: Jos\xe9 (a+b)"], 61),
    (LATIN, "/", "api", ["X-Name: Jose (a+b)"], 0),
    (LATIN, "/", "api", ["X-Name: Jos\xc3\xa9 (a+b)"], 0),
    (EMPTY, "/", "api", ["X-E: x"], 0),
    (EMPTY, "/", "api", [], 0),
    (NEVER, "/", "api", [TOKEN], 0),
    (NEVER, "/", "api", [], 0),
    (MIXED, "/", "api", ["X-A: 1"], 91),
    (MIXED, "/open", "api", ["X-A: 1", "X-A: 1"], 92),
    (NAMES, "/", "api", ["X!#$&'*+.^_`~-1: y"], 101),
    (HOSTED, "/", "web", [], 111),
    (NAMES, "/", "web", ["X!#$&'*+.^_`~-1: y"], 0),
]
#: Over HTTP/1 only: an empty value is nothing that curl sends over HTTP/2.
H1_ONLY = [
    (EMPTY, "/", "api", ["X-E:"], 71),
    (EMPTY, "/", "api", ["X-E:", "X-E:"], 0),
    (PRESENT, "/", "api", ["X-Any:"], 21),
    (PRESENT, "/", "api", ["X-Any:", "X-Any: 1"], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any:"], 0),
]


def name_of(case: tuple[int, str, str, list[str], int]) -> str:
    """For pytest."""
    name = SETS[case[0] - 1].name
    return f"{name} {case[1]} {case[2]} {' '.join(case[3])[:60]}"
