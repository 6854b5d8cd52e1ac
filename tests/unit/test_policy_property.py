"""Random clusters, policies, connections: the compiled table, read as the kernel does, equals the interpreter."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy.compile import compile_table
from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, evaluate_half
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster, Node, Object, Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_document
from spliceway.policy.ports import covers
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction, Protocol, Verdict

POD_CIDRS = (ip_network("10.240.1.0/24"), ip_network("10.240.2.0/24"), ip_network("fd00:240:1::/64"))
NODE_ADDRESSES = {"node1": "172.30.0.1", "node2": "172.30.0.2", "node3": "fd00:30::3"}
WORLD = ("10.1.2.3", "10.1.3.1", "10.1.2.200", "10.1.9.9", "203.0.113.9", "fd00:99::1", "fd00:99:1::1", "2001:db8::1")
UNMANAGED = ("10.240.1.200", "10.240.2.200", "fd00:240:1::200")
PORTS = (0, 1, 53, 79, 80, 81, 84, 85, 86, 90, 91, 100, 8080, 65535)
PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, Protocol.ICMPV6, 47)
CIDRS = (
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.0/25",
    "10.1.2.128/25",
    "10.1.3.0/24",
    "10.240.0.0/12",
    "10.240.1.0/24",
    "10.240.1.192/26",
    "172.30.0.0/24",
    "172.30.0.2/32",
    "203.0.113.9/32",
    "fd00::/8",
    "fd00:99::/32",
    "fd00:240:1::/64",
)
ROLES = ("a", "b", "c")
ENTITIES = ("all", "world", "world-ipv4", "world-ipv6", "host", "remote-node", "cluster", "unmanaged", "none")

roles = st.sampled_from(ROLES)
namespaces = st.sampled_from(("one", "two"))
expressions = st.one_of(
    st.builds(
        lambda key, operator, values: {"key": key, "operator": operator, "values": values},
        st.sampled_from(("role", "k8s:role", "any:zone", "io.kubernetes.pod.namespace")),
        st.sampled_from(("In", "NotIn")),
        st.lists(st.sampled_from((*ROLES, "one", "two")), min_size=1, max_size=2),
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator},
        st.sampled_from(("role", "zone", "reserved:world-ipv4", "reserved:host", "io.kubernetes.pod.namespace")),
        st.sampled_from(("Exists", "DoesNotExist")),
    ),
)
selectors = st.one_of(
    st.just({}),
    st.builds(lambda role: {"matchLabels": {"role": role}}, roles),
    st.builds(
        lambda role, namespace: {"matchLabels": {"role": role, "k8s:io.kubernetes.pod.namespace": namespace}},
        roles,
        namespaces,
    ),
    st.builds(lambda items: {"matchExpressions": items}, st.lists(expressions, min_size=1, max_size=2)),
    st.builds(lambda team: {"matchLabels": {"io.cilium.k8s.namespace.labels.team": team}}, st.sampled_from("xy")),
)


def _excepts(cidr: str) -> st.SearchStrategy[list[str]]:
    outer = ip_network(cidr)
    inside = [
        text
        for text in CIDRS
        if (block := ip_network(text)).version == outer.version and block.subnet_of(outer)  # type: ignore[arg-type]
    ]
    return st.lists(st.sampled_from(inside), max_size=2)


cidr_rules = st.sampled_from(CIDRS).flatmap(
    lambda cidr: st.builds(lambda excepts: {"cidr": cidr, "except": excepts}, _excepts(cidr))
)


def _peers(side: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.just({}),
        st.builds(lambda items: {f"{side}Endpoints": items}, st.lists(selectors, max_size=2)),
        st.builds(lambda items: {f"{side}CIDR": items}, st.lists(st.sampled_from(CIDRS), max_size=2)),
        st.builds(lambda items: {f"{side}CIDRSet": items}, st.lists(cidr_rules, max_size=2)),
        st.builds(lambda items: {f"{side}Entities": items}, st.lists(st.sampled_from(ENTITIES), max_size=2)),
    )


ports = st.builds(
    lambda first, length, protocol: {
        "port": str(first),
        "protocol": protocol,
        **({"endPort": min(first + length, 65535)} if length and first else {}),
    },
    st.sampled_from(PORTS),
    st.sampled_from((0, 0, 1, 5, 20)),
    st.sampled_from(("TCP", "UDP", "SCTP", "ANY")),
)
http_ports = st.builds(
    lambda first, length: {
        "port": str(first),
        "protocol": "TCP",
        **({"endPort": min(first + length, 65535)} if length else {}),
    },
    st.sampled_from(PORTS[1:]),
    st.sampled_from((0, 0, 6)),
)
plain_entries = st.builds(lambda items: {"ports": items}, st.lists(ports, min_size=1, max_size=3))
http_entries = st.builds(
    lambda items: {"ports": items, "rules": {"http": [{"path": "/"}]}}, st.lists(http_ports, min_size=1, max_size=2)
)


def _rules(side: str, *, deny: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    entries = plain_entries if deny or side == "to" else st.one_of(plain_entries, http_entries)
    to_ports = st.one_of(
        st.just({}), st.builds(lambda items: {"toPorts": items}, st.lists(entries, min_size=1, max_size=2))
    )
    return st.lists(st.builds(lambda peers, found: {**peers, **found}, _peers(side), to_ports), max_size=3)


specs = st.builds(
    lambda selector, ingress, egress, ingress_deny, egress_deny, default: {
        "endpointSelector": {} if selector is None else {"matchLabels": {"role": selector}},
        "ingress": ingress,
        "egress": egress,
        "ingressDeny": ingress_deny,
        "egressDeny": egress_deny,
        "enableDefaultDeny": default,
    },
    st.one_of(st.none(), roles),
    _rules("from", deny=False),
    _rules("to", deny=False),
    _rules("from", deny=True),
    _rules("to", deny=True),
    st.sampled_from(({}, {}, {"ingress": False}, {"egress": False}, {"ingress": True})),
)
policies = st.lists(st.tuples(namespaces, st.lists(specs, min_size=1, max_size=2)), min_size=1, max_size=3)
pods = st.lists(
    st.tuples(namespaces, roles, st.sampled_from((None, "q")), st.sampled_from(("node1", "node1", "node2"))),
    min_size=1,
    max_size=5,
)


def _cluster(members: Any, written: Any, extra_host: bool, twin: bool) -> Cluster:
    items: list[Object] = []
    for index, (namespace, role, zone, node) in enumerate(members):
        network = 1 if node == "node1" else 2
        addresses = [ip_address(f"10.240.{network}.{index + 10}"), ip_address(f"fd00:240:{network}::{index + 10}")]
        if twin and index == 1:  # claims an address that is already another pod's
            addresses[0] = ip_address("10.240.1.10")
        labels = {"role": role, **({"zone": zone} if zone else {})}
        items.append(Pod(namespace, f"pod{index}", labels, tuple(addresses), node))
    if extra_host:
        items.append(Pod("one", "on-host", {"role": "a"}, (ip_address("172.30.0.2"),), "node2", host_network=True))
    items += [Node(name, (ip_address(address),)) for name, address in NODE_ADDRESSES.items()]
    documents = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one", "labels": {"team": "x"}}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "two", "labels": {"team": "y"}}},
    ]
    for index, (namespace, found) in enumerate(written):
        documents.append(
            {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumNetworkPolicy",
                "metadata": {"name": f"p{index}", "namespace": namespace},
                "specs": found,
            }
        )
    for index, content in enumerate(documents):
        items += parse_document(Document("random", index + 1, 1, content))
    return Cluster(pod_cidrs=POD_CIDRS).with_objects(items)


clusters = st.builds(_cluster, pods, policies, st.booleans(), st.sampled_from((False, False, True)))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(clusters, st.randoms(use_true_random=False))
def test_table_and_interpreter_agree(cluster: Cluster, random: Any) -> None:
    numbering = Numbering()
    tables = {node: compile_table(cluster, node=node, numbering=numbering, revision=1) for node in ("node1", "node2")}
    for table in tables.values():
        _check_shape(table)
    peers = [ip_address(text) for text in (*NODE_ADDRESSES.values(), *WORLD, *UNMANAGED)]
    peers += [address for pod in cluster.pods.values() for address in pod.addresses]
    for pod in cluster.pods.values():
        if pod.host_network:
            continue
        table = tables[pod.node]
        endpoint = table.endpoints[pod.key]
        for _ in range(40):
            peer, direction = random.choice(peers), random.choice(list(Direction))
            protocol, port = random.choice(PROTOCOLS), random.choice(PORTS)
            own = next(address for address in pod.addresses if address.version == peer.version)
            source, destination = (peer, own) if direction is Direction.INGRESS else (own, peer)
            half = evaluate_half(cluster, pod, direction, Connection(source, destination, int(protocol), port))
            found = lookup(table, endpoint, direction, identify(table.ipcache, peer), int(protocol), port)
            assert (found.verdict, found.reason, table.rules.get(found.rule)) == (half.verdict, half.reason, half.rule)
            if found.verdict is Verdict.REDIRECT:
                rules = [str(table.rules[rule.rule]) for rule in table.rule_sets[found.rule_set].rules]
                assert rules == [f"{ref}.rules.http[0]" for ref in half.contributors]


def _check_shape(table: PolicyTable) -> None:
    """Rows of a policy, direction, class and protocol are disjoint; nothing dangles; no class repeats class 0."""
    groups: dict[Any, list[tuple[int, int]]] = {}
    by_class: dict[Any, dict[Any, Any]] = {}
    for key, row in table.rows.items():
        for port, bits in groups.setdefault(key[:4], []):
            shorter, longer = sorted(((port, bits), (key.port, key.port_bits)), key=lambda item: item[1])
            assert not covers(longer[0], shorter[0], shorter[1])
        groups[key[:4]].append((key.port, key.port_bits))
        by_class.setdefault(key[:3], {})[key[3:]] = row
        assert key.protocol is not Protocol.ANY or key.port_bits == 0
        assert (row.verdict is Verdict.REDIRECT) == (row.rule_set in table.rule_sets)
        assert row.rule == 0 or row.rule in table.rules
    for class_key, class_id in table.classes.items():
        assert class_key.identity in table.identities
        own = by_class.get((class_key.policy_id, class_key.direction, class_id), {})
        assert own != by_class.get((class_key.policy_id, class_key.direction, 0), {})
    for rule_set in table.rule_sets.values():
        assert rule_set.rules
        assert all(rule.rule in table.rules for rule in rule_set.rules)
    assert set(table.ipcache.values()) <= set(table.identities)
    assert {endpoint.identity for endpoint in table.endpoints.values()} <= set(table.identities)
    assert len({rule_set.name for rule_set in table.rule_sets.values()}) == len(table.rule_sets)
