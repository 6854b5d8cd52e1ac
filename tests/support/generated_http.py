"""Cases with requests made by a generator: random HTTP rules at one end or both, some in audit, random requests.

What is expected comes from the words of Cilium's PortRuleHTTP alone: method, path and host are whole matches, headers
are exact or present, a rule matches when all it has matches, a request passes when any rule matches, and both ends when
both have rules; with a policy in audit what it would deny is said, and passes.

`generated_rule_sets` and `generated_request` are without policies and expectations: for two data paths side by side.
"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import ip_address
from random import Random

from spliceway.policy.documents import Document
from spliceway.policy.http import HttpRequest
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleSet
from support.cases import Case, CaseFile, Expect, ExpectHttp, cluster_of
from support.oracle_world import Doc

_CLIENT, _SERVER = "10.240.1.11", "10.240.1.12"
_METHODS = ("GET", "HEAD|GET", "POST", "P.*", "PUT|DELETE")
_PATHS = ("/a", "/a/.*", "/[ab]", "/b/[0-9]+", ".*", "/a/b", r"/q\?x=[0-9]*")
_HOSTS = ("api.example", "[a-z]+[.]example", "api.*")
_HEADERS = ("X-Team: red", "X-Team", "X-Role: admin", "X-Role")
_SOURCE = "Cilium PortRuleHTTP: method, path, host and headers as written (tests/support/generated_http.py)"

_TARGETS = ("/a", "/b", "/a/b", "/a/", "/b/12", "/b/x", "/q?x=1", "/q?x=1&y", "/")
_SENT = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_NAMES = ("api.example", "www.example", "apiXexample", "api.example:80")

#: Of rule sets: few names and values, so that they meet; none that Envoy's codec joins (docs/xds.md).
HEADER_NAMES = ("x-a", "x-b", "forwarded", "x_c")
_VALUES = ("", "1", "a,b", "a", "b", "caf\xe9", "%s %REQ(X-A)%")
_TARGETS_ASKED = ("/a", "/a/1", "/b?q=1", "/c;", "/a%25", "/%00", "//a/./b/..")
_PATTERNS = ("", "/a.*", "/b.*", "/[ab].*", "/c", "/a/1")


def generated_rule_sets(count: int, draw: Random, first: int = 1) -> list[RuleSet]:
    """So many rule sets with numbers from `first` on: one end or both, rules, audit or both, conditions on headers."""
    return [_rule_set(draw, number) for number in range(first, first + count)]


def generated_request(draw: Random) -> HttpRequest:
    """A request that such rule sets may allow."""
    headers = [("host", draw.choice(["api", "api", "web", "aPi"]))]
    headers += [(draw.choice(HEADER_NAMES), draw.choice(_VALUES)) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    return HttpRequest.of(draw.choice(["GET", "GET", "POST", "PUT"]), draw.choice(_TARGETS_ASKED), headers)


def _match(draw: Random, soft: bool) -> HeaderMatch:
    action = draw.choice([Mismatch.DENY] * 2 + list(Mismatch)) if soft else Mismatch.DENY
    return HeaderMatch(draw.choice(HEADER_NAMES), draw.choice([None, *_VALUES]), draw.random() < 0.2, action)


def _rules(draw: Random, number: int) -> tuple[HttpRule, ...]:
    return tuple(
        HttpRule(
            number + index,
            draw.choice(["", "", "GET", "GET|POST"]),
            draw.choice(_PATTERNS),
            draw.choice(["", "", "api", "a.i", "web"]),
            tuple(_match(draw, index < 4) for _ in range(draw.choice([0, 0, 1, 1, 2]))),
            tuple(_tests(draw) for _ in range(draw.choice([0, 0, 0, 1, 2]))),
        )
        for index in range(draw.randint(1, 5))
    )


def _tests(draw: Random) -> tuple[HttpTest, ...]:
    """Tests of which one must hold, as AuthorizationPolicies make them."""
    return tuple(
        HttpTest(
            draw.choice(["GET", "GET|PUT", ".*T"]),
            draw.choice(_PATTERNS),
            draw.choice(["", "(?i:api)", "(?i:.*b)"]),
            draw.choice(["", "", "POST"]),
            draw.choice(["", "", "", "/a/.*"]),
            draw.choice(["", "", "", "web"]),
            draw.random() < 0.4,
        )
        for _ in range(draw.choice([1, 1, 2]))
    )


def _end(draw: Random, number: int) -> RuleSet:
    shape = draw.choice(["rules", "rules", "both", "audit", "nobody"])
    rules = _rules(draw, number) if shape in ("rules", "both") else None
    audit = _rules(draw, number + 10) if shape in ("both", "audit") else () if shape == "nobody" else None
    return RuleSet(number, f"end {number}", rules, audit)


def _rule_set(draw: Random, number: int) -> RuleSet:
    first = _end(draw, 100)
    also = _end(draw, 200) if draw.random() < 0.5 else None
    return RuleSet(number, f"random {number}", first.rules, first.audit, also)


@cache
def generated_http(count: int, seed: int, requests: int) -> tuple[CaseFile, ...]:
    """So many pairs of a client and a server, with so many requests each."""
    return tuple(_file(f"http-{seed}-{index}", Random(f"http/{seed}/{index}"), requests) for index in range(count))


def _file(name: str, random: Random, requests: int) -> CaseFile:
    ends = random.choice((("egress",), ("ingress",), ("ingress",), ("egress", "ingress")))
    policies = {end: _policy(random, end) for end in ends}
    documents = [_pod("client", _CLIENT), _pod("server", _SERVER), *policies.values()]
    cluster = cluster_of([Document(name, index + 1, 0, content) for index, content in enumerate(documents)])
    connection = Expect("redirect", "redirected", f"CiliumNetworkPolicy default/{ends[0]} spec.{ends[0]}[0].toPorts[0]")
    cases: dict[HttpRequest, Case] = {}
    while len(cases) < requests:
        headers = [("Host", random.choice(_NAMES))]
        for header in ("X-Team", "X-Role"):
            headers += [(header, random.choice(("red", "blue", "admin")))] * random.choice((0, 1, 1, 1, 2))
        request = HttpRequest.of(random.choice(_SENT), random.choice(_TARGETS), headers)
        cases[request] = Case(
            name,
            f"{request.method!r} {request.path!r} {request.headers!r}",
            *("client", "server"),
            *(ip_address(_CLIENT), ip_address(_SERVER)),
            *(6, 80),
            Expect(connection.verdict, connection.reason, connection.rule, _expected(policies, request)),
            request,
            ("interpreter", "envoy", "embedded"),
            (_SOURCE,),
        )
    return CaseFile(name, tuple(documents), cluster, tuple(cases.values()))


def _expected(policies: dict[str, Doc], request: HttpRequest) -> ExpectHttp:
    rule: str | None = None
    audited = False
    for end, policy in policies.items():  # the client's first
        rules = policy["spec"][end][0]["toPorts"][0]["rules"]["http"]
        found = next((index for index, one in enumerate(rules) if _matches(one, request)), None)
        if found is not None:
            rule = f"CiliumNetworkPolicy default/{end} spec.{end}[0].toPorts[0].rules.http[{found}]"
        elif "annotations" in policy["metadata"]:
            audited = True
        else:
            return ExpectHttp(403, "http-denied")
    return ExpectHttp(200, "http-denied") if audited else ExpectHttp(200, "http-allowed", rule)


def _matches(rule: Doc, request: HttpRequest) -> bool:
    sent = [(name.decode().lower(), value.decode()) for name, value in request.headers]
    for key, value in (("method", request.method), ("path", request.path), ("host", dict(request.headers)[b"Host"])):
        if key in rule and not re.fullmatch(rule[key], value.decode(), re.DOTALL):
            return False
    for line in rule.get("headers", []):
        name, _, wanted = line.partition(": ")
        values = [value for key, value in sent if key == name.lower()]
        if len(values) != 1 or wanted not in ("", values[0]):  # more than one never matches (docs/policy.md)
            return False
    return True


def _policy(random: Random, end: str) -> Doc:
    rules = []
    for _ in range(random.randint(1, 3)):
        rule: Doc = {}
        for key, choices, often in (("method", _METHODS, 0.6), ("path", _PATHS, 0.8), ("host", _HOSTS, 0.3)):
            if random.random() < often:
                rule[key] = random.choice(choices)
        if random.random() < 0.4:
            rule["headers"] = random.sample(_HEADERS, random.randint(1, 2))
        rules.append(rule)
    ports = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": rules}}
    spec = {"endpointSelector": {"matchLabels": {"app": "client" if end == "egress" else "server"}}}
    metadata: Doc = {"name": end}
    if random.random() < 0.25:
        metadata["annotations"] = {"spliceway.io/enforcement": "audit"}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": metadata,
        "spec": {**spec, end: [{"toPorts": [ports]}]},
    }


def _pod(name: str, address: str) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node1"},
        "status": {"podIPs": [{"ip": address}]},
    }
