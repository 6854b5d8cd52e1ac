"""ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1).

Quoted words are those of network-policy-api, apis/*/…_types.go.
"""
# ruff: noqa: E501

from __future__ import annotations

from ipaddress import ip_network

import pytest

from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import Action, CidrPeer, NetworkPolicy, Peers, PortRange, Rule, Spec, Tier
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Direction, Protocol

ANY_POD = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.EXISTS)
APP = Requirement("k8s", "app", Operator.IN, ("a",))
TEAM = Requirement("k8s", "io.cilium.k8s.namespace.labels.team", Operator.IN, ("b",))
PODS = "pods: {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: a}}}"
CLUSTER = "ClusterNetworkPolicy"
ADMIN = "AdminNetworkPolicy"
BASELINE = "BaselineAdminNetworkPolicy"
VERSIONS = {CLUSTER: "v1alpha2", ADMIN: "v1alpha1", BASELINE: "v1alpha1"}
START = {CLUSTER: "tier: Admin, priority: 10", ADMIN: "priority: 10", BASELINE: ""}
ACCEPT = {CLUSTER: "Accept", ADMIN: "Allow", BASELINE: "Allow"}
KINDS = (CLUSTER, ADMIN, BASELINE)


def document(kind: str, body: str, name: str = "default", annotations: str = "") -> str:
    meta = f"name: {name}, annotations: {{{annotations}}}"
    return f"{{apiVersion: policy.networking.k8s.io/{VERSIONS[kind]}, kind: {kind}, metadata: {{{meta}}}, spec: {{{body}}}}}"


def policy(kind: str, body: str, annotations: str = "") -> NetworkPolicy:
    parsed = parse_text(document(kind, body, annotations=annotations), "p.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    assert isinstance(found, NetworkPolicy)
    return found


def spec(kind: str, rules: str) -> Spec:
    start = f"{START[kind]}, " if START[kind] else ""
    (found,) = policy(kind, f"{start}subject: {{namespaces: {{}}}}, {rules}").specs
    return found


def rule(kind: str, body: str, way: str = "egress") -> Rule:
    (found,) = spec(kind, f"{way}: [{{{body}}}]").rules
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_object(kind: str) -> None:
    found = policy(
        kind, f"{START[kind] or 'egress: null'}, subject: {{namespaces: {{}}}}", "spliceway.io/enforcement: audit"
    )
    assert (found.title, found.namespace, found.audit) == (f"{kind} default", "", True)
    # «… with no ingress rules do not affect ingress traffic»
    assert (found.specs[0].applies, found.specs[0].default_deny) == ((False, False), (False, False))
    found = policy(kind, f"{START[kind] or 'egress: null'}, subject: {{{PODS}}}")
    assert (found.specs[0].subject, found.audit) == (Selector((APP, TEAM, ANY_POD)), False)


def test_tiers_and_priorities() -> None:
    for kind, start, tier, priority in (
        (CLUSTER, "tier: Admin, priority: 0", Tier.ADMIN, 0),
        (CLUSTER, "tier: Baseline, priority: 1000", Tier.BASELINE, 1000),
        (ADMIN, "priority: 7", Tier.ADMIN, 7),
        (BASELINE, "egress: []", Tier.BASELINE, 0),
    ):
        (found,) = policy(kind, f"{start}, subject: {{namespaces: {{}}}}").specs
        assert (found.tier, found.priority, found.subject) == (tier, priority, Selector((ANY_POD,)))


@pytest.mark.parametrize("kind", KINDS)
def test_rules_keep_their_order_and_actions(kind: str) -> None:
    actions = {ACCEPT[kind]: Action.ALLOW, "Deny": Action.DENY}
    if kind != BASELINE:
        actions["Pass"] = Action.PASS
    peers = "[{namespaces: {}}]"
    rules = ", ".join(f"{{name: r, action: {name}, from: {peers}}}" for name in actions)
    found = spec(kind, f"ingress: [{rules}], egress: [{{action: Deny, to: {peers}}}]")
    assert [rule.action for rule in found.rules] == [*actions.values(), Action.DENY]
    assert [rule.path for rule in found.rules][-2:] == [f"spec.ingress[{len(actions) - 1}]", "spec.egress[0]"]
    assert found.applies == (True, True)
    assert found.default_deny == (False, False)
    assert spec(kind, f"egress: [{{action: Deny, to: {peers}}}]").applies == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_peers(kind: str) -> None:
    found = rule(
        kind,
        f"action: Deny, to: [{{namespaces: {{matchLabels: {{team: b}}}}}}, {{{PODS}}}, "
        "{nodes: {matchExpressions: [{key: zone, operator: Exists}]}}, {nodes: {}}, "
        "{networks: [10.1.2.3/8, 'fd00::/8', 10.0.0.0/8]}]",
    )
    assert found.peers == Peers(
        (Selector((TEAM, ANY_POD)), Selector((APP, TEAM, ANY_POD))),
        (CidrPeer(ip_network("10.0.0.0/8"), inside=True), CidrPeer(ip_network("fd00::/8"), inside=True)),
        all_nodes=(Selector((Requirement("any", "zone", Operator.EXISTS),)), Selector()),
    )
    assert found.to_ports == ()


def test_an_absent_namespace_selector_means_every_namespace() -> None:
    # v1alpha2 only: «if empty, it selects all Namespaces», and optional (conformance, «omitted namespaceSelector»).
    peers = rule(CLUSTER, "action: Deny, to: [{pods: {podSelector: {matchLabels: {app: a}}}}]").peers
    assert peers == Peers((Selector((APP, ANY_POD)),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peer", ["{}", "{externalWorkloads: {}}", "{namespaces: null}"])
def test_peers_of_a_later_version_fail_closed(kind: str, peer: str) -> None:
    # «For "Accept" rules, "fail closed" means: "treat the rule as matching no traffic". For "Deny" and "Pass" rules,
    # "fail closed" means: "treat the rule as a 'Deny all' rule".»
    for way, side in (("ingress", "from"), ("egress", "to")):
        peers = f"{side}: [{{namespaces: {{}}}}, {peer}]"
        accepts = rule(kind, f"action: {ACCEPT[kind]}, {peers}", way)
        assert (accepts.action, accepts.peers, accepts.void) == (Action.ALLOW, Peers(), False)
        for action in ("Deny", "Pass") if kind != BASELINE else ("Deny",):
            found = rule(kind, f"action: {action}, {peers}", way)
            assert (found.action, found.peers, found.direction) == (Action.DENY, None, Direction[way.upper()])


def test_protocols_of_v1alpha2() -> None:
    found = rule(
        CLUSTER,
        "action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, "
        "{udp: {destinationPort: {range: {start: 5000, end: 5010}}}}, {sctp: {destinationPort: {number: 1}}}, "
        "{destinationNamedPort: web}]",
    )
    assert found.to_ports[0].path == "spec.egress[0]"
    assert found.to_ports[0].ports == (
        PortRange(Protocol.TCP, 80, 80),
        PortRange(Protocol.UDP, 5000, 5010),
        PortRange(Protocol.SCTP, 1, 1),
        PortRange(Protocol.ANY, 0, 0, "web"),
    )


@pytest.mark.parametrize("kind", [ADMIN, BASELINE])
def test_ports_of_v1alpha1(kind: str) -> None:
    found = rule(
        kind,
        "action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {portNumber: {protocol: UDP, port: 53}}, "
        "{portRange: {start: 1, end: 65535}}, {portRange: {protocol: SCTP, start: 8, end: 9}}, {namedPort: web}]",
        "ingress",
    )
    # «protocol … If not specified, this field defaults to TCP»
    assert found.to_ports[0].ports == (
        PortRange(Protocol.TCP, 80, 80),
        PortRange(Protocol.UDP, 53, 53),
        PortRange(Protocol.TCP, 1, 65535),
        PortRange(Protocol.SCTP, 8, 9),
        PortRange(Protocol.ANY, 0, 0, "web"),
    )


ANYBODY = "[{namespaces: {}}]"
BASE = "tier: Admin, priority: 1, subject: {namespaces: {}}"
ALPHA1 = "priority: 1, subject: {namespaces: {}}"
NAMES = "at most 15 lower-case letters, digits and «-», one letter at least"


def egress(body: str) -> str:
    return f"{BASE}, egress: [{{action: Deny, {body}}}]"


def protocols(body: str) -> str:
    return egress(f"to: {ANYBODY}, protocols: {body}")


REFUSED = [
    (CLUSTER, "priority: 1, subject: {namespaces: {}}", "spec.tier: is missing"),
    (CLUSTER, "tier: Normal, priority: 1", "spec.tier: Normal is not a tier (Admin, Baseline)"),
    (CLUSTER, "tier: Admin, subject: {namespaces: {}}", "spec.priority: is missing"),
    (CLUSTER, "tier: Admin, priority: 1001", "spec.priority: 1001 is not a priority (0 to 1000)"),
    (CLUSTER, "tier: Admin, priority: -1", "spec.priority: -1 is not a priority (0 to 1000)"),
    (ADMIN, "tier: Admin, priority: 1, subject: {namespaces: {}}", "spec.tier: unknown field"),
    (BASELINE, "priority: 1, subject: {namespaces: {}}", "spec.priority: unknown field"),
    (CLUSTER, "tier: Admin, priority: 1", "spec.subject: is missing"),
    (CLUSTER, "tier: Admin, priority: 1, subject: {}", "spec.subject: needs exactly one of namespaces, pods (has 0)"),
    (
        CLUSTER,
        f"tier: Admin, priority: 1, subject: {{namespaces: {{}}, {PODS}}}",
        "spec.subject: needs exactly one of namespaces, pods (has 2)",
    ),
    (
        CLUSTER,
        "tier: Admin, priority: 1, subject: {namespaces: {}, nodes: {}}",
        "spec.subject.nodes: unknown field",
    ),
    (
        CLUSTER,
        "tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}",
        "spec.subject.pods.podSelector: is missing",
    ),
    (
        ADMIN,
        "priority: 1, subject: {pods: {podSelector: {}}}",
        "spec.subject.pods.namespaceSelector: is missing",
    ),
    (CLUSTER, f"{BASE}, egress: [{{to: {ANYBODY}}}]", "spec.egress[0].action: is missing"),
    (
        CLUSTER,
        f"{BASE}, egress: [{{action: Allow, to: {ANYBODY}}}]",
        "spec.egress[0].action: Allow is not an action (Accept, Deny, Pass)",
    ),
    (
        ADMIN,
        f"{ALPHA1}, egress: [{{action: Accept, to: {ANYBODY}}}]",
        "spec.egress[0].action: Accept is not an action (Allow, Deny, Pass)",
    ),
    (
        BASELINE,
        f"subject: {{namespaces: {{}}}}, egress: [{{action: Pass, to: {ANYBODY}}}]",
        "spec.egress[0].action: Pass is not an action (Allow, Deny)",
    ),
    (CLUSTER, egress(f"name: {'n' * 101}, to: {ANYBODY}"), "spec.egress[0].name: is longer than 100 characters"),
    (CLUSTER, egress("name: a"), "spec.egress[0].to: is missing"),
    (CLUSTER, egress("to: []"), "spec.egress[0].to: needs at least one peer"),
    (CLUSTER, egress(f"from: {ANYBODY}, to: {ANYBODY}"), "spec.egress[0].from: unknown field"),
    (CLUSTER, egress(f"to: [{', '.join(['{namespaces: {}}'] * 26)}]"), "spec.egress[0].to: 26 peers are more than 25"),
    (
        CLUSTER,
        f"{BASE}, ingress: [{', '.join([f'{{action: Deny, from: {ANYBODY}}}'] * 26)}]",
        "spec.ingress: 26 rules are more than 25",
    ),
    (
        ADMIN,
        f"{ALPHA1}, ingress: [{', '.join([f'{{action: Deny, from: {ANYBODY}}}'] * 101)}]",
        "spec.ingress: 101 rules are more than 100",
    ),
    (CLUSTER, egress("to: [{domainNames: [a.example]}]"), "spec.egress[0].to[0].domainNames: not supported yet"),
    (
        CLUSTER,
        f"{BASE}, ingress: [{{action: Deny, from: [{{networks: [10.0.0.0/8]}}]}}]",
        "spec.ingress[0].from[0].networks: only peers of egress rules have it",
    ),
    (
        ADMIN,
        f"{ALPHA1}, ingress: [{{action: Deny, from: [{{nodes: {{}}}}]}}]",
        "spec.ingress[0].from[0].nodes: only peers of egress rules have it",
    ),
    (
        CLUSTER,
        egress("to: [{nodes: {}, networks: [10.0.0.0/8]}]"),
        "spec.egress[0].to[0]: needs exactly one of namespaces, pods, nodes, networks, domainNames (has 2)",
    ),
    (CLUSTER, egress("to: [{nodes: {}, node: {}}]"), "spec.egress[0].to[0].node: unknown field"),
    (CLUSTER, egress("to: [{networks: []}]"), "spec.egress[0].to[0].networks: needs at least one CIDR"),
    (
        CLUSTER,
        egress("to: [{networks: [10.0.0.1]}]"),
        "spec.egress[0].to[0].networks[0]: 10.0.0.1 is not a CIDR (no prefix length)",
    ),
    (CLUSTER, protocols("[]"), "spec.egress[0].protocols: needs at least one (for every port, leave it out)"),
    (
        CLUSTER,
        protocols("[{}]"),
        "spec.egress[0].protocols[0]: needs exactly one of tcp, udp, sctp, destinationNamedPort (has 0)",
    ),
    (CLUSTER, protocols("[{tcp: {}}]"), "spec.egress[0].protocols[0].tcp.destinationPort: is missing"),
    (
        CLUSTER,
        protocols("[{tcp: {destinationPort: {}}}]"),
        "spec.egress[0].protocols[0].tcp.destinationPort: needs exactly one of number, range (has 0)",
    ),
    (
        CLUSTER,
        protocols("[{tcp: {destinationPort: {number: 65536}}}]"),
        "spec.egress[0].protocols[0].tcp.destinationPort.number: 65536 is not a port (1 to 65535)",
    ),
    (
        CLUSTER,
        protocols("[{udp: {destinationPort: {range: {start: 9, end: 9}}}}]"),
        "spec.egress[0].protocols[0].udp.destinationPort.range.end: 9 is not more than start (9)",
    ),
    (
        CLUSTER,
        protocols("[{destinationNamedPort: '80'}]"),
        f"spec.egress[0].protocols[0].destinationNamedPort: 80 is not a port name ({NAMES})",
    ),
    (CLUSTER, egress(f"to: {ANYBODY}, ports: []"), "spec.egress[0].ports: unknown field"),
    (
        CLUSTER,
        egress("to: [{namespaces: {}}, {nodes: {}}], protocols: [{destinationNamedPort: web}]"),
        "spec.egress[0]: networks and nodes have no named ports (write two rules)",
    ),
    (
        ADMIN,
        f"{ALPHA1}, egress: [{{action: Deny, to: {ANYBODY}, ports: [{{portNumber: {{protocol: ICMP, port: 1}}}}]}}]",
        "spec.egress[0].ports[0].portNumber.protocol: ICMP is not a protocol (TCP, UDP, SCTP)",
    ),
    (
        ADMIN,
        f"{ALPHA1}, egress: [{{action: Deny, to: {ANYBODY}, ports: [{{portRange: {{start: 1}}}}]}}]",
        "spec.egress[0].ports[0].portRange.end: is missing",
    ),
    (
        ADMIN,
        f"{ALPHA1}, egress: [{{action: Deny, to: {ANYBODY}, protocols: []}}]",
        "spec.egress[0].protocols: unknown field",
    ),
]


@pytest.mark.parametrize(("kind", "body", "reason"), REFUSED, ids=[f"{kind} {reason}" for kind, _, reason in REFUSED])
def test_refused(kind: str, body: str, reason: str) -> None:
    parsed = parse_text(document(kind, body), "p.yaml")
    assert [str(error) for error in parsed.errors] == [f"p.yaml: {kind} default: {reason}"]


def test_only_one_baseline_policy() -> None:
    parsed = parse_text(document(BASELINE, "subject: {namespaces: {}}", "other"), "p.yaml")
    assert [str(error) for error in parsed.errors] == [
        f"p.yaml: {BASELINE} other: metadata.name: other can't be its name: there is only one, called default"
    ]


def test_a_list_names_rules_as_the_object_would() -> None:
    body = f"{BASE}, egress: [{{action: Deny, to: {ANYBODY}, protocols: [{{destinationNamedPort: web}}]}}]"
    network = (
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {egress: [{ports: [{}]}]}}"
    )
    parsed = parse_text(f"{{apiVersion: v1, kind: List, items: [{document(CLUSTER, body)}, {network}]}}", "p.yaml")
    assert not parsed.errors
    for found in parsed.objects:
        assert isinstance(found, NetworkPolicy)
        assert found.specs[0].path == "spec"
        (rule,) = found.specs[0].rules
        assert rule.path == rule.to_ports[0].path == "spec.egress[0]"
