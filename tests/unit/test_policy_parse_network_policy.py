"""NetworkPolicy (networking.k8s.io/v1): what its fields mean, and what is refused."""
# ruff: noqa: E501

from __future__ import annotations

from ipaddress import ip_network

import pytest

from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import Action, CidrPeer, NetworkPolicy, Peers, PortRange, PortRule, Rule, Tier
from spliceway.policy.parse import parse_text
from spliceway.policy.verdict import Direction, Protocol

HEAD = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy"
IN_SHOP = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.IN, ("shop",))
ANY_POD = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.EXISTS)


def document(spec: str, annotations: str = "") -> str:
    return f"{{{HEAD}, metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}, spec: {{{spec}}}}}"


def policy(spec: str, annotations: str = "") -> NetworkPolicy:
    parsed = parse_text(document(spec, annotations), "p.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    assert isinstance(found, NetworkPolicy)
    return found


def rule(body: str) -> Rule:
    (found,) = policy(f"podSelector: {{}}, ingress: [{{{body}}}]").specs[0].rules
    return found


def test_the_object() -> None:
    found = policy("podSelector: {matchLabels: {app: web}}, ingress: [{}]", "spliceway.io/enforcement: audit")
    assert (found.title, found.audit, found.file) == ("NetworkPolicy shop/web", True, "p.yaml")
    (spec,) = found.specs
    assert (spec.tier, spec.priority) == (Tier.NORMAL, 0)
    assert spec.subject == Selector((Requirement("k8s", "app", Operator.IN, ("web",)), IN_SHOP))
    # «If this field is empty or missing, this rule matches all sources», and all ports: not the void rule of Cilium.
    assert spec.rules == (Rule("spec.ingress[0]", Direction.INGRESS, Action.ALLOW, None),)
    assert not spec.rules[0].void


@pytest.mark.parametrize(
    ("spec", "applies"),
    [
        ("", (True, False)),
        ("ingress: []", (True, False)),
        ("egress: []", (True, False)),  # defaults.go: only an egress section with rules
        ("egress: [{}]", (True, True)),
        ("policyTypes: []", (True, False)),
        ("policyTypes: [], egress: [{}]", (True, True)),
        ("policyTypes: [Egress]", (False, True)),
        ("policyTypes: [Egress, Ingress]", (True, True)),
        ("policyTypes: [Ingress, Ingress], egress: [{}]", (True, False)),
    ],
)
def test_policy_types(spec: str, applies: tuple[bool, bool]) -> None:
    (found,) = policy(f"podSelector: {{}}, {spec}").specs
    assert found.applies == found.default_deny == applies
    assert all(applies[rule.direction] for rule in found.rules)


def test_peers() -> None:
    app = Requirement("k8s", "app", Operator.IN, ("a",))
    team = Requirement("k8s", "io.cilium.k8s.namespace.labels.team", Operator.NOT_IN, ("b", "c"))
    namespaces = "namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [c, b]}]}"
    found = rule(
        "from: [{podSelector: {matchLabels: {app: a}}}, "
        f"{{{namespaces}}}, {{{namespaces}, podSelector: {{matchLabels: {{app: a}}}}}}, "
        "{namespaceSelector: {}}, {podSelector: {}}, {namespaceSelector: {}, podSelector: {}}, "
        "{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 'fd00::/8'}}]"
    )
    assert found.peers == Peers(
        (
            Selector((app, IN_SHOP)),
            Selector((team, ANY_POD)),
            Selector((app, team, ANY_POD)),
            Selector((ANY_POD,)),
            Selector((IN_SHOP,)),
            Selector((ANY_POD,)),
        ),
        (
            CidrPeer(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),), inside=True),
            CidrPeer(ip_network("fd00::/8"), inside=True),
        ),
    )
    # Selectors are about pods: a negative condition does not let the world in.
    for selector in found.peers.endpoints:
        assert not selector.matches(["reserved:world-ipv4"])
        assert not selector.matches(["reserved:host"])


def test_empty_lists_are_no_restriction() -> None:
    for body in ("", "from: []", "from: null, ports: []", "ports: []"):
        assert rule(body) == Rule("spec.ingress[0]", Direction.INGRESS, Action.ALLOW, None)


def test_ports() -> None:
    found = rule(
        "ports: [{port: 80}, {protocol: UDP, port: 53, endPort: 53}, {port: 8000, endPort: 8080}, {port: web}, "
        "{protocol: SCTP}, {protocol: UDP, port: a-1}, {}]"
    )
    # «protocol: … If not specified, this field defaults to TCP»; without port «this matches all port names and numbers».
    ranges = (
        PortRange(Protocol.TCP, 80, 80),
        PortRange(Protocol.UDP, 53, 53),
        PortRange(Protocol.TCP, 8000, 8080),
        PortRange(Protocol.TCP, 0, 0, "web"),
        PortRange(Protocol.SCTP, 0, 65535),
        PortRange(Protocol.UDP, 0, 0, "a-1"),
        PortRange(Protocol.TCP, 0, 65535),
    )
    assert found.to_ports == (PortRule("spec.ingress[0]", ranges),)


def test_both_directions() -> None:
    (spec,) = policy(
        "podSelector: {}, ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]"
    ).specs
    assert [(rule.path, rule.direction) for rule in spec.rules] == [
        ("spec.ingress[0]", Direction.INGRESS),
        ("spec.egress[0]", Direction.EGRESS),
    ]


NAMES = "at most 15 lower-case letters, digits and «-», one letter at least"
DERIVED = "is no label of the pod itself (use namespaceSelector, or a CiliumNetworkPolicy)"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("podSelector: {}, rules: []", "spec.rules: unknown field"),
        ("podSelector: {}, ingress: [{to: []}]", "spec.ingress[0].to: unknown field"),
        ("podSelector: {}, egress: [{from: []}]", "spec.egress[0].from: unknown field"),
        (
            "podSelector: {matchLabels: {'k8s:app': a}}",
            "spec.podSelector.matchLabels.k8s:app: k8s:app is not a label key",
        ),
        (
            "podSelector: {matchLabels: {io.kubernetes.pod.namespace: a}}",
            f"spec.podSelector.matchLabels.io.kubernetes.pod.namespace: {DERIVED}",
        ),
        (
            "ingress: [{from: [{podSelector: {matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]}}]}]",
            f"spec.ingress[0].from[0].podSelector.matchExpressions[0].key: {DERIVED}",
        ),
        ("policyTypes: [ingress]", "spec.policyTypes[0]: ingress is not a policy type (Ingress, Egress)"),
        ("policyTypes: [Ingress, Egress, Egress]", "spec.policyTypes: 3 types are more than 2"),
        (
            "ingress: [{from: [{}]}]",
            "spec.ingress[0].from[0]: needs one of podSelector, namespaceSelector, ipBlock "
            "(for every peer, leave the list out)",
        ),
        (
            "ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
            "spec.ingress[0].from[0]: ipBlock can't stand beside podSelector or namespaceSelector (write two peers)",
        ),
        ("ingress: [{from: [{ipBlock: {}}]}]", "spec.ingress[0].from[0].ipBlock.cidr: is missing"),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]",
            "spec.ingress[0].from[0].ipBlock.cidr: 10.0.0.1 is not a CIDR (no prefix length)",
        ),
        (
            "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]",
            "spec.egress[0].to[0].ipBlock.except[0]: 11.0.0.0/16 is not inside 10.0.0.0/8",
        ),
        (
            "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]",
            "spec.egress[0].to[0].ipBlock.except[0]: 10.0.0.0/8 is all of 10.0.0.0/8: an exception must be smaller",
        ),
        ("egress: [{ports: [{port: 0}]}]", "spec.egress[0].ports[0].port: 0 is not a port (1 to 65535)"),
        ("egress: [{ports: [{port: '80'}]}]", f"spec.egress[0].ports[0].port: 80 is not a port name ({NAMES})"),
        ("egress: [{ports: [{port: Web}]}]", f"spec.egress[0].ports[0].port: Web is not a port name ({NAMES})"),
        ("egress: [{ports: [{port: 1.5}]}]", "spec.egress[0].ports[0].port: must be a string, is a number (1.5)"),
        ("egress: [{ports: [{endPort: 8}]}]", "spec.egress[0].ports[0].endPort: needs port"),
        ("egress: [{ports: [{port: web, endPort: 8}]}]", "spec.egress[0].ports[0].endPort: a named port has no range"),
        (
            "egress: [{ports: [{port: 9, endPort: 8}]}]",
            "spec.egress[0].ports[0].endPort: 8 is not a port from 9 to 65535",
        ),
        (
            "egress: [{ports: [{port: 9, protocol: ICMP}]}]",
            "spec.egress[0].ports[0].protocol: ICMP is not a protocol (TCP, UDP, SCTP)",
        ),
        ("egress: [{ports: [{port: 9, name: a}]}]", "spec.egress[0].ports[0].name: unknown field"),
    ],
)
def test_refused(spec: str, reason: str) -> None:
    parsed = parse_text(document(spec), "p.yaml")
    assert [str(error) for error in parsed.errors] == [f"p.yaml: NetworkPolicy shop/web: {reason}"]


def test_a_policy_without_spec_is_refused() -> None:
    # The API server would read it as «deny all ingress of the namespace»: nobody writes that so on purpose.
    parsed = parse_text(f"{{{HEAD}, metadata: {{name: web}}}}", "p.yaml")
    assert [str(error) for error in parsed.errors] == ["p.yaml: NetworkPolicy default/web: spec: is missing"]
