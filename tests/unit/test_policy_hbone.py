"""What HBONE hides: ports of policies for ambient pods, in the interpreter and in the compiled table alike."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest

from spliceway.policy.compile import compile_table
from spliceway.policy.documents import load_documents
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.istio.hbone import HBONE, closed, closed_cluster, dataplane, mark, opens
from spliceway.policy.labels import HBONE_KEY, Operator, Requirement, Selector
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import (
    Action,
    Cluster,
    IPAddress,
    NetworkPolicy,
    Peers,
    PortRange,
    PortRule,
    Rule,
    Spec,
    Tier,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Direction, Protocol, Verdict

REDIRECTED = "ambient.istio.io/redirection: enabled"
LABEL = "istio.io/dataplane-mode: ambient"
#: Name, labels, annotations; all of them with the label app: api but the client.
PODS = (
    ("annotated", "app: api", REDIRECTED),
    ("labelled", f"app: api, {LABEL}", ""),
    ("sidecar", "app: api", "sidecar.istio.io/status: '{}'"),
    ("waypoint", "app: api, gateway.istio.io/managed: istio.io-mesh-controller", ""),
    ("plain", "app: api", ""),
    ("client", "app: web", REDIRECTED),
)
HIDING = {"annotated", "labelled", "sidecar", "waypoint"}


def cluster(*policies: str, namespace: str = "") -> Cluster:
    texts = [f"{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{namespace}}}}}}}"]
    texts += [
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}, "
        f"annotations: {{{annotations}}}}}, spec: {{nodeName: node1}}, "
        f"status: {{podIPs: [{{ip: 10.0.0.{number}}}, {{ip: 'fd00::{number}'}}]}}}}"
        for number, (name, labels, annotations) in enumerate(PODS, start=1)
    ]
    documents = load_documents("\n---\n".join([*texts, *policies]), "f")
    return Cluster().with_objects(item for one in documents for item in parse_document(one))


def cilium(rules: str, name: str = "p") -> str:
    return (
        f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{app: api}}}}, {rules}}}"
    )


def passing(found: Cluster, port: int, direction: Direction, protocol: Protocol = Protocol.TCP) -> set[str]:
    """Pods that the client reaches at a port, or that reach the client; both families and the table must agree."""
    whole = closed_cluster(found)
    table = compile_table(whole, node="node1", numbering=Numbering(), revision=1)
    reached = set()
    for name, *_ in PODS[:-1]:
        said = set()
        for family in (0, 1):
            own, other = (whole.pods[f"shop/{one}"].addresses[family] for one in (name, "client"))
            ends = (other, own) if direction is Direction.INGRESS else (own, other)
            said.add(evaluate(whole, Connection(*ends, protocol, port)).verdict is not Verdict.DENY)
            judged = lookup(
                table, table.endpoints[f"shop/{name}"], direction, identify(table.ipcache, other), protocol, port
            )
            said.add(judged.verdict is not Verdict.DENY)
        assert len(said) == 1, (name, port)
        reached |= {name} if said.pop() else set()
    return reached


EVERYBODY = {name for name, *_ in PODS[:-1]}
WEB = "[{matchLabels: {app: web}}]"


def ports(*texts: str) -> str:
    listed = []
    for text in texts:
        first, _, last = text.partition("-")
        listed.append(f"{{port: '{first}', protocol: TCP" + (f", endPort: {last}}}" if last else "}"))
    return f"toPorts: [{{ports: [{', '.join(listed)}]}}]"


@pytest.mark.parametrize("direction", Direction)
def test_what_denies_a_port_denies_hbone_where_that_could_bring_it(direction: Direction) -> None:
    way, field = ("from", "ingress") if direction is Direction.INGRESS else ("to", "egress")
    found = cluster(
        cilium(f"{field}: [{{{way}Endpoints: {WEB}}}], {field}Deny: [{{{way}Endpoints: {WEB}, {ports('22')}}}]")
    )
    assert passing(found, 22, direction) == set()
    assert passing(found, 80, direction) == EVERYBODY
    assert passing(found, HBONE, direction) == EVERYBODY - HIDING, "else port 22 would come by it"
    assert passing(found, HBONE, direction, Protocol.UDP) == EVERYBODY, "HBONE is TCP"


@pytest.mark.parametrize("direction", Direction)
def test_a_range_opens_hbone_to_nobody_who_did_not_ask_for_it(direction: Direction) -> None:
    way, field = ("from", "ingress") if direction is Direction.INGRESS else ("to", "egress")
    found = cluster(cilium(f"{field}: [{{{way}Endpoints: {WEB}, {ports('1024-65535')}}}]"))
    assert passing(found, 22, direction) == set()
    assert passing(found, HBONE - 1, direction) == passing(found, HBONE + 1, direction) == EVERYBODY
    assert passing(found, HBONE, direction) == EVERYBODY - HIDING, "else port 22 would come by it"


@pytest.mark.parametrize(
    "asked", [ports("80", str(HBONE)), ports("1-65535"), ports("1024-65535", "1-1023"), ports(str(HBONE), "1024-65535")]
)
def test_who_says_15008_or_all_ports_means_it(asked: str) -> None:
    assert passing(cluster(cilium(f"ingress: [{{fromEndpoints: {WEB}, {asked}}}]")), HBONE, Direction.INGRESS) == (
        EVERYBODY
    )


def test_ports_alone_are_literal_and_no_ports_are_all() -> None:
    found = cluster(cilium(f"ingress: [{{fromEndpoints: {WEB}, {ports('80')}}}]"))
    assert closed_cluster(found).policies == found.policies
    assert passing(found, 80, Direction.INGRESS) == EVERYBODY
    assert passing(found, HBONE, Direction.INGRESS) == set()
    assert passing(cluster(cilium(f"ingress: [{{fromEndpoints: {WEB}}}]")), HBONE, Direction.INGRESS) == EVERYBODY


def test_any_protocol_keeps_what_is_not_tcp() -> None:
    asked = "toPorts: [{ports: [{port: '1024', endPort: 65535}]}]"
    found = cluster(cilium(f"ingress: [{{fromEndpoints: {WEB}, {asked}}}]"))
    assert passing(found, HBONE, Direction.INGRESS) == EVERYBODY - HIDING
    for protocol in (Protocol.UDP, Protocol.SCTP):
        assert passing(found, HBONE, Direction.INGRESS, protocol) == EVERYBODY


def test_what_denies_udp_or_15008_or_everything_is_as_it_is() -> None:
    denied = (
        "toPorts: [{ports: [{port: '53', protocol: UDP}]}]",
        ports("15008"),
        ports("1024-65535"),
        ports("1-65535"),
    )
    for asked in denied:
        found = cluster(cilium(f"ingressDeny: [{{fromEndpoints: {WEB}, {asked}}}]"))
        assert closed_cluster(found).policies == found.policies


def test_a_namespaces_label_counts_where_the_pod_says_nothing() -> None:
    deny = cilium(f"ingress: [{{fromEndpoints: {WEB}}}], ingressDeny: [{{fromEndpoints: {WEB}, {ports('22')}}}]")
    assert passing(cluster(deny, namespace=LABEL), HBONE, Direction.INGRESS) == set()
    left = cluster(deny, namespace=LABEL)
    pod = left.pods["shop/plain"]
    out = type(pod)(pod.namespace, pod.name, {"app": "api", HBONE_KEY: "none"}, pod.addresses, pod.node)
    assert passing(left.with_objects([out]), HBONE, Direction.INGRESS) == {"plain"}


def admin(*rules: str) -> str:
    return (
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\n"
        "spec: {priority: 5, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: api}}}}, "
        + "ingress: ["
        + ", ".join(
            f"{{action: {action}, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{}}}}}}]"
            + (f", ports: [{{portNumber: {{protocol: TCP, port: {port}}}}}]}}" if port else "}")
            for action, _, port in (rule.partition(" ") for rule in rules)
        )
        + "]}"
    )


@pytest.mark.parametrize(
    ("rules", "hbone"),
    [
        (("Deny 22", "Allow"), EVERYBODY - HIDING),
        (("Pass 22", "Allow"), EVERYBODY - HIDING),  # by HBONE 22 would be allowed before anybody else is asked
        (("Pass 15008", "Allow"), EVERYBODY),
        (("Pass", "Deny"), EVERYBODY),
        (("Allow 80", "Deny"), set()),
        (("Allow", "Deny 22"), EVERYBODY - HIDING),
    ],
)
def test_tiers_in_order(rules: tuple[str, ...], hbone: set[str]) -> None:
    found = passing(cluster(admin(*rules)), HBONE, Direction.INGRESS)
    if rules == ("Allow", "Deny 22"):
        assert found == EVERYBODY, "what is asked first has decided"
    else:
        assert found == hbone


def test_names_of_rules_stay() -> None:
    found = cluster(cilium(f"ingressDeny: [{{fromEndpoints: {WEB}, {ports('22')}}}]"))
    whole = closed_cluster(found)
    said = evaluate(whole, Connection(ip_address("10.0.0.6"), ip_address("10.0.0.1"), Protocol.TCP, HBONE))
    assert said.rule is not None
    assert (said.rule.policy, said.rule.path) == (
        "CiliumNetworkPolicy shop/p",
        "spec.ingressDeny[0].toPorts[0]",
    )


def test_without_such_pods_nothing_is_different() -> None:
    found = cluster(cilium(f"ingressDeny: [{{fromEndpoints: {WEB}, {ports('22')}}}]"))
    plain = [pod for pod in found.pods.values() if pod.name.endswith("plain")]
    alone = Cluster(namespaces=found.namespaces, policies=found.policies).with_objects(plain)
    assert closed_cluster(alone) is alone
    (policy,) = found.policies.values()
    assert len(closed(policy).specs) == 4
    assert not any(opens(rule) for spec in closed(policy).specs for rule in spec.rules)


@pytest.mark.parametrize(
    ("labels", "annotations", "said"),
    [
        ({}, None, ""),
        ({}, ["odd"], ""),
        ({}, {"ambient.istio.io/redirection": "enabled"}, "ambient"),
        ({}, {"ambient.istio.io/redirection": "pending"}, "ambient"),
        ({}, {"ambient.istio.io/redirection": "disabled"}, ""),
        ({"istio.io/dataplane-mode": "none"}, {"ambient.istio.io/redirection": "enabled"}, "ambient"),
        ({"istio.io/dataplane-mode": "none"}, None, "none"),
        ({"istio.io/dataplane-mode": "ambient"}, {}, "ambient"),
        ({"istio.io/dataplane-mode": "none", "gateway.istio.io/managed": "x"}, {}, "proxy"),
        ({}, {"sidecar.istio.io/status": "{}"}, "proxy"),
    ],
)
def test_what_a_pod_says_of_itself(labels: dict[str, str], annotations: object, said: str) -> None:
    assert mark(labels, annotations) == said


def test_no_pod_and_no_selector_can_name_the_mark() -> None:
    found = cluster()
    assert {dataplane(pod, {}) for pod in found.pods.values()} == {"ambient", "proxy", "none"}
    with pytest.raises(Exception, match="spliceway:hbone"):
        parse_document(
            load_documents("{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {'spliceway:hbone': none}}}", "f")[
                0
            ]
        )
    for key in ("spliceway:hbone", "k8s:spliceway:hbone", "any:spliceway:hbone"):
        with pytest.raises(Exception, match="spliceway"):
            parse_document(
                load_documents(cilium(f"ingress: [{{fromEndpoints: [{{matchLabels: {{'{key}': a}}}}]}}]"), "f")[0]
            )


TIERS = (Tier.ADMIN, Tier.NORMAL, Tier.NORMAL, Tier.BASELINE)
RANGES = ((22, 22), (80, 80), (1024, 65535), (1, 1023), (15000, 15100), (1, 65535), (1, HBONE - 1), (HBONE + 1, 65535))
INSIDE = (1, 22, 80, 1023, 1024, 15000, 15007, 15009, 15100, 40000, 65535)


def random_policies(random: Random) -> Iterator[NetworkPolicy]:
    """Policies about the pods with app: api, of all tiers; none of them names 15008 as such."""
    for number in range(random.randrange(1, 5)):
        tier = random.choice(TIERS)
        actions = (Action.ALLOW, Action.ALLOW, Action.DENY) + ((Action.PASS,) if tier is not Tier.NORMAL else ())
        rules = []
        for place in range(random.randrange(1, 5)):
            entries = tuple(
                PortRule(
                    f"r{place}.{index}",
                    tuple(
                        PortRange(random.choice((Protocol.TCP, Protocol.TCP, Protocol.ANY, Protocol.UDP)), *one)
                        for one in random.sample(RANGES, random.randrange(1, 3))
                    ),
                )
                for index in range(random.choice((0, 1, 1, 2)))
            )
            chosen = random.choice((None, Peers(endpoints=(selector("web"),)), Peers(endpoints=(selector("db"),))))
            rules.append(Rule(f"r{place}", random.choice(tuple(Direction)), random.choice(actions), chosen, entries))
        default = (random.random() < 0.6, random.random() < 0.6) if tier is Tier.NORMAL else (False, False)
        spec = Spec("spec", selector("api"), tuple(rules), default, (True, True), "", tier, random.randrange(3))
        yield NetworkPolicy("CiliumNetworkPolicy", "shop", f"p{number}", (spec,))


def selector(app: str) -> Selector:
    return Selector((Requirement("k8s", "app", Operator.IN, (app,)),))


@pytest.mark.parametrize("seed", range(8))
def test_who_passes_by_hbone_passes_to_every_port(seed: int) -> None:
    """The invariant, of random policies: what is let in at 15008 is let in by the policies as written at all ports."""
    random, opened, shut = Random(seed), 0, 0
    for _ in range(25):
        found = cluster().with_objects(random_policies(random))
        whole = closed_cluster(found)
        client = found.pods["shop/client"].addresses[0]
        for name in ("annotated", "plain"):
            own = found.pods[f"shop/{name}"].addresses[0]
            for ends in ((client, own), (own, client)):

                def passes(where: Cluster, port: int, ends: tuple[IPAddress, IPAddress] = ends) -> bool:
                    return evaluate(where, Connection(*ends, Protocol.TCP, port)).verdict is not Verdict.DENY

                everything = all(passes(found, port) for port in INSIDE)
                assert [passes(whole, port) for port in INSIDE] == [passes(found, port) for port in INSIDE]
                if name == "plain":
                    assert passes(whole, HBONE) == passes(found, HBONE)
                elif passes(whole, HBONE):
                    assert everything, (ends, found.policies)
                    opened += 1
                else:
                    shut += passes(found, HBONE) and not everything
    assert opened
    assert shut, "and taken literally it is not so"
