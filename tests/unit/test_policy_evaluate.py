"""The interpreter, rule by rule: tiers, audit, every kind of peer, ports. Objects are built straight from the model."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from spliceway.policy.entity import Entity
from spliceway.policy.evaluate import Connection, Decision, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import (
    Action,
    CidrGroup,
    CidrPeer,
    Cluster,
    ContainerPort,
    EndpointSlice,
    HeaderCondition,
    HttpMatch,
    NetworkPolicy,
    Node,
    Peers,
    Pod,
    PortRange,
    PortRule,
    Rule,
    Secret,
    Service,
    ServicePeer,
    Spec,
    Tier,
)
from spliceway.policy.table import Mismatch
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.slices import ready

TCP, UDP = int(Protocol.TCP), int(Protocol.UDP)
HOST, REMOTE, WORLD = "172.30.0.1", "172.30.0.2", "203.0.113.9"
WEB, DB, FAR = "10.240.1.10", "10.240.1.11", "10.240.2.10"


def has(key: str, value: str) -> Selector:
    return Selector((Requirement("any", key, Operator.IN, (value,)),))


EVERYONE = Selector()
API_SERVER = Selector((Requirement("reserved", "kube-apiserver", Operator.EXISTS),))
PODS = [
    Pod("shop", "web", {"app": "web"}, (ip_address(WEB),), "node1"),
    Pod(
        "shop",
        "db",
        {"app": "db"},
        (ip_address(DB),),
        "node1",
        ports=(
            ContainerPort("http", Protocol.TCP, 8080),
            ContainerPort("http", Protocol.TCP, 9090),
            ContainerPort("http", Protocol.UDP, 7070),
        ),
    ),
    Pod("bank", "far", {"app": "db"}, (ip_address(FAR),), "node2", ports=(ContainerPort("http", Protocol.TCP, 81),)),
    Pod("shop", "agent", {"app": "db"}, (ip_address("172.30.0.7"),), "node2", host_network=True),
]
NODES = [
    Node("node1", (ip_address(HOST),), (ip_network("10.240.1.0/24"),), labels={"zone": "a"}),
    Node("node2", (ip_address(REMOTE),), (ip_network("10.240.2.0/24"),), labels={"zone": "b"}),
]


def ports(
    *ranges: PortRange, path: str = "spec.x[0].toPorts[0]", http: tuple[HttpMatch, ...] | None = None
) -> PortRule:
    return PortRule(path, ranges, http)


def tcp(first: int, last: int = 0, protocol: Protocol = Protocol.TCP) -> PortRange:
    return PortRange(protocol, first, last or first)


def rule(
    path: str = "r",
    action: Action = Action.ALLOW,
    peers: Peers | None = None,
    *to_ports: PortRule,
    direction: Direction = Direction.INGRESS,
    void: bool = False,
) -> Rule:
    return Rule(path, direction, action, peers, to_ports, void)


def policy(
    name: str,
    *rules: Rule,
    tier: Tier = Tier.NORMAL,
    priority: int = 0,
    audit: bool = False,
    subject: Selector = EVERYONE,
    default_deny: bool = True,
    direction: Direction = Direction.INGRESS,
) -> NetworkPolicy:
    ingress = direction is Direction.INGRESS
    deny = default_deny and tier is Tier.NORMAL
    spec = Spec(
        "spec",
        subject,
        rules,
        (ingress and deny, not ingress and deny),
        (ingress, not ingress),
        tier=tier,
        priority=priority,
    )
    kind, namespace = ("CiliumNetworkPolicy", "shop") if tier is Tier.NORMAL else ("ClusterNetworkPolicy", "")
    return NetworkPolicy(kind, namespace, name, (spec,), audit=audit)


def cluster(*policies: NetworkPolicy, audit: bool = False) -> Cluster:
    return Cluster(audit=audit).with_objects([*PODS, *NODES, *policies])


def ask(
    found: Cluster,
    source: str,
    destination: str,
    port: int = 80,
    protocol: int = TCP,
    request: HttpRequest | None = None,
) -> Decision:
    return evaluate(found, Connection(ip_address(source), ip_address(destination), protocol, port), request)


def said(decision: Decision) -> tuple[str, str, str]:
    return decision.verdict.label, decision.reason.label, str(decision.rule) if decision.rule else ""


ADMIN, BASELINE = {"tier": Tier.ADMIN}, {"tier": Tier.BASELINE}
ALLOW, DENY, PASS = Action.ALLOW, Action.DENY, Action.PASS
CNP, ANP = "CiliumNetworkPolicy shop/", "ClusterNetworkPolicy "


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([], ("allow", "no-policy", "")),
        # Rules in the order of the spec: the first that matches.
        ([policy("a", rule("one", ALLOW), rule("two", DENY), **ADMIN)], ("allow", "policy-allowed", f"{ANP}a one")),
        ([policy("a", rule("one", DENY), rule("two", ALLOW), **ADMIN)], ("deny", "policy-denied", f"{ANP}a one")),
        # Policies by priority, lower first; ties by name.
        (
            [policy("a", rule("x", DENY), priority=2, **ADMIN), policy("b", rule("x", ALLOW), priority=1, **ADMIN)],
            ("allow", "policy-allowed", f"{ANP}b x"),
        ),
        (
            [policy("b", rule("x", DENY), priority=1, **ADMIN), policy("a", rule("x", ALLOW), priority=1, **ADMIN)],
            ("allow", "policy-allowed", f"{ANP}a x"),
        ),
        # A rule that doesn't match leaves it to the next one.
        (
            [policy("a", rule("x", DENY, None, ports(tcp(81))), rule("y", ALLOW), **ADMIN)],
            ("allow", "policy-allowed", f"{ANP}a y"),
        ),
        # Admin comes before a deny rule and before default deny of NORMAL.
        ([policy("a", rule("x", ALLOW), **ADMIN), policy("n", rule("d", DENY))],
         ("allow", "policy-allowed", f"{ANP}a x")),
        ([policy("a", rule("x", DENY), **ADMIN), policy("n", rule("y", ALLOW))],
         ("deny", "policy-denied", f"{ANP}a x")),
        # Pass: the rest of ADMIN has no say.
        (
            [policy("a", rule("x", PASS), rule("y", DENY), **ADMIN), policy("n", rule("z", ALLOW))],
            ("allow", "policy-allowed", f"{CNP}n z"),
        ),
        ([policy("a", rule("x", PASS), **ADMIN)], ("allow", "no-policy", "")),
        ([policy("a", rule("x", PASS), **ADMIN), policy("n")], ("deny", "default-deny", "")),
        ([policy("a", rule("x", PASS), **ADMIN), policy("b", rule("y", DENY), **BASELINE)],
         ("deny", "policy-denied", f"{ANP}b y")),
        # NORMAL: deny wins over allow, whatever the order.
        ([policy("n", rule("x", ALLOW), rule("y", DENY))], ("deny", "policy-denied", f"{CNP}n y")),
        # Baseline is asked only when NORMAL says nothing.
        ([policy("n"), policy("b", rule("x", ALLOW), **BASELINE)], ("deny", "default-deny", "")),
        ([policy("n", default_deny=False), policy("b", rule("x", DENY), **BASELINE)],
         ("deny", "policy-denied", f"{ANP}b x")),
        ([policy("n", rule("y", ALLOW)), policy("b", rule("x", DENY), **BASELINE)],
         ("allow", "policy-allowed", f"{CNP}n y")),
        ([policy("b", rule("x", PASS), rule("y", DENY), **BASELINE)], ("allow", "no-policy", "")),
        ([policy("b", rule("x", ALLOW), **BASELINE)], ("allow", "policy-allowed", f"{ANP}b x")),
        # A void rule matches nothing and denies nothing, but counts for default deny (Spec.default_deny).
        ([policy("n", rule("x", ALLOW, void=True))], ("deny", "default-deny", "")),
        ([policy("n", rule("x", DENY, void=True), default_deny=False)], ("allow", "no-policy", "")),
    ],
)  # fmt: skip
def test_which_rule_wins(policies: list[NetworkPolicy], expected: tuple[str, str, str]) -> None:
    assert said(ask(cluster(*policies), WEB, DB)) == expected


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([], ("allow", "no-policy", "")),
        ([policy("n")], ("allow", "host-allowed", "")),
        ([policy("n", rule("x", ALLOW, None, ports(tcp(80), http=(HttpMatch("h"),))))], ("allow", "host-allowed", "")),
        ([policy("n", rule("x", DENY))], ("deny", "policy-denied", f"{CNP}n x")),
        ([policy("a", rule("x", DENY), **ADMIN), policy("n")], ("deny", "policy-denied", f"{ANP}a x")),
        ([policy("a", rule("x", PASS), **ADMIN), policy("n")], ("allow", "host-allowed", "")),
        ([policy("b", rule("x", DENY), **BASELINE)], ("allow", "host-allowed", "")),
    ],
)
def test_the_own_node_comes_in_unless_it_is_denied(
    policies: list[NetworkPolicy], expected: tuple[str, str, str]
) -> None:
    assert said(ask(cluster(*policies), HOST, DB)) == expected


def test_a_remote_node_has_no_exemption_and_neither_has_the_own_in_egress() -> None:
    assert said(ask(cluster(policy("n")), REMOTE, DB))[:2] == ("deny", "default-deny")
    assert said(ask(cluster(policy("n", direction=Direction.EGRESS)), WEB, HOST))[:2] == ("deny", "default-deny")


HTTP_A = rule("a", ALLOW, None, ports(tcp(80), path="a.toPorts[0]", http=(HttpMatch("a.http[0]", path_regex="/a"),)))
HTTP_B = rule("b", ALLOW, None, ports(tcp(80), path="b.toPorts[0]", http=(HttpMatch("b.http[0]", path_regex="/b"),)))


@pytest.mark.parametrize(
    ("enforced", "audited", "expected", "contributors", "audit"),
    [
        # DENY, whatever audit says
        ([rule("d", DENY)], [rule("x", ALLOW)], ("deny", "policy-denied", f"{CNP}enf d"), (), ()),
        # ALLOW and ALLOW: as all policies have it
        ([], [rule("x", ALLOW)], ("allow", "policy-allowed", f"{CNP}dry x"), (), ()),
        # ALLOW, would be DENY
        ([], [rule("d", DENY)], ("allow", "policy-denied", f"{CNP}dry d"), (), ()),
        ([], [], ("allow", "default-deny", ""), (), ()),
        ([rule("x", ALLOW)], [rule("d", DENY)], ("allow", "policy-denied", f"{CNP}dry d"), (), ()),
        # ALLOW, would be REDIRECT
        ([], [HTTP_A], ("redirect", "redirected", f"{CNP}dry a.toPorts[0]"), (), ("dry a.toPorts[0]",)),
        # REDIRECT, would be DENY
        ([HTTP_A], [rule("d", DENY)], ("redirect", "policy-denied", f"{CNP}dry d"), ("enf a.toPorts[0]",), ()),
        # REDIRECT stays as it is
        ([HTTP_A], [HTTP_B], ("redirect", "redirected", f"{CNP}enf a.toPorts[0]"), ("enf a.toPorts[0]",), ()),
        ([HTTP_A], [rule("x", ALLOW)], ("redirect", "redirected", f"{CNP}enf a.toPorts[0]"), ("enf a.toPorts[0]",), ()),
    ],
)  # fmt: skip
def test_audit_of_one_half(
    enforced: list[Rule],
    audited: list[Rule],
    expected: tuple[str, str, str],
    contributors: tuple[str, ...],
    audit: tuple[str, ...],
) -> None:
    policies = [policy("dry", *audited, audit=True), *([policy("enf", *enforced)] if enforced else [])]
    decision = ask(cluster(*policies), WEB, DB)
    assert said(decision) == expected
    assert decision.ingress is not None
    assert tuple(map(str, decision.ingress.contributors)) == tuple(CNP + name for name in contributors)
    assert tuple(map(str, decision.ingress.audit)) == tuple(CNP + name for name in audit)


def test_audit_of_the_whole_cluster_denies_nothing() -> None:
    for rules, reason in (([rule("d", DENY)], "policy-denied"), ([], "default-deny")):
        for tier in (Tier.NORMAL, Tier.ADMIN):
            decision = ask(cluster(policy("n", *rules, tier=tier), audit=True), WEB, DB)
            assert decision.verdict is Verdict.ALLOW
            if rules or tier is Tier.NORMAL:
                assert decision.reason.label == reason


def test_audit_of_a_connection_with_two_halves() -> None:
    out, into = Direction.EGRESS, Direction.INGRESS
    denies_out = policy("out", rule("d", DENY, direction=out), direction=out, audit=True)
    denies_in = policy("in", rule("d", DENY, direction=into), audit=True)
    redirects = policy("http", HTTP_A)
    assert said(ask(cluster(denies_out, denies_in), WEB, DB)) == ("allow", "policy-denied", f"{CNP}out d")
    assert said(ask(cluster(denies_out, redirects), WEB, DB)) == ("redirect", "policy-denied", f"{CNP}out d")
    really = policy("really", rule("d", DENY))
    assert said(ask(cluster(denies_out, really), WEB, DB)) == ("deny", "policy-denied", f"{CNP}really d")
    decision = ask(cluster(denies_out, redirects), WEB, DB, request=HttpRequest.of("GET", "/b"))
    assert decision.http is not None
    assert decision.http.status == 403


@pytest.mark.parametrize(
    ("peers", "address", "matches"),
    [
        (None, WORLD, True),
        (None, HOST, True),
        (Peers(), WEB, False),
        (Peers(), WORLD, False),
        # Prefixes of Cilium's rules are outside the cluster, those of ipBlock and networks anywhere.
        (Peers(cidrs=(CidrPeer(ip_network("0.0.0.0/0")),)), WORLD, True),
        (Peers(cidrs=(CidrPeer(ip_network("0.0.0.0/0")),)), FAR, False),
        (Peers(cidrs=(CidrPeer(ip_network("0.0.0.0/0")),)), REMOTE, False),
        (Peers(cidrs=(CidrPeer(ip_network("10.240.1.0/24")),)), "10.240.1.99", False),  # no pod, but of a pod range
        (Peers(cidrs=(CidrPeer(ip_network("10.240.2.0/24"), inside=True),)), FAR, True),
        (Peers(cidrs=(CidrPeer(ip_network("10.240.2.0/24"), inside=True),)), "10.240.2.99", True),
        (Peers(cidrs=(CidrPeer(ip_network("172.30.0.0/24"), inside=True),)), REMOTE, True),
        (Peers(cidrs=(CidrPeer(ip_network("10.0.0.0/8"), (ip_network("10.240.2.0/24"),), inside=True),)), FAR, False),
        (Peers(cidrs=(CidrPeer(ip_network("203.0.113.0/24"), (ip_network("203.0.113.8/29"),)),)), WORLD, False),
        # Groups: by name, by label; a missing one names nothing; exceptions count for each.
        (Peers(cidrs=(CidrPeer(group="docs"),)), WORLD, True),
        (Peers(cidrs=(CidrPeer(group="nothing"),)), WORLD, False),
        (Peers(cidrs=(CidrPeer(groups=has("kind", "test")),)), WORLD, True),
        (Peers(cidrs=(CidrPeer(groups=has("kind", "prod")),)), WORLD, False),
        (Peers(cidrs=(CidrPeer(group="docs", excepts=(ip_network("203.0.113.9/32"),)),)), WORLD, False),
        # Nodes: other ones, or all.
        (Peers(nodes=(has("zone", "b"),)), REMOTE, True),
        (Peers(nodes=(has("zone", "a"),)), REMOTE, False),
        (Peers(nodes=(EVERYONE,)), HOST, False),
        (Peers(all_nodes=(has("zone", "a"),)), HOST, True),
        (Peers(all_nodes=(EVERYONE,)), REMOTE, True),
        (Peers(all_nodes=(EVERYONE,)), FAR, False),
        (Peers(nodes=(has("zone", "b"),)), "172.30.0.7", True),  # of a pod in its network
        (Peers(endpoints=(has("zone", "b"),)), REMOTE, False),  # labels of nodes are not those of endpoints
        # Services: the pods that they select, or addresses outside the cluster.
        (Peers(services=(ServicePeer("bank", "far"),)), FAR, True),
        (Peers(services=(ServicePeer("bank", "far"),)), WEB, False),
        (Peers(services=(ServicePeer("shop", "far"),)), FAR, False),  # there is none in this namespace
        (Peers(services=(ServicePeer("shop", "db"),)), FAR, False),  # selects pods of its own namespace only
        (Peers(services=(ServicePeer("", selector=has("team", "x")),)), FAR, True),
        (Peers(services=(ServicePeer("shop", selector=has("team", "x")),)), FAR, False),
        (Peers(services=(ServicePeer("shop", "outside"),)), WORLD, True),
        (Peers(services=(ServicePeer("shop", "outside"),)), FAR, False),  # behind it, but in the cluster
        (Peers(services=(ServicePeer("shop", "outside"),)), "198.51.100.6", False),  # behind another one
        (Peers(services=(ServicePeer("bank", "far"),)), WORLD, False),
        (Peers(services=(ServicePeer("bank", "outside"),)), WORLD, False),
        (Peers(entities=(Entity.WORLD_IPV4,)), WORLD, True),
        (Peers(entities=(Entity.WORLD_IPV6,)), WORLD, False),
        # kube-apiserver: in addition to what the address is.
        (Peers(entities=(Entity.REMOTE_NODE,)), "172.30.0.3", True),
        (Peers(endpoints=(API_SERVER,)), "172.30.0.3", True),
        (Peers(endpoints=(API_SERVER,)), REMOTE, False),
        (Peers(endpoints=(API_SERVER,)), "198.51.100.6", True),
        (Peers(entities=(Entity.WORLD,)), "198.51.100.6", True),
    ],
)  # fmt: skip
def test_peers(peers: Peers | None, address: str, matches: bool) -> None:
    extra = [
        CidrGroup("docs", (ip_network("198.51.100.0/25"), ip_network("203.0.113.0/24")), {"kind": "test"}),
        Service("bank", "far", {"app": "db"}, {"team": "x"}),
        Service("shop", "db", {"app": "db"}),
        Service("shop", "outside"),
        EndpointSlice("shop", "outside-1", "outside", ready(WORLD, FAR)),
        EndpointSlice("default", "k", "kubernetes", ready("172.30.0.3", "198.51.100.6")),
        EndpointSlice("shop", "k", "kubernetes", ready(REMOTE)),
        Node("node3", (ip_address("172.30.0.3"),)),
    ]
    out = Direction.EGRESS
    found = cluster(policy("n", rule("x", ALLOW, peers, direction=out), direction=out)).with_objects(extra)
    assert (ask(found, DB, address).verdict is Verdict.ALLOW) is matches


@pytest.mark.parametrize(
    ("protocol", "port", "server", "matches"),
    [
        (TCP, 8080, DB, True),
        (TCP, 9090, DB, True),  # every number that the name has
        (TCP, 7070, DB, False),  # is UDP there
        (UDP, 7070, DB, False),  # the rule is about TCP
        (TCP, 80, DB, False),
        (TCP, 81, FAR, True),  # each pod's own
        (TCP, 8080, FAR, False),
        (TCP, 8080, "10.240.1.99", False),  # no pod
        (TCP, 8080, REMOTE, False),
        (TCP, 8080, WORLD, False),
    ],
)
def test_named_ports_are_those_of_the_server(protocol: int, port: int, server: str, matches: bool) -> None:
    named = ports(PortRange(Protocol.TCP, 0, 0, "http"))
    for direction in Direction:
        found = cluster(policy("n", rule("x", ALLOW, None, named, direction=direction), direction=direction))
        if direction is Direction.INGRESS and server not in (DB, FAR):
            continue
        assert (ask(found, WEB, server, port, protocol).verdict is Verdict.ALLOW) is matches


def test_named_ports_of_any_protocol() -> None:
    found = cluster(policy("n", rule("x", ALLOW, None, ports(PortRange(Protocol.ANY, 0, 0, "http")))))
    assert [ask(found, WEB, DB, port, protocol).verdict.label for protocol, port in ((TCP, 8080), (UDP, 7070))] == [
        "allow",
        "allow",
    ]
    assert ask(found, WEB, DB, 7070, TCP).verdict is Verdict.DENY


def test_only_specifications_that_select_the_endpoint_and_apply_to_the_direction_count() -> None:
    web_only = policy("n", subject=has("app", "web"))
    assert said(ask(cluster(web_only), WEB, DB)) == ("allow", "no-policy", "")
    assert said(ask(cluster(web_only), DB, WEB)) == ("deny", "default-deny", "")


def test_of_two_halves_that_pass_the_servers_is_named() -> None:
    out = policy("out", rule("o", direction=Direction.EGRESS), direction=Direction.EGRESS)
    assert said(ask(cluster(out, policy("in", rule("i"))), WEB, DB)) == ("allow", "policy-allowed", f"{CNP}in i")
    assert said(ask(cluster(out), WEB, DB)) == ("allow", "policy-allowed", f"{CNP}out o")


def test_several_entries_and_ranges() -> None:
    found = cluster(policy("n", rule("x", ALLOW, None, ports(tcp(80), tcp(90, 92)), ports(tcp(100)))))
    allowed = [port for port in range(1, 200) if ask(found, WEB, DB, port).verdict is Verdict.ALLOW]
    assert allowed == [80, 90, 91, 92, 100]
    assert ask(cluster(policy("n", rule("x", ALLOW, None, ports()))), WEB, DB).verdict is Verdict.DENY


def test_all_http_rules_that_match_are_asked_and_the_first_is_named() -> None:
    decision = ask(cluster(policy("b", HTTP_B), policy("a", HTTP_A)), WEB, DB)
    assert said(decision) == ("redirect", "redirected", f"{CNP}a a.toPorts[0]")
    assert decision.ingress is not None
    assert list(map(str, decision.ingress.contributors)) == [f"{CNP}a a.toPorts[0]", f"{CNP}b b.toPorts[0]"]


def test_two_pods_with_one_address() -> None:
    """With the same labels the first by name is the endpoint; with different ones nobody knows who it is."""
    twin = Pod(
        "shop", "a-twin", {"app": "db"}, (ip_address(DB),), "node1", ports=(ContainerPort("x", Protocol.TCP, 5),)
    )
    named = cluster(policy("n", rule("x", ALLOW, None, ports(PortRange(Protocol.TCP, 0, 0, "x"))))).with_objects([twin])
    assert ask(named, WEB, DB, 5).verdict is Verdict.ALLOW
    out = Direction.EGRESS
    unmanaged = rule("x", ALLOW, Peers(entities=(Entity.UNMANAGED,)), direction=out)
    found = cluster(policy("n", unmanaged, direction=out, subject=has("app", "web")))
    assert ask(found.with_objects([twin]), WEB, DB).verdict is Verdict.DENY
    other = Pod("shop", "a-twin", {"app": "other"}, (ip_address(DB),), "node1")
    assert ask(found.with_objects([other]), WEB, DB).verdict is Verdict.ALLOW


def test_icmp_types() -> None:
    echo = PortRange(Protocol.ICMP, 8 << 8, 8 << 8 | 255)
    found = cluster(policy("n", rule("x", ALLOW, None, ports(echo))))
    icmp = int(Protocol.ICMP)
    assert ask(found, WEB, DB, 8 << 8 | 3, icmp).verdict is Verdict.ALLOW
    assert ask(found, WEB, DB, 3 << 8, icmp).verdict is Verdict.DENY
    assert ask(found, WEB, DB, 8 << 8, TCP).verdict is Verdict.DENY


def test_any_without_ports_includes_icmp_and_a_port_range_does_not() -> None:
    icmp = int(Protocol.ICMP)
    assert ask(cluster(policy("n", rule())), WEB, DB, 8 << 8, icmp).verdict is Verdict.ALLOW
    every_port = ports(PortRange(Protocol.ANY, 0, 65535))
    assert ask(cluster(policy("n", rule("x", ALLOW, None, every_port))), WEB, DB, 8 << 8, icmp).verdict is Verdict.DENY


def test_a_plain_allow_voids_http_rules() -> None:
    plain = rule("p", ALLOW, Peers(endpoints=(has("app", "web"),)))
    assert said(ask(cluster(policy("n", HTTP_A, plain)), WEB, DB)) == ("allow", "policy-allowed", f"{CNP}n p")
    assert said(ask(cluster(policy("n", HTTP_A, plain)), FAR, DB)) == ("redirect", "redirected", f"{CNP}n a.toPorts[0]")


def test_http_rules_hold_without_default_deny() -> None:
    found = cluster(policy("n", HTTP_A, default_deny=False))
    decision = ask(found, WEB, DB, request=HttpRequest.of("GET", "/other"))
    assert decision.http is not None
    assert (decision.verdict, decision.http.reason) == (Verdict.REDIRECT, Reason.HTTP_DENIED)
    assert said(ask(found, WEB, DB, 81)) == ("allow", "no-policy", "")


def test_a_pod_always_reaches_itself() -> None:
    for direction in Direction:
        decision = ask(cluster(policy("n", direction=direction)), DB, DB)
        assert (said(decision), decision.egress, decision.ingress) == (("allow", "no-policy", ""), None, None)


def http_entry(path: str, *matches: HttpMatch, direction: Direction) -> Rule:
    return rule(path, ALLOW, None, ports(tcp(80), path=f"{path}.toPorts[0]", http=matches), direction=direction)


@pytest.mark.parametrize(
    ("path", "status", "rule_name", "miss"),
    [
        ("/both", 200, f"{CNP}in i.http[0]", ""),
        ("/client", 403, "", f"rule {CNP}in i.http[0]"),
        ("/server", 403, "", f"rule {CNP}out o.http[0]"),
        ("/neither", 403, "", f"rule {CNP}out o.http[0]"),
    ],
)
def test_http_rules_at_both_ends(path: str, status: int, rule_name: str, miss: str) -> None:
    out = Direction.EGRESS
    found = cluster(
        policy(
            "out",
            http_entry("o", HttpMatch("o.http[0]", path_regex="/both|/client"), direction=out),
            direction=out,
        ),
        policy("in", http_entry("i", HttpMatch("i.http[0]", path_regex="/both|/server"), direction=Direction.INGRESS)),
    )
    decision = ask(found, WEB, DB, request=HttpRequest.of("GET", path))
    assert said(decision) == ("redirect", "redirected", f"{CNP}out o.toPorts[0]")
    assert decision.http is not None
    assert (decision.http.status, str(decision.http_rule or "")) == (status, rule_name)
    assert decision.nearest_miss.startswith(miss) if miss else not decision.nearest_miss


def test_audit_of_requests() -> None:
    found = cluster(policy("n", HTTP_A, audit=True))
    denied = ask(found, WEB, DB, request=HttpRequest.of("GET", "/other")).http
    assert denied is not None
    assert (denied.verdict, denied.reason, denied.status) == (Verdict.ALLOW, Reason.HTTP_DENIED, 200)
    allowed = ask(found, WEB, DB, request=HttpRequest.of("GET", "/a"))
    assert allowed.http is not None
    assert (allowed.http.reason, str(allowed.http_rule)) == (Reason.HTTP_ALLOWED, f"{CNP}n a.http[0]")


@pytest.mark.parametrize(
    ("data", "key", "mismatch", "token", "status"),
    [
        ({"token": b"s3cret\n"}, "token", Mismatch.LOG, "s3cret", 403),  # nothing that a header can be
        ({"token": b"s3cret"}, "token", Mismatch.DENY, "s3cret", 200),
        ({"token": b"s3cret"}, "token", Mismatch.DENY, "other", 403),
        ({"token": b"s3cret"}, "", Mismatch.DENY, "s3cret", 200),
        ({"token": b"s3cret", "more": b"x"}, "", Mismatch.DENY, "s3cret", 403),  # which one?
        ({"token": b"s3cret"}, "other", Mismatch.DENY, "s3cret", 403),
        (None, "token", Mismatch.DENY, "s3cret", 403),
        (None, "token", Mismatch.LOG, "s3cret", 403),  # missing: whatever the action
        ({"token": b"s3cret"}, "token", Mismatch.LOG, "other", 200),
        ({"token": b"\xe9"}, "token", Mismatch.DENY, "\xe9", 200),
        ({"token": b"a caf\xe9"}, "token", Mismatch.DENY, "a caf\xe9", 200),
    ],
)
def test_headers_from_secrets(
    data: dict[str, bytes] | None, key: str, mismatch: Mismatch, token: str, status: int
) -> None:
    condition = HeaderCondition("X-Token", secret=("shop/tokens", key), mismatch=mismatch)
    match = HttpMatch("i.http[0]", headers=(condition,))
    found = cluster(policy("in", http_entry("i", match, direction=Direction.INGRESS)))
    if data is not None:
        found = found.with_objects([Secret("shop", "tokens", data)])
    decision = ask(found, WEB, DB, request=HttpRequest.of("GET", "/", [("Host", "db"), ("x-token", token)]))
    assert decision.http is not None
    assert decision.http.status == status
    assert "s3cret" not in decision.nearest_miss
    assert token not in decision.nearest_miss
    assert bool(decision.nearest_miss) == (status == 403)
    if status == 403:
        assert "header x-token is not the value of its secret" in decision.nearest_miss


def test_a_value_beside_a_secret_counts_while_that_is_missing() -> None:
    condition = HeaderCondition("X-Token", "fallback", secret=("shop/tokens", "token"))
    found = cluster(policy("in", http_entry("i", HttpMatch("h", headers=(condition,)), direction=Direction.INGRESS)))
    request = HttpRequest.of("GET", "/", [("Host", "db"), ("x-token", "fallback")])
    for data, status in (
        ({}, 200),
        ({"token": b""}, 200),  # nothing that could be meant
        ({"token": b"s3cret"}, 403),
        ({"token": b"fallback\n"}, 403),  # it is there, and no header can have it
        ({"token": b" fallback"}, 403),
    ):
        decision = ask(found.with_objects([Secret("shop", "tokens", data)]), WEB, DB, request=request)
        assert decision.http is not None
        assert decision.http.status == status
