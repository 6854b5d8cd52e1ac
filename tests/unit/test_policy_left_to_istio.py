"""HTTP rules that a policy leaves to Istio: at which pods and ports they are L3/L4 on the wire, and nothing besides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest

from spliceway.agent.cli.queries import Asker
from spliceway.policy.compile import compile_table
from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.istio.hbone import closed_cluster
from spliceway.policy.istio.left import cluster_on_the_wire, on_the_wire
from spliceway.policy.istio.sidecar import Sees, rewired
from spliceway.policy.istio.translate import Options, translate
from spliceway.policy.labels import SIDECAR_KEY
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster, Pod, PortRange
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Direction, Protocol, Verdict
from support.istiopolicies import STRICT
from support.istiopolicies import read as read_mesh
from support.leftpods import ANNOTATION, PLAIN, asking, injected, plain, policy

Doc = dict[str, Any]
OWN, HIDDEN, BOTH = ("REDIRECT", "*", ""), ("REDIRECT", "*", "9000"), ("REDIRECT", "80,9000", "9000")
CLIENTS = (plain("client", 200), plain("other", 201))
ALLOW, DENY, REDIRECT = Verdict.ALLOW, Verdict.DENY, Verdict.REDIRECT


def parsed(document: Doc) -> Any:
    (item,) = parse_document(Document("f.yaml", 1, 1, document))
    return item


def cluster(*documents: Doc) -> Cluster:
    return Cluster().with_objects(map(parsed, documents))


def mark(document: Doc) -> str | None:
    found = parsed(document)
    assert isinstance(found, Pod)
    return found.labels.get(SIDECAR_KEY)


class Wire:
    """A cluster as it is enforced, by the interpreter and by the table."""

    def __init__(self, found: Cluster) -> None:
        self.whole = cluster_on_the_wire(closed_cluster(found))
        self.table = compile_table(self.whole, node="node1", numbering=Numbering(), revision=1)

    def said(self, port: int, pod: str = "api", peer: str = "client") -> Verdict:
        """At a pod; interpreter and table, both families, must agree."""
        table, server, verdicts = self.table, self.whole.pods[f"shop/{pod}"], set()
        for own in server.addresses:
            other = next(one for one in self.whole.pods[f"shop/{peer}"].addresses if one.version == own.version)
            decision = evaluate(self.whole, Connection(other, own, Protocol.TCP, port))
            identity = identify(table.ipcache, other)
            row = lookup(table, table.endpoints[server.key], Direction.INGRESS, identity, Protocol.TCP, port)
            assert (row.verdict, row.reason) == (decision.verdict, decision.reason)
            verdicts.add(decision.verdict)
        (verdict,) = verdicts
        return verdict


def said(found: Cluster, port: int, peer: str = "client") -> Verdict:
    return Wire(found).said(port, peer=peer)


SIDECARS: list[tuple[Doc, str | None]] = [
    ({}, "but http-envoy-prom"),
    ({"arguments": ("TPROXY", "*", "15090,15021")}, "but http-envoy-prom"),
    ({"native": True}, "but http-envoy-prom"),
    ({"writer": "istio-validation"}, "but http-envoy-prom"),
    ({"arguments": HIDDEN}, "but 9000 admin http-envoy-prom"),
    (
        {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "9000, 80"}},
        "but 80 9000 admin http-envoy-prom web",
    ),
    ({"arguments": BOTH}, "only 80 web"),
    ({"annotations": {"traffic.sidecar.istio.io/includeInboundPorts": "80"}}, "only 80 web"),
    (
        {"arguments": ("REDIRECT", "80", ""), "annotations": {"traffic.sidecar.istio.io/includeInboundPorts": "9000"}},
        None,  # nothing that both say
    ),
    ({"arguments": ("REDIRECT", "", "")}, None),
    # What is not known is refused as ever.
    ({"arguments": None}, None),
    ({"writer": "prepare"}, None),
    ({"arguments": ("NONE", "*", "")}, None),
    ({"arguments": ("REDIRECT", "80:90", "")}, None),
    ({"arguments": ("REDIRECT", "*", "80-90")}, None),
    # Istio lets it pass as 120, and iptables reads 80.
    ({"arguments": ("REDIRECT", "*", "0120")}, None),
    ({"annotations": {"traffic.sidecar.istio.io/includeInboundPorts": "0120"}}, None),
    ({"annotations": {"sidecar.istio.io/interceptionMode": "TPROXY"}}, "but http-envoy-prom"),
    ({"annotations": {"sidecar.istio.io/interceptionMode": "NONE"}}, None),
    ({"annotations": {"sidecar.istio.io/interceptionMode": "redirect"}}, None),
    ({"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "all"}}, None),
    ({"annotations": {"traffic.sidecar.istio.io/excludeInterfaces": "eth1"}}, None),
    ({"annotations": {"traffic.sidecar.istio.io/kubevirtInterfaces": "net1"}}, None),
    ({"annotations": {"ambient.istio.io/redirection": "enabled"}}, None),
    ({"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": ",".join(map(str, range(1, 100)))}}, None),
    # Without dual stack Istio's rules are for the family of the first address alone.
    ({"dual_stack": False}, None),
    ({"dual_stack": False, "families": (4,)}, "but http-envoy-prom"),
    ({"dual_stack": False, "families": (6,)}, "but http-envoy-prom"),
    ({"dual_stack": False, "families": ()}, None),
    ({"families": ()}, "but http-envoy-prom"),
]


@pytest.mark.parametrize(("what", "expected"), SIDECARS, ids=str)
def test_what_a_sidecar_sees(what: Doc, expected: str | None) -> None:
    assert mark(injected("api", 1, **what)) == expected


@pytest.mark.parametrize(
    "broken",
    [
        lambda pod: pod["metadata"].pop("annotations"),
        lambda pod: pod["metadata"]["annotations"].update({"sidecar.istio.io/status": 7}),
        lambda pod: pod["metadata"].update(annotations=["odd"]),
        lambda pod: pod["spec"].update(containers=[]),
        lambda pod: pod["spec"]["initContainers"][0].pop("args"),
        lambda pod: pod["spec"]["initContainers"][0].update(args=["-m", "REDIRECT", "-b", "*"]),
        lambda pod: pod["spec"]["initContainers"][0].update(args=["-m", "REDIRECT", "-b", "*", "-d", 7]),
        lambda pod: pod["spec"]["initContainers"][0]["args"].extend(["-b", "80"]),
        lambda pod: pod["spec"]["initContainers"][0]["args"].extend(["-c", "eth1"]),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("--istio-inbound-ports=80"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("--istio-inbound-interception-mode=NONE"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("--dual-stack=false"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("-d=9000"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("-d9000"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("-ceth0"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("--dry-run"),
        lambda pod: pod["spec"]["initContainers"][0]["args"].append("--skip-rule-apply"),
        lambda pod: pod["spec"]["initContainers"][0].pop("env"),
        lambda pod: pod["spec"]["initContainers"][0]["env"].append({"name": "DRY_RUN", "value": "true"}),
        lambda pod: pod["spec"]["initContainers"][0]["env"].append({"name": "ISTIO_EXCLUDE_INTERFACES", "value": "e"}),
        lambda pod: pod["spec"]["initContainers"].append({"name": "istio-validation", "args": []}),
        lambda pod: pod["spec"]["containers"][-1]["env"].append({"name": "ISTIO_DUAL_STACK", "value": "false"}),
        lambda pod: pod["spec"]["containers"][-1].update(env=[{"name": "ISTIO_DUAL_STACK", "value": "false"}]),
    ],
)
def test_pods_of_which_it_is_not_known(broken: Any) -> None:
    document = injected("api", 1)
    broken(document)
    assert mark(document) is None


def test_who_checks_the_rules_of_istio_cni_writes_none() -> None:
    document = injected("api", 1, writer="istio-validation")
    document["spec"]["initContainers"][0]["args"] += ["--run-validation", "--skip-rule-apply"]
    assert mark(document) == "but http-envoy-prom"


def test_no_pod_and_no_selector_can_name_the_mark() -> None:
    with pytest.raises(PolicyError, match="spliceway:sidecar"):
        parsed(plain("api", 1, labels={SIDECAR_KEY: "but"}))
    with pytest.raises(PolicyError, match="spliceway"):
        parsed(policy({"ingress": [{"fromEndpoints": [{"matchLabels": {SIDECAR_KEY: "but"}}]}]}))


def tcp(first: int, last: int = 0) -> PortRange:
    return PortRange(Protocol.TCP, first, last or first)


@pytest.mark.parametrize(
    ("told", "seen", "not_seen"),
    [
        ("but 9000 admin", [tcp(80), tcp(1, 8999), tcp(9001, 14999), tcp(15100)], [tcp(9000), tcp(8000, 9000)]),
        ("but", [tcp(1, 14999), PortRange(Protocol.TCP, 0, 0, "web")], [tcp(15020), tcp(1, 65535), tcp(14000, 15000)]),
        ("but admin", [tcp(9000)], [PortRange(Protocol.TCP, 0, 0, "admin")]),
        ("only 80 81 web", [tcp(80, 81), PortRange(Protocol.TCP, 0, 0, "web")], [tcp(80, 82), tcp(1, 65535), tcp(79)]),
        ("only 15020", [], [tcp(15020), PortRange(Protocol.TCP, 0, 0, "web")]),
    ],
)
def test_ports_of_a_mark(told: str, seen: list[PortRange], not_seen: list[PortRange]) -> None:
    sees = Sees.of(told)
    assert sees.mark == told
    assert [one for one in seen if not sees.has(one)] == []
    assert [one for one in not_seen if sees.has(one)] == []


def test_a_pod_that_is_wired_with_more_than_its_status_says() -> None:
    found = parsed(injected("api", 1, dual_stack=False, families=(4,)))
    assert SIDECAR_KEY in rewired(found, (ip_address("10.0.0.9"),)).labels
    both = rewired(found, (ip_address("10.0.0.9"), ip_address("fd00::9")))
    assert SIDECAR_KEY not in both.labels
    assert both.labels["app"] == "api"


@pytest.mark.parametrize("value", ["Istio", "", "spliceway", 7])
def test_another_value_is_refused(value: object) -> None:
    document = asking("80")
    document["metadata"]["annotations"][ANNOTATION] = value
    with pytest.raises(PolicyError) as error:
        parsed(document)
    assert error.value.file == "f.yaml"
    assert error.value.field == f"metadata.annotations.{ANNOTATION}"
    if isinstance(value, str):
        assert error.value.reason.endswith("(istio, or leave it out)")


@pytest.mark.parametrize("kind", ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"])
def test_the_annotation_is_read(kind: str) -> None:
    document = asking("80") | {"kind": kind}
    if kind != "CiliumNetworkPolicy":
        del document["metadata"]["namespace"]
    assert parsed(document).left_to_istio
    del document["metadata"]["annotations"]
    assert not parsed(document).left_to_istio


def test_others_kinds_dont_know_it() -> None:
    found = parsed(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p", "annotations": {ANNOTATION: "istio"}},
            "spec": {"podSelector": {}},
        }
    )
    assert not found.left_to_istio
    assert on_the_wire(found, {"but"}) is found


def test_an_http_rule_is_its_l4_part_where_the_sidecar_asks() -> None:
    pods = (injected("api", 1), *CLIENTS)
    assert said(cluster(*pods, asking("80")), 80) is ALLOW
    assert said(cluster(*pods, asking("80")), 80, peer="other") is DENY
    assert said(cluster(*pods, asking("80")), 81) is DENY
    assert said(cluster(*pods, asking("80", left=False)), 80) is REDIRECT
    assert said(cluster(plain("api", 1), *CLIENTS, asking("80")), 80) is REDIRECT


def test_ports_that_the_sidecar_does_not_see_stay_as_they_are() -> None:
    pods = (injected("api", 1, arguments=HIDDEN), *CLIENTS)
    found = cluster(*pods, asking("80", "9000", "15090"))
    assert (said(found, 80), said(found, 9000), said(found, 15090)) == (ALLOW, REDIRECT, REDIRECT)
    assert said(cluster(*pods, asking("8000-9999")), 8000) is REDIRECT
    assert said(cluster(*pods, asking("web")), 80) is ALLOW
    assert said(cluster(*pods, asking("admin")), 9000) is REDIRECT
    assert said(cluster(*pods, asking("http-envoy-prom")), 15090) is REDIRECT


def test_beside_other_policies_it_is_what_a_plain_allow_is() -> None:
    pods = (injected("api", 1), *CLIENTS)
    entry = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    peers = [{"matchLabels": {"app": "client"}}]
    by_hand = policy({"ingress": [{"fromEndpoints": peers, "toPorts": entry}]}, "p", left=False)
    deny = policy({"ingressDeny": [{"fromEndpoints": peers, "toPorts": entry}]}, "deny")
    for more in (
        [asking("80", name="q", left=False)],
        [asking("80", name="q", left=False, peer="other")],
        [deny],
        [policy({"ingress": [{}]}, "void")],
        [policy({"enableDefaultDeny": {"ingress": False}, "ingress": [{"toPorts": entry}]}, "lax", left=False)],
    ):
        for peer in ("client", "other"):
            for port in (80, 81):
                found = [said(cluster(*pods, one, *more), port, peer=peer) for one in (asking("80"), by_hand)]
                assert found[0] is found[1], (more, peer, port)
    assert (
        said(cluster(*pods, asking("80"), asking("80", name="q", left=False, peer="other")), 80, peer="other")
        is REDIRECT
    )
    assert said(cluster(*pods, asking("80"), deny), 80) is DENY


def test_where_requests_are_asked_on_the_wire_rules_stay_in_order() -> None:
    """The first that matches says what becomes of headers."""
    both = asking("80", "9000", path="/a")
    both["spec"]["ingress"] += asking("80", path="/b")["spec"]["ingress"]
    sidecar = injected("more", 2, arguments=HIDDEN, labels={"app": "api"})
    for pods in ((plain("api", 1),), (plain("api", 1), sidecar)):
        sets = Wire(cluster(*pods, *CLIENTS, both)).table.rule_sets.values()
        assert ["/a", "/b"] in [[rule.path for rule in one.rules or ()] for one in sets]


def test_egress_stays_as_it_is() -> None:
    entry = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{}]}}
    out = policy({"egress": [{"toEndpoints": [{}], "toPorts": [entry]}]}, "out", app="client")
    found = cluster(injected("api", 1), injected("client", 2), out)
    assert cluster_on_the_wire(found).policies == found.policies != {}
    ends = (found.pods[f"shop/{name}"].addresses[0] for name in ("client", "api"))
    assert evaluate(cluster_on_the_wire(found), Connection(*ends, Protocol.TCP, 80)).verdict is REDIRECT


def test_in_audit_it_denies_nobody() -> None:
    document = asking("80")
    document["metadata"]["annotations"]["spliceway.io/enforcement"] = "audit"
    assert said(cluster(injected("api", 1), *CLIENTS, document), 80) is ALLOW
    assert said(cluster(injected("api", 1), *CLIENTS, document), 80, peer="other") is ALLOW


def test_evaluating_files_says_the_same() -> None:
    def asked(*documents: Doc) -> Doc:
        query = {"from": "shop/client", "to": "shop/api", "port": 80, "http": {"method": "POST", "path": "/b"}}
        answer: Doc = json.loads(Asker(cluster(*documents, *CLIENTS)).line(json.dumps(query).encode()))
        return answer

    found = asked(injected("api", 1), asking("80"))
    assert (found["verdict"], found["reason"]) == ("allow", "policy-allowed")
    assert found["rules"][0]["path"] == "spec.ingress[0].toPorts[0]"
    assert asked(injected("api", 1), asking("80", left=False))["verdict"] == "deny"
    assert asked(injected("api", 1, arguments=None), asking("80"))["verdict"] == "deny"


def test_the_translation_does_not_mind() -> None:
    texts = [json.dumps(one) for one in (injected("api", 1), *CLIENTS)]
    made = []
    for left in (True, False):
        found, mesh = read_mesh(STRICT, *texts, json.dumps(asking("80", left=left)))
        done = translate(found, mesh, Options())
        assert not done.refusals
        made.append(done.documents())
    assert made[0] == made[1] != []


def test_policies_that_leave_nothing_are_the_same_objects() -> None:
    found = cluster(injected("api", 1), *CLIENTS, asking("80", left=False))
    assert cluster_on_the_wire(found) is found
    (one,) = cluster(policy({"ingress": [{}]})).policies.values()
    assert on_the_wire(one, {"but", "only 80"}) is one
    (one,) = cluster(asking("80")).policies.values()
    assert on_the_wire(one, ()) is one
    assert on_the_wire(one, {"only 81"}) is one
    assert len(on_the_wire(one, {"but", "but 9000", "only 81"}).specs) == 2


NAMED = ("80", "81", "9000", "web", "admin", "8000-9999", "http-envoy-prom")
TAKEN = ((None, set()), (PLAIN, {80, 81, 9000}), (HIDDEN, {80, 81}), (BOTH, {80}), (("NONE", "*", ""), set()))


def by_hand(document: Doc, taken: Iterable[int]) -> Doc:
    """The policy for one pod, as somebody would write it who knows which ports the sidecar takes."""
    made: Doc = json.loads(json.dumps(document))
    if not made["metadata"]["annotations"]:
        return made
    made["metadata"]["annotations"] = {}
    numbers = {"web": 80, "admin": 9000, "http-envoy-prom": 15090}
    for rule in made["spec"]["ingress"]:
        entries = []
        for entry in rule["toPorts"]:
            seen = [
                one
                for one in entry["ports"]
                if "endPort" not in one and (numbers.get(one["port"]) or int(one["port"])) in taken
            ]
            if 9000 in taken:  # of what is asked here nothing else is in the range
                seen += [one for one in entry["ports"] if "endPort" in one]
            others = [one for one in entry["ports"] if one not in seen]
            entries += [{"ports": seen}] if seen else []
            entries += [{**entry, "ports": others}] if others else []
        rule["toPorts"] = entries
    return made


@pytest.mark.parametrize("seed", range(12))
def test_random_policies_are_what_somebody_would_write_for_each_pod(seed: int) -> None:
    random, differed = Random(seed), 0
    for _ in range(6):
        chosen = [random.choice(TAKEN) for _pod in range(3)]
        pods = [
            injected(f"api{number}", number, arguments=arguments, labels={"app": "api"}, native=random.random() < 0.5)
            for number, (arguments, _taken) in enumerate(chosen)
        ]
        policies = [
            asking(
                *random.sample(NAMED, random.choice((1, 2, 3))),
                name=f"p{number}",
                left=random.random() < 0.6,
                peer=random.choice(("client", "other")),
            )
            for number in range(random.choice((1, 2, 3)))
        ]
        for one in policies:
            if random.random() < 0.4:
                one["spec"]["enableDefaultDeny"] = {"ingress": False}
        whole = cluster(*pods, *CLIENTS, *policies)
        wire = Wire(whole)
        for number, (_arguments, taken) in enumerate(chosen):
            expected = Wire(cluster(*pods, *CLIENTS, *(by_hand(one, taken) for one in policies)))
            for port in (80, 81, 9000, 15090, 22):
                for peer in ("client", "other"):
                    found = wire.said(port, f"api{number}", peer)
                    assert found is expected.said(port, f"api{number}", peer), (chosen, policies, number, port, peer)
                    own = whole.pods[f"shop/api{number}"].addresses[0]
                    other = whole.pods[f"shop/{peer}"].addresses[0]
                    differed += evaluate(whole, Connection(other, own, Protocol.TCP, port)).verdict is not found
    assert differed, "and as written it is another"
