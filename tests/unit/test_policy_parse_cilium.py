"""What the fields of Cilium's policies come to mean: clusterwide scopes, nodes, Services, groups, ICMP, headers."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from spliceway.policy.entity import Entity
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import (
    Action,
    CidrPeer,
    HeaderCondition,
    HttpMatch,
    NetworkPolicy,
    Peers,
    PortRange,
    PortRule,
    Rule,
    ServicePeer,
)
from spliceway.policy.parse import parse_text
from spliceway.policy.table import Mismatch
from spliceway.policy.verdict import Protocol

CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
IN_SHOP = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.IN, ("shop",))
ANY_POD = Requirement("k8s", "io.kubernetes.pod.namespace", Operator.EXISTS)


def policy(body: str, kind: str = "CiliumNetworkPolicy", annotations: str = "") -> NetworkPolicy:
    namespace = "" if kind == CLUSTERWIDE else ", namespace: shop"
    meta = f"name: web{namespace}, annotations: {{{annotations}}}"
    spec = f"endpointSelector: {{matchLabels: {{app: web}}}}, {body}"
    parsed = parse_text(f"{{apiVersion: cilium.io/v2, kind: {kind}, metadata: {{{meta}}}, spec: {{{spec}}}}}", "p.yaml")
    assert [str(error) for error in parsed.errors] == []
    (found,) = parsed.objects
    assert isinstance(found, NetworkPolicy)
    return found


def rule(body: str, kind: str = "CiliumNetworkPolicy") -> Rule:
    (found,) = policy(body, kind).specs[0].rules
    return found


def app(value: str, *more: Requirement) -> Selector:
    return Selector((Requirement("any", "app", Operator.IN, (value,)), *more))


def test_a_clusterwide_policy_is_about_pods_of_every_namespace() -> None:
    found = policy("ingress: [{}]", CLUSTERWIDE)
    assert (found.kind, found.namespace, found.key) == (CLUSTERWIDE, "", "web")
    assert found.title == "CiliumClusterwideNetworkPolicy web"
    assert found.specs[0].subject == app("web")
    assert policy("ingress: [{}]").specs[0].subject == app("web", IN_SHOP)


@pytest.mark.parametrize(
    ("selector", "namespaced", "clusterwide"),
    [
        ("", (IN_SHOP,), (ANY_POD,)),
        ("matchLabels: {io.kubernetes.pod.namespace: bank}", (), ()),
        ("matchLabels: {io.cilium.k8s.namespace.labels.team: red}", (), (ANY_POD,)),
        ("matchLabels: {'reserved:world': ''}", (), ()),
    ],
)
def test_scope_of_peers(
    selector: str, namespaced: tuple[Requirement, ...], clusterwide: tuple[Requirement, ...]
) -> None:
    for kind, wanted in (("CiliumNetworkPolicy", namespaced), (CLUSTERWIDE, clusterwide)):
        peers = rule(f"ingress: [{{fromEndpoints: [{{{selector}}}]}}]", kind).peers
        assert peers is not None
        assert peers.endpoints[0].requirements[1 if selector else 0 :] == wanted


def test_clusterwide_peers_are_pods_not_the_world() -> None:
    peers = rule("ingress: [{fromEndpoints: [{}]}]", CLUSTERWIDE).peers
    assert peers is not None
    assert peers.endpoints[0].matches(["k8s:io.kubernetes.pod.namespace=bank"])
    assert not peers.endpoints[0].matches(["reserved:world-ipv4"])
    assert not peers.endpoints[0].matches(["reserved:unmanaged"])


def test_audit_is_an_annotation() -> None:
    assert policy("ingress: []", annotations="spliceway.io/enforcement: audit").audit
    assert not policy("ingress: []", annotations="spliceway.io/enforcement: enforce, other: x").audit
    assert not policy("ingress: []").audit
    assert policy("ingress: []", CLUSTERWIDE, "spliceway.io/enforcement: audit").audit


def test_nodes_and_services() -> None:
    nodes = (Selector((Requirement("any", "zone", Operator.IN, ("a",)),)), Selector())
    assert rule("ingress: [{fromNodes: [{matchLabels: {zone: a}}, {}]}]").peers == Peers(nodes=nodes)
    assert rule("egressDeny: [{toNodes: [{}]}]").peers == Peers(nodes=(Selector(),))
    body = "{k8sService: {serviceName: db}}, {k8sService: {serviceName: db, namespace: bank}}"
    body += ", {k8sServiceSelector: {selector: {matchLabels: {app: a}}, namespace: bank}}"
    body += ", {k8sServiceSelector: {selector: {}}}"
    assert rule(f"egress: [{{toServices: [{body}], toPorts: [{{ports: [{{port: '1'}}]}}]}}]").peers == Peers(
        services=(
            ServicePeer("", "db"),
            ServicePeer("bank", "db"),
            ServicePeer("bank", "", app("a")),
            ServicePeer("", "", Selector()),
        )
    )


def test_cidr_groups() -> None:
    peers = rule(
        "ingress: [{fromCIDRSet: [{cidrGroupRef: partners, except: [10.1.0.0/16]}, "
        "{cidrGroupSelector: {matchLabels: {app: a}}}, {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]}]"
    ).peers
    assert peers == Peers(
        cidrs=(
            CidrPeer(None, (ip_network("10.1.0.0/16"),), "partners"),
            CidrPeer(None, (), "", app("a")),
            CidrPeer(ip_network("10.0.0.0/8"), (ip_network("10.0.0.0/8"),)),
        )
    )


def test_every_entity_is_known() -> None:
    # Cilium 1.20, Documentation/security/policy/layer3 «Entities based» and the CRD's enumeration.
    names = "all world world-ipv4 world-ipv6 cluster cluster-mesh host remote-node kube-apiserver init health ingress"
    names += " unmanaged none"
    peers = rule(f"ingress: [{{fromEntities: [{', '.join(names.split())}]}}]").peers
    assert peers is not None
    assert {entity.value for entity in peers.entities} == set(names.split()) == {entity.value for entity in Entity}


def test_empty_lists_of_the_newer_peers_select_nobody() -> None:
    for way, field in (
        ("ingress", "fromNodes"),
        ("egress", "toNodes"),
        ("egress", "toServices"),
        ("egress", "toEntities"),
    ):
        found = rule(f"{way}: [{{{field}: [], toPorts: [{{ports: [{{port: '80'}}]}}]}}]")
        assert found.peers == Peers()
        assert not found.void


def test_icmp_types() -> None:
    # RFC 792, RFC 4443 and IANA's registries: echo is 8 and 128, «destination unreachable» 3 and 1, «packet too big» 2.
    found = rule(
        "ingress: [{icmps: [{fields: [{type: 8}, {type: '0'}, {family: IPv4, type: DestinationUnreachable}]}, "
        "{fields: [{family: IPv6, type: EchoRequest}, {family: IPv6, type: 255}, "
        "{family: IPv6, type: PacketTooBig}]}]}]"
    )
    icmp = [PortRange(Protocol.ICMP, kind << 8, (kind << 8) + 255) for kind in (8, 0, 3)]
    icmpv6 = [PortRange(Protocol.ICMPV6, kind << 8, (kind << 8) + 255) for kind in (128, 255, 2)]
    assert found.to_ports == (
        PortRule("spec.ingress[0].icmps[0]", tuple(icmp)),
        PortRule("spec.ingress[0].icmps[1]", tuple(icmpv6)),
    )
    assert (found.peers, found.void, found.action) == (None, False, Action.ALLOW)
    assert icmp[0].covers(1, 8 << 8 | 7)
    assert not icmp[0].covers(1, 0)
    assert rule("egressDeny: [{icmps: [{fields: [{type: 8}]}]}]").action is Action.DENY


def test_named_ports() -> None:
    found = rule("egress: [{toPorts: [{ports: [{port: http}, {port: DNS-tcp, protocol: TCP}, {port: 0x50}]}]}]")
    # A hexadecimal number is a service name (RFC 6335), also for Cilium; unquoted, YAML makes 80 of it.
    assert found.to_ports[0].ports == (
        PortRange(Protocol.ANY, 0, 0, "http"),
        PortRange(Protocol.TCP, 0, 0, "dns-tcp"),
        PortRange(Protocol.ANY, 80, 80),
    )
    found = rule("egress: [{toPorts: [{ports: [{port: '0x50', protocol: UDP}]}]}]")
    assert found.to_ports[0].ports == (PortRange(Protocol.UDP, 0, 0, "0x50"),)


def test_http_in_both_directions_with_every_condition() -> None:
    conditions = (
        "method: GET, path: '/a.*', host: 'api[.]example', headers: [X-Trace, 'X-Team: red blue', 'X-Old green'], "
        "headerMatches: [{name: X-Key, secret: {name: keys}}, {name: X-Key, secret: {name: keys, namespace: bank}, "
        "value: v}, {name: X-A}, {name: X-B, value: b, mismatch: REPLACE}, {name: X-C, mismatch: LOG}]"
    )
    for way in ("ingress", "egress"):
        found = rule(
            f"{way}: [{{toPorts: [{{ports: [{{port: web, protocol: TCP}}], rules: {{http: [{{{conditions}}}]}}}}]}}]"
        )
        assert found.to_ports[0].http == (
            HttpMatch(
                f"spec.{way}[0].toPorts[0].rules.http[0]",
                "GET",
                "/a.*",
                "api[.]example",
                (
                    HeaderCondition("X-Trace"),
                    HeaderCondition("X-Team", "red blue"),
                    HeaderCondition("X-Old", "green"),
                    HeaderCondition("X-Key", None, ("shop/keys", "")),
                    HeaderCondition("X-Key", "v", ("bank/keys", "")),
                    HeaderCondition("X-A"),
                    HeaderCondition("X-B", "b", None, Mismatch.REPLACE),
                    HeaderCondition("X-C", None, None, Mismatch.LOG),
                ),
            ),
        )


def test_expressions_are_whole_re2() -> None:
    found = rule(
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], "
        "rules: {http: [{host: '.*[.]example', path: ''}]}}]}]"
    )
    assert found.to_ports[0].http == (HttpMatch("spec.ingress[0].toPorts[0].rules.http[0]", host_regex=".*[.]example"),)
