"""Where resources come from, and which policies are not applied."""

from __future__ import annotations

import pytest

from spliceway.agent.control import Acceptance, Answer
from spliceway.agent.policyrows import policy_rows
from spliceway.agent.provenance import CONFIGURATION, policy_states, provenance, unapplied, worst
from spliceway.agent.xdstypes import short_type
from spliceway.policy.compile import compile_table
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import HttpRule, HttpTest, PolicyTable, RuleRef, RuleSet
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.resources.names import rule_of, rule_set_of
from support.agent import NODE, cluster_of, pod, policy

API, WEB, ALL = "CiliumNetworkPolicy shop/api", "CiliumNetworkPolicy shop/web", "CiliumClusterwideNetworkPolicy all"
RULES = {1: RuleRef(API, "spec.a"), 2: RuleRef(WEB, "spec.b"), 3: RuleRef(API, "spec.c"), 4: RuleRef(ALL, "spec.d")}
SETS = {
    5: RuleSet(5, "five", (HttpRule(1), HttpRule(2)), audit=(HttpRule(1), HttpRule(3))),
    6: RuleSet(6, "six", (HttpRule(4),), also=RuleSet(5, "five", (HttpRule(2), HttpRule(99)))),
}
FILES = {
    ("CiliumNetworkPolicy", "shop/api"): "api.yaml",
    ("CiliumNetworkPolicy", "shop/web"): "web.yaml",
    ("CiliumClusterwideNetworkPolicy", "all"): "all.yaml",
}


def file_of(key: tuple[str, str]) -> str:
    return FILES.get(key, "")


def test_a_resource_has_the_rules_of_its_policies() -> None:
    made = provenance("rule-set-5", SETS, RULES, file_of)
    assert (made.origin, made.rule_set) == ("policy", "five")
    api, web = made.policies
    assert (api.kind, api.namespace, api.name, api.file) == ("CiliumNetworkPolicy", "shop", "api", "api.yaml")
    # What is enforced is not told again because audit has it too.
    assert [(rule.id, rule.path, rule.audit) for rule in api.rules] == [(1, "spec.a", False), (3, "spec.c", True)]
    assert (web.name, [rule.path for rule in web.rules]) == ("web", ["spec.b"])


def test_both_ends_of_a_pair_and_rules_that_are_gone() -> None:
    every, web, gone = provenance("rule-set-6", SETS, RULES, file_of).policies
    assert (every.kind, every.namespace, every.name, every.file) == (
        "CiliumClusterwideNetworkPolicy", "", "all", "all.yaml",
    )  # fmt: skip
    assert web.file == "web.yaml"
    assert (gone.kind, gone.file, [(rule.id, rule.path) for rule in gone.rules]) == ("", "", [(99, "(gone)")])


@pytest.mark.parametrize("name", ["original-destination", "rule-set-7", "rule-set-", "mine"])
def test_what_no_rule_set_made_is_configuration(name: str) -> None:
    assert provenance(name, SETS, RULES, file_of) == CONFIGURATION


def test_policies_that_are_not_applied() -> None:
    answers = {
        5: Answer(Acceptance.REFUSED, "RDS", "rule-set-5", "no"),
        6: Answer(Acceptance.WAITING, "LDS", "rule-set-6", "not yet"),
    }
    missing = unapplied(answers, SETS)
    states = {one.policy: (one.file, one.state, [why.resource for why in one.why]) for one in policy_states(
        missing, SETS, RULES, file_of
    )}  # fmt: skip
    assert states == {
        API: ("api.yaml", "refused", ["rule-set-5"]),
        # The worst of its rule sets counts.
        WEB: ("web.yaml", "refused", ["rule-set-5", "rule-set-6"]),
        ALL: ("all.yaml", "waiting", ["rule-set-6"]),
    }
    accepted = dict.fromkeys(SETS, Answer(Acceptance.ACCEPTED))
    assert policy_states(unapplied(accepted, SETS), SETS, RULES, file_of) == []
    assert worst(()) == "applied"


def test_policies_that_only_test_what_others_allow_are_among_them() -> None:
    own, tried = "AuthorizationPolicy shop/own", "AuthorizationPolicy shop/tried"
    rules = {**RULES, 7: RuleRef(own, "spec.e"), 8: RuleRef(tried, "spec.f")}
    tests = (HttpTest(path="/a", rule=7),)
    enforced = HttpRule(1, tests=(tests,))
    in_audit = HttpRule(1, tests=(tests, (HttpTest(path="/b", negated=True, rule=8),)))
    sets = {5: RuleSet(5, "five", (enforced,), audit=(in_audit,))}
    made = provenance("rule-set-5", sets, rules, file_of)
    told = {
        f"{one.kind} {one.namespace}/{one.name}": [(rule.id, rule.audit) for rule in one.rules] for one in made.policies
    }
    assert told == {API: [(1, False)], own: [(7, False)], tried: [(8, True)]}
    missing = unapplied({5: Answer(Acceptance.REFUSED, "RDS", "rule-set-5", "no")}, sets)
    assert [one.policy for one in policy_states(missing, sets, rules, file_of)] == [own, tried, API]


def table() -> PolicyTable:
    ingress = policy("in", "server", 80, http=["/a"])
    egress = policy("out", "client", 80, peer="server", http=["/b"]).replace("ingress:", "egress:")
    egress = egress.replace("fromEndpoints", "toEndpoints")
    pods = (pod("client", "10.240.1.10"), pod("server", "10.240.1.11"))
    cluster = cluster_of(*pods, ingress, egress, policy("plain", "client", 81))
    return compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)


def states(made: PolicyTable, missing: dict[int, Answer]) -> dict[str, str]:
    """Direction and ports → state, of rows that allow something."""
    ids = {endpoint.policy_id for endpoint in made.endpoints.values()}
    rows = policy_rows(made, ids, unapplied(missing, made.rule_sets))
    return {
        f"{row['direction'].label} {row['ports']}": row["state"] for of in rows.values() for row in of if row["rule"]
    }


def test_rows_say_how_far_they_are_with_the_proxy() -> None:
    made = table()
    (((client, server), both),) = made.pairs.items()
    refused = Answer(Acceptance.REFUSED, "RDS", "x", "no")
    waiting = Answer(Acceptance.WAITING, "RDS", "x", "not yet")
    applied = {"egress 80": "applied", "ingress 80": "applied", "ingress 81": "applied"}
    assert states(made, {}) == applied
    assert states(made, {server: refused}) == {**applied, "ingress 80": "refused"}
    assert states(made, {client: waiting}) == {**applied, "egress 80": "waiting"}
    # What both ends are asked together belongs to both.
    assert states(made, {both: refused, client: waiting}) == {
        **applied, "egress 80": "refused", "ingress 80": "refused",
    }  # fmt: skip


def test_rows_show_what_an_authorization_policy_asks_beside_a_rule() -> None:
    own = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: own, namespace: default}
spec: {rules: [{to: [{operation: {methods: [GET], notPaths: [/a/b]}}]}]}
"""
    pods = (pod("client", "10.240.1.10"), pod("server", "10.240.1.11"))
    cluster = cluster_of(*pods, policy("in", "server", 80, http=["/a.*"]), own)
    made = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    server = made.endpoints["default/server"].policy_id
    (http,) = [row["http"] for row in policy_rows(made, {server})[server] if "in " in row["rule"]]
    ((rule,),) = [http]
    assert (rule["path"], rule["audit"]) == ("/a.*", False)
    test = {
        "negated": False,
        "matches": {":method": "GET"},
        "unless": {":path": r"/a/b(\?.*)?"},
        "rule": "AuthorizationPolicy default/own spec.rules[0].to[0].operation",
    }
    assert rule["tests"] == [[test]]


def test_types_have_many_names() -> None:
    for text in ("LDS", "lds", "listener", "Listeners"):
        assert short_type(text) == "LDS"
    named = ("routes", "cluster", "ENDPOINTS", "secret", "extensions")
    assert [short_type(text) for text in named] == ["RDS", "CDS", "EDS", "SDS", "ECDS"]
    assert {short_type(url): url for url in TYPES} == {info.short: url for url, info in TYPES.items()}
    assert short_type("envoy.config.listener.v3.Listener") == "LDS"
    with pytest.raises(ValueError, match=r"no type 'x' \(there are LDS or listeners, RDS or routes, .*, ECDS or ext"):
        short_type("x")


@pytest.mark.parametrize("digits", ["", "x", "-1", "٤", "9" * 5000])
def test_names_that_are_no_rule_sets(digits: str) -> None:
    assert (rule_set_of("rule-set-5"), rule_of("00001/7")) == (5, 7)
    assert rule_set_of(f"rule-set-{digits}") == rule_of(f"00001/{digits}") == 0
