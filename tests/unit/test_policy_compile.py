"""The shape of compiled tables: classes, rows, names, addresses. What verdicts they give is in the property test."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

from spliceway.policy.compile import compile_table
from spliceway.policy.evaluate import Connection, evaluate_half
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster, Node, Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.table import OTHER_PEERS, ClassKey, PolicyTable, Row, RowKey, RuleRef
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict


def _policy(name: str, spec: str) -> str:
    return f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"


def _pod(name: str, number: int, **labels: str) -> Pod:
    return Pod("default", name, labels, (ip_address(f"10.240.1.{number}"),), "node1")


def _compile(*policies: str, pods: tuple[Pod, ...], nodes: tuple[Node, ...] = ()) -> PolicyTable:
    parsed = parse_text("---\n".join(policies), "p.yaml")
    assert not parsed.errors
    cluster = Cluster(pod_cidrs=(ip_network("10.240.1.0/24"),)).with_objects([*parsed.objects, *pods, *nodes])
    return compile_table(cluster, node="node1", numbering=Numbering(), revision=7)


SERVER = _pod("server", 1, role="server")


def _rows(table: PolicyTable, class_id: int) -> dict[tuple[Protocol, int, int], Row]:
    return {key[3:]: row for key, row in table.rows.items() if key.class_id == class_id}


def test_overlapping_ranges_are_disjoint_prefixes() -> None:
    table = _compile(
        _policy(
            "a",
            "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '80', endPort: 90, protocol: TCP}]}]}],"
            " egressDeny: [{toPorts: [{ports: [{port: '85', protocol: TCP}]}]}]}",
        ),
        pods=(SERVER,),
    )
    assert table.revision == 7
    rows = _rows(table, OTHER_PEERS)
    allow, deny = (Verdict.ALLOW, Reason.POLICY_ALLOWED), (Verdict.DENY, Reason.POLICY_DENIED)
    tcp = Protocol.TCP
    assert {key: (row.verdict, row.reason) for key, row in rows.items()} == {
        (tcp, 80, 14): allow,
        (tcp, 84, 16): allow,
        (tcp, 85, 16): deny,
        (tcp, 86, 15): allow,
        (tcp, 88, 15): allow,
        (tcp, 90, 16): allow,
    }
    assert table.rules[rows[tcp, 85, 16].rule] == RuleRef(
        "CiliumNetworkPolicy default/a", "spec.egressDeny[0].toPorts[0]"
    )


def test_identities_treated_alike_share_a_class() -> None:
    pods = tuple(_pod(f"c{n}", 10 + n, role="client", n=str(n)) for n in range(20))
    table = _compile(
        _policy(
            "a",
            "{endpointSelector: {matchLabels: {role: server}},"
            " ingress: [{fromEndpoints: [{matchLabels: {role: client}}]}]}",
        ),
        _policy(
            "b",
            "{endpointSelector: {matchLabels: {role: server}}, ingress: [{fromEndpoints: [{matchLabels: {n: '3'}}]}]}",
        ),
        pods=(SERVER, *pods),
    )
    clients = {table.endpoints[pod.key].identity for pod in pods}
    policy = table.endpoints["default/server"].policy_id
    # The second rule changes nothing for whom the first already lets in, so that c3 is in no class of its own.
    assert len({table.classes[ClassKey(policy, Direction.INGRESS, identity)] for identity in clients}) == 1
    assert len({key.class_id for key in table.rows}) == 2  # clients and the node itself
    assert len(table.classes) == 21


def test_what_everyone_has_needs_no_class() -> None:
    table = _compile(
        _policy(
            "a",
            "{endpointSelector: {}, egress: [{toEntities: [all]}, {toCIDR: [10.0.0.0/8]}, {toEndpoints: [{}]}]}",
        ),
        pods=(SERVER, _pod("other", 2, role="other")),
    )
    # Everyone is named, as a peer: that is the same as no peers at all.
    assert {key.class_id for key in table.rows} == {OTHER_PEERS}
    assert not table.classes
    table = _compile(
        _policy("a", "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]}"),
        pods=(SERVER,),
    )
    assert not table.classes
    assert list(table.rows) == [RowKey(1, Direction.EGRESS, OTHER_PEERS, Protocol.TCP, 0, 0)]


def test_endpoints_with_the_same_labels_share_a_policy() -> None:
    table = _compile(pods=(SERVER, _pod("twin", 2, role="server"), _pod("other", 3, role="other")))
    server, twin, other = (table.endpoints[f"default/{name}"] for name in ("server", "twin", "other"))
    assert server == twin
    assert other.policy_id != server.policy_id
    assert (server.ingress, server.egress, len(table.rows)) == (False, False, 0)


def test_pods_of_others_and_of_the_host_network_are_no_endpoints() -> None:
    pods = (
        SERVER,
        Pod("default", "far", {}, (ip_address("10.240.2.1"),), "node2"),
        Pod("default", "host", {}, (ip_address("172.30.0.1"),), "node1", host_network=True),
        Pod("default", "new", {}, (), "node1"),
    )
    table = _compile(pods=pods)
    assert set(table.endpoints) == {"default/server", "default/new"}  # a policy is there before the address
    assert identify(table.ipcache, ip_address("172.30.0.1")) == 1
    assert identify(table.ipcache, ip_address("10.240.1.77")) == 3
    assert identify(table.ipcache, ip_address("203.0.113.1")) == 9
    assert identify(table.ipcache, ip_address("2001:db8::1")) == 10


def test_prefixes_of_policies_never_open_a_pod_range() -> None:
    table = _compile(
        _policy(
            "a",
            "{endpointSelector: {}, egress: [{toCIDR: [10.240.1.128/25, 10.240.0.0/16, 10.240.1.0/24, 10.240.1.1]}]}",
        ),
        pods=(SERVER,),
    )
    for address in ("10.240.1.129", "10.240.1.200"):
        assert table.identities[identify(table.ipcache, ip_address(address))] == ("reserved:unmanaged",)
    assert table.identities[identify(table.ipcache, ip_address("10.240.9.9"))] == (
        "cidr:10.240.0.0/16",
        "reserved:world-ipv4",
    )
    assert identify(table.ipcache, ip_address("10.240.1.1")) == table.endpoints["default/server"].identity


def test_one_address_of_two_pods_is_unmanaged() -> None:
    pods = (SERVER, Pod("default", "thief", {"role": "x"}, SERVER.addresses, "node1"))
    assert identify(_compile(pods=pods).ipcache, SERVER.addresses[0]) == 3
    node = Node("node1", SERVER.addresses)
    assert identify(_compile(pods=pods, nodes=(node,)).ipcache, SERVER.addresses[0]) == 1


def test_names_of_rule_sets() -> None:
    http = "rules: {http: [{path: /}]}"
    ports = "toPorts: [{ports: [{port: '80', protocol: TCP}], " + http + "}]"
    table = _compile(
        _policy("a", f"{{endpointSelector: {{}}, ingress: [{{{ports}}}, {{fromEndpoints: [{{}}], {ports}}}]}}"),
        pods=(SERVER,),
    )
    assert sorted(rule_set.name for rule_set in table.rule_sets.values()) == [
        "default/a:ingress[0].toPorts[0]",
        "default/a:ingress[0].toPorts[0]+default/a:ingress[1].toPorts[0]",
    ]
    many = "".join(f"{{{ports}}}," for _ in range(20))
    table = _compile(_policy("a", f"{{endpointSelector: {{}}, ingress: [{many}]}}"), pods=(SERVER,))
    (rule_set,) = table.rule_sets.values()
    assert len(rule_set.name) <= 200
    assert len(rule_set.rules) == 20


def test_ten_thousand_identities_and_a_hundred_policies_compile_in_seconds() -> None:
    pods = [
        Pod(
            f"ns{n % 50}",
            f"p{n}",
            {"app": f"app{n}", "tier": f"t{n % 7}", "team": f"x{n % 31}"},
            (ip_address((10 << 24) + (245 << 16) + n),),
            "node1" if n % 100 == 0 else "node2",
        )
        for n in range(10_000)
    ]
    text = "---\n".join(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: p{n}, namespace: ns{n % 50}}}\n"
        "spec: {endpointSelector: {}, ingress: ["
        f"{{fromEndpoints: [{{matchLabels: {{tier: t{n % 7}, 'k8s:io.kubernetes.pod.namespace': ns{n % 3}}}}}],"
        f" toPorts: [{{ports: [{{port: '{80 + n}', protocol: TCP}}]}}]}},"
        f"{{fromEndpoints: [{{matchExpressions: [{{key: team, operator: NotIn, values: [x{n % 31}]}}]}}]}},"
        f"{{fromCIDRSet: [{{cidr: {11 + n}.0.0.0/8, except: [{11 + n}.1.0.0/16]}}]}}],"
        f" egress: [{{toEndpoints: [{{matchExpressions: [{{key: io.kubernetes.pod.namespace, operator: Exists}},"
        f" {{key: tier, operator: In, values: [t1, t{n % 7}]}}]}}]}}]}}\n"
        for n in range(100)
    )
    parsed = parse_text(text, "many.yaml")
    assert not parsed.errors
    cluster = Cluster().with_objects([*parsed.objects, *pods])
    numbering = Numbering()
    compile_table(cluster, node="node1", numbering=numbering, revision=1)
    begin = time.perf_counter()
    table = compile_table(cluster, node="node1", numbering=numbering, revision=2)
    took = time.perf_counter() - begin
    assert len(table.identities) > 10_000
    assert len(table.endpoints) == 100
    print(f"{took:.2f} s, {len(table.classes)} class entries, {len(table.rows)} rows")
    assert took < 20  # generous: seconds on a slow machine, not minutes


def test_one_entry_may_name_a_port_twice() -> None:
    http = "rules: {http: [{path: /}]}"
    wide = "{port: '80', endPort: 90, protocol: TCP}"
    ports = f"[{wide}, {wide}, {{port: '85', protocol: TCP}}]"
    table = _compile(
        _policy("a", f"{{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: {ports}, {http}}}]}}]}}"),
        pods=(SERVER,),
    )
    assert set(_rows(table, OTHER_PEERS)) == {(Protocol.TCP, 80, 13), (Protocol.TCP, 88, 15), (Protocol.TCP, 90, 16)}
    assert len(table.rule_sets) == 1


def test_http_rules_end_where_their_range_ends() -> None:
    """A rule set that kept a rule beyond its ports would let requests pass that no policy allows."""

    def entry(first: int, last: int, path: str) -> str:
        ports = f"[{{port: '{first}', endPort: {last}, protocol: TCP}}]"
        return f"{{toPorts: [{{ports: {ports}, rules: {{http: [{{path: {path}}}]}}}}]}}"

    written = ((80, 87, "/a"), (84, 95, "/b"), (86, 87, "/c"))
    spec = f"{{endpointSelector: {{}}, ingress: [{', '.join(entry(*one) for one in written)}]}}"
    table = _compile(_policy("a", spec), pods=(SERVER,))
    endpoint = table.endpoints["default/server"]
    for port in range(78, 98):
        expected = {path for first, last, path in written if first <= port <= last}
        found = lookup(table, endpoint, Direction.INGRESS, 9, Protocol.TCP, port)
        rules = table.rule_sets[found.rule_set].rules if found.rule_set else ()
        assert {rule.path for rule in rules} == expected
    assert len(table.rule_sets) == 4


def test_an_address_of_two_pods_outside_every_range_is_no_part_of_the_world() -> None:
    address = ip_address("10.9.9.9")
    pods = (SERVER, *(Pod("default", name, {"role": name}, (address,), "node1") for name in ("a", "b")))
    policy = _policy("a", "{endpointSelector: {matchLabels: {role: server}}, ingress: [{fromEntities: [world]}]}")
    table = _compile(policy, pods=pods)
    assert identify(table.ipcache, address) == 3
    cluster = Cluster().with_objects([*parse_text(policy, "p.yaml").objects, *pods])
    half = evaluate_half(cluster, SERVER, Direction.INGRESS, Connection(address, SERVER.addresses[0], 6, 80))
    assert (half.verdict, half.reason) == (Verdict.DENY, Reason.DEFAULT_DENY)


def test_an_address_of_two_nodes_is_the_own_one() -> None:
    address = ip_address("172.30.0.9")
    for names in (("node1", "node2"), ("node2", "node1")):
        table = _compile(pods=(SERVER,), nodes=tuple(Node(name, (address,)) for name in names))
        assert identify(table.ipcache, address) == 1
