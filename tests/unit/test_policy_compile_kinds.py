"""The shape of tables for what the kinds of policies bring: tiers, named ports, ICMP, audit, both ends, Secrets.

Expected rows follow docs/policy.md («Which rule wins», «Ports», «Audit», «HTTP»).
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from spliceway.policy.compile import compile_table
from spliceway.policy.lookup import Judgement, lookup, lookup_pair
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import OTHER_PEERS, HeaderMatch, PolicyTable, Row
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

IN, OUT, TCP = Direction.INGRESS, Direction.EGRESS, Protocol.TCP
ALLOW, DENY = (Verdict.ALLOW, Reason.POLICY_ALLOWED), (Verdict.DENY, Reason.POLICY_DENIED)
DEFAULT_DENY = (Verdict.DENY, Reason.DEFAULT_DENY)


def _pod(name: str, number: int, port: int = 8080, app: str = "") -> str:
    labels = f"{{app: {app or name}}}"
    ports = f"[{{name: web, containerPort: {port}}}]"
    return (
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {labels}}}\n"
        f"spec: {{nodeName: node1, containers: [{{name: c, ports: {ports}}}]}}\n"
        f"status: {{phase: Running, podIPs: [{{ip: 10.240.1.{number}}}]}}\n"
    )


def _cnp(name: str, spec: str, annotations: str = "{}") -> str:
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: default, annotations: {annotations}}}\nspec: {spec}\n"
    )


def _compile(*documents: str) -> PolicyTable:
    parsed = parse_text("---\n".join(documents), "p.yaml")
    assert not parsed.errors
    cluster = Cluster(pod_cidrs=(ip_network("10.240.1.0/24"),)).with_objects(parsed.objects)
    return compile_table(cluster, node="node1", numbering=Numbering(), revision=1)


def _rows(table: PolicyTable, pod: str, direction: Direction) -> dict[tuple[int, int, int, int], Row]:
    """By class (0: everyone else), protocol, port and prefix bits."""
    policy_id = table.endpoints[f"default/{pod}"].policy_id
    return {key[2:]: row for key, row in table.rows.items() if key[:2] == (policy_id, direction)}


def _ask(table: PolicyTable, server: str, client: str, port: int, direction: Direction = IN) -> Judgement:
    """What one end's policy says about a TCP connection from the client to the server."""
    ends = table.endpoints[f"default/{server}"], table.endpoints[f"default/{client}"]
    own, peer = ends if direction is IN else reversed(ends)
    return lookup(table, own, direction, peer.identity, TCP, port)


def test_named_ports_in_ingress_are_the_own_ones() -> None:
    """Two pods with equal labels and other numbers behind a name have rows of their own."""
    policy = (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: default}\n"
        "spec: {podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{port: web}]}]}\n"
    )
    table = _compile(policy, _pod("one", 1, 8080, "server"), _pod("two", 2, 9090, "server"), _pod("client", 3))
    for pod, port in (("one", 8080), ("two", 9090)):
        rows = _rows(table, pod, IN)
        assert {key: (row.verdict, row.reason) for key, row in rows.items() if key[0] == OTHER_PEERS} == {
            (OTHER_PEERS, TCP, port, 16): ALLOW
        }
    judged = [(found.verdict, found.reason) for found in (_ask(table, "one", "client", port) for port in (8080, 9090))]
    assert judged == [ALLOW, DEFAULT_DENY]


def test_named_ports_in_egress_are_those_of_each_server() -> None:
    policy = _cnp(
        "web",
        "{endpointSelector: {matchLabels: {app: client}},"
        " egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: web, protocol: TCP}]}]}]}",
    )
    table = _compile(policy, _pod("one", 1, 8080, "server"), _pod("two", 2, 9090, "server"), _pod("client", 3, 7070))
    for server, port in (("one", 8080), ("two", 9090)):
        for asked in (8080, 9090, 7070):
            found = _ask(table, server, "client", asked, OUT)
            assert (found.verdict, found.reason) == (ALLOW if asked == port else DEFAULT_DENY)


def test_types_of_icmp_are_one_row() -> None:
    spec = "{endpointSelector: {}, ingress: [{icmps: [{fields: [{type: 8, family: IPv4}]}]}]}"
    table = _compile(_cnp("ping", spec), _pod("one", 1))
    rows = {key for key in _rows(table, "one", IN) if key[0] == OTHER_PEERS}
    assert rows == {(OTHER_PEERS, Protocol.ICMP, 8 << 8, 8)}


def test_what_an_admin_passes_on_is_judged_below() -> None:
    admin = (
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: admin}\n"
        "spec: {priority: 10, subject: {namespaces: {}}, ingress: ["
        "{action: Pass, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 80}}]},"
        "{action: Allow, from: [{namespaces: {}}]}]}\n"
    )
    normal = _cnp("strict", "{endpointSelector: {}, ingress: [{}]}")
    table = _compile(admin, normal, _pod("one", 1), _pod("client", 2))
    (class_id,) = {found.class_id for found in (_ask(table, "one", "client", port) for port in (80, 81))}
    rows = {key[1:]: (row.verdict, row.reason) for key, row in _rows(table, "one", IN).items() if key[0] == class_id}
    # A missing row would be the more general one: default deny has to be said.
    assert rows == {(Protocol.ANY, 0, 0): ALLOW, (TCP, 80, 16): DEFAULT_DENY}


def test_a_policy_in_audit_denies_nothing_and_says_what_it_would() -> None:
    spec = (
        "{endpointSelector: {matchLabels: {app: one}}, ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}],"
        " rules: {http: [{path: /}]}}]}], ingressDeny: [{toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]}"
    )
    table = _compile(_cnp("try", spec, "{spliceway.io/enforcement: audit}"), _pod("one", 1), _pod("client", 2))
    http, denied, other = (_ask(table, "one", "client", port) for port in (80, 81, 82))
    assert (http.verdict, http.reason) == (Verdict.REDIRECT, Reason.REDIRECTED)
    rule_set = table.rule_sets[http.rule_set]
    assert (rule_set.rules, rule_set.name) == (None, "audit:default/try:ingress[0].toPorts[0]")
    assert [rule.path for rule in rule_set.audit or ()] == ["/"]
    assert (denied.verdict, denied.reason) == (Verdict.ALLOW, Reason.POLICY_DENIED)
    assert str(table.rules[denied.rule]) == "CiliumNetworkPolicy default/try spec.ingressDeny[0].toPorts[0]"
    assert (other.verdict, other.reason, other.rule) == (Verdict.ALLOW, Reason.DEFAULT_DENY, 0)
    assert denied.audit
    assert other.audit


def test_http_rules_at_both_ends_are_a_pair() -> None:
    ports = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: %s}]}}]"
    client = _cnp("out", f"{{endpointSelector: {{matchLabels: {{app: client}}}}, egress: [{{{ports % '/out'}}}]}}")
    server = _cnp("in", f"{{endpointSelector: {{matchLabels: {{app: one}}}}, ingress: [{{{ports % '/in'}}}]}}")
    table = _compile(client, server, _pod("one", 1), _pod("client", 2))
    egress, ingress = _ask(table, "one", "client", 80, OUT), _ask(table, "one", "client", 80)
    found = lookup_pair(table, egress, ingress)
    assert dict(table.pairs) == {(egress.rule_set, ingress.rule_set): found.rule_set}
    rule_set = table.rule_sets[found.rule_set]
    assert [rule.path for rule in rule_set.rules or ()] == ["/out"]
    assert rule_set.also == table.rule_sets[ingress.rule_set]
    assert rule_set.name == "default/out:egress[0].toPorts[0]&default/in:ingress[0].toPorts[0]"


def test_headers_are_read_from_secrets_and_not_shown() -> None:
    secret = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: token, namespace: default}\nstringData: {value: Tr0ub4dor}\n"
    )
    spec = (
        "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: ["
        "{host: api.example, headers: ['X-Team: blue'], headerMatches: [{name: X-Token, secret: {name: token}}]}"
        "]}}]}]}"
    )
    table = _compile(secret, _cnp("a", spec), _pod("one", 1))
    ((rule,),) = [rule_set.rules or () for rule_set in table.rule_sets.values()]
    assert (rule.host, rule.path, rule.method) == ("api.example", "", "")
    assert rule.headers == (HeaderMatch("x-team", "blue"), HeaderMatch("x-token", "Tr0ub4dor", secret=True))
    assert "Tr0ub4dor" not in repr(table)
    assert "Tr0ub4dor" not in "".join(rule_set.name for rule_set in table.rule_sets.values())


def test_an_address_is_told_apart_only_where_a_policy_does() -> None:
    """Pods with other named ports, and no policy that names one, are one identity."""
    table = _compile(_cnp("a", "{endpointSelector: {}, ingress: []}"), _pod("one", 1, 80, "x"), _pod("two", 2, 81, "x"))
    assert table.endpoints["default/one"] == table.endpoints["default/two"]
    assert len({table.ipcache[ip_network(ip_address(f"10.240.1.{number}"))] for number in (1, 2)}) == 1
