"""What an engine gives for single changes: who is who, which numbers stay, what the delta names, what errors leave."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_policy_engine import check_delta, contents, meaning

from spliceway.policy.budget import Limits
from spliceway.policy.compile import compile_table
from spliceway.policy.engine import Engine, Options
from spliceway.policy.errors import NumberingError
from spliceway.policy.lookup import Judgement, identify, lookup, lookup_pair
from spliceway.policy.model import (
    CidrGroup,
    ContainerPort,
    EndpointSlice,
    IPAddress,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Pod,
    Secret,
    Service,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.parse import parse_text
from spliceway.policy.servicemodel import Endpoint
from spliceway.policy.table import PolicyTable, TableDelta
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.slices import ready
from support.steps import steps
from support.worlds import POD_CIDRS, World

RANGE = ip_network("10.240.1.0/24")
API = "{fromEndpoints: [{matchLabels: {role: web}}], toPorts: [{ports: [{port: '80', protocol: TCP}]%s}]}"


def _pod(name: str, number: int, role: str, node: str = "node1", **more: object) -> Pod:
    addresses: tuple[IPAddress, ...] = (ip_address(f"10.240.1.{number}"),)
    return Pod("default", name, {"role": role}, addresses, node, **more)  # type: ignore[arg-type]


def _policy(name: str, spec: str, kind: str = "CiliumNetworkPolicy") -> list[Object]:
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    parsed = parse_text(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n", "x")
    assert not parsed.errors
    return parsed.objects


def _engine(*objects: Object, limits: Limits | None = None) -> tuple[Engine, PolicyTable]:
    options = Options(node="node1", pod_cidrs=(RANGE,), limits=limits or Limits())
    engine = Engine(options, Numbering())
    return engine, engine.apply(objects, revision=1)


def _who(table: PolicyTable, address: str) -> tuple[str, ...]:
    return table.identities[identify(table.ipcache, ip_address(address))]


def _ask(table: PolicyTable, pod: str, peer: str, port: int, direction: Direction = Direction.INGRESS) -> Verdict:
    identity = identify(table.ipcache, ip_address(peer))
    return lookup(table, table.endpoints[f"default/{pod}"], direction, identity, 6, port).verdict


WEB, SERVER = _pod("web", 1, "web"), _pod("server", 2, "server")


def test_a_pod_with_known_labels_changes_its_own_address_and_nothing_else() -> None:
    policy = _policy("a", f"{{endpointSelector: {{matchLabels: {{role: server}}}}, ingress: [{API % ''}]}}")
    engine, _ = _engine(WEB, SERVER, *policy)
    table = engine.apply([_pod("far", 9, "web", "node2")], revision=2)
    assert table.delta is not None
    assert table.delta.ipcache == {ip_network("10.240.1.9/32")}
    rest = table.delta.identities | table.delta.endpoints | table.delta.classes | table.delta.rows
    assert not rest
    assert _ask(table, "server", "10.240.1.9", 80) is Verdict.ALLOW
    again = engine.apply([_pod("far", 9, "web", "node2")], revision=3)
    assert again.delta is not None
    assert not again.delta.ipcache


def test_tables_stay_as_they_were() -> None:
    engine, first = _engine(WEB, SERVER)
    before = dict(first.ipcache)
    engine.apply([], [("Pod", "default/web")], revision=2)
    engine.apply([_pod("new", 1, "other")], revision=3)
    assert dict(first.ipcache) == before


def test_an_address_that_two_pods_claimed_is_the_others_once_one_goes() -> None:
    thief = _pod("thief", 1, "thief")
    engine, table = _engine(WEB, SERVER, thief)
    assert _who(table, "10.240.1.1") == ("reserved:unmanaged",)
    table = engine.apply([], [("Pod", "default/web")], revision=2)
    assert "k8s:role=thief" in _who(table, "10.240.1.1")
    node = Node("node2", WEB.addresses)
    table = engine.apply([node], revision=3)
    assert _who(table, "10.240.1.1") == ("reserved:remote-node",)
    table = engine.apply([], [("Node", "node2")], revision=4)
    assert "k8s:role=thief" in _who(table, "10.240.1.1")
    table = engine.apply([], [("Pod", "default/thief")], revision=5)
    assert _who(table, "10.240.1.1") == ("reserved:unmanaged",)  # of the pod range


def test_labels_of_a_namespace_reach_its_pods() -> None:
    spec = (
        "{endpointSelector: {matchLabels: {role: server}},"
        " ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: x}}]}]}"
    )
    engine, table = _engine(WEB, SERVER, *_policy("a", spec))
    assert _ask(table, "server", "10.240.1.1", 80) is Verdict.DENY
    table = engine.apply([Namespace("default", {"team": "x"})], revision=2)
    assert _ask(table, "server", "10.240.1.1", 80) is Verdict.ALLOW
    table = engine.apply([Namespace("default", {"team": "y"})], revision=3)
    assert _ask(table, "server", "10.240.1.1", 80) is Verdict.DENY


def test_the_host_is_told_apart_by_block_and_is_still_the_host() -> None:
    spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.0/24}}], ports: [{port: 80}]}]}"
    host = Node("node1", (ip_address("172.30.0.1"), ip_address("172.31.0.1")))
    far = Node("node2", (ip_address("172.30.0.2"), ip_address("172.31.0.2")))
    engine, table = _engine(SERVER, host, far, *_policy("a", spec, "NetworkPolicy"))
    number = identify(table.ipcache, ip_address("172.30.0.1"))
    assert 64 <= number <= 127
    assert table.identities[number] == ("block:172.30.0.0/24", "reserved:host")
    assert identify(table.ipcache, ip_address("172.31.0.1")) == 1
    # The node's own way in holds for all of its addresses, other nodes need the rule.
    assert [_ask(table, "server", f"172.{n}.0.1", 81) for n in (30, 31)] == [Verdict.ALLOW, Verdict.ALLOW]
    assert [_ask(table, "server", f"172.{n}.0.2", 80) for n in (30, 31)] == [Verdict.ALLOW, Verdict.DENY]
    table = engine.apply([], [("NetworkPolicy", "default/a")], revision=2)
    assert identify(table.ipcache, ip_address("172.30.0.1")) == 1


def test_blocks_hold_pods_and_unmanaged_addresses_and_cidrs_do_not() -> None:
    def spec(kind: str) -> list[Object]:
        if kind == "NetworkPolicy":
            block = "{cidr: 10.240.1.0/25, except: [10.240.1.64/26]}"
            return _policy("a", f"{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}", kind)
        return _policy("a", "{endpointSelector: {}, ingress: [{fromCIDR: [10.240.1.0/25]}]}")

    expected = {
        "10.240.1.1": True,
        "10.240.1.60": True,
        "10.240.1.65": False,
        "10.240.1.70": False,
        "10.240.1.200": False,
    }
    inside = _pod("inside", 65, "x")
    for kind in ("NetworkPolicy", "CiliumNetworkPolicy"):
        _, table = _engine(WEB, SERVER, inside, *spec(kind))
        for address, held in expected.items():
            allowed = _ask(table, "server", address, 80) is Verdict.ALLOW
            assert allowed == (held and kind == "NetworkPolicy"), (kind, address)


def test_kube_apiserver_is_where_its_endpoints_are() -> None:
    spec = "{endpointSelector: {}, egress: [{toEntities: [kube-apiserver]}]}"
    slices = EndpointSlice("default", "kubernetes", "kubernetes", ready("192.0.2.1", "10.240.1.1"))
    engine, table = _engine(WEB, SERVER, slices, *_policy("a", spec))

    def reached(table: PolicyTable) -> list[bool]:
        addresses = ("192.0.2.1", "192.0.2.2", "10.240.1.1")
        return [_ask(table, "server", address, 443, Direction.EGRESS) is Verdict.ALLOW for address in addresses]

    assert reached(table) == [True, False, True]
    assert "reserved:world-ipv4" in _who(table, "192.0.2.1")
    moved = EndpointSlice("default", "kubernetes", "kubernetes", ready("192.0.2.2"))
    assert reached(engine.apply([moved], revision=2)) == [False, True, False]


def test_what_policies_do_not_read_of_a_slice_changes_nothing_and_is_not_forgotten() -> None:
    spec = "{endpointSelector: {}, egress: [{toEntities: [kube-apiserver]}, {toServices: [{k8sService: {%s}}]}]}"
    names = "serviceName: outside, namespace: default"
    service = Service("default", "outside")
    address, other = ip_address("192.0.2.1"), ip_address("192.0.2.2")

    def slices(**said: Any) -> list[Object]:
        return [
            EndpointSlice("default", "kubernetes", "kubernetes", (Endpoint((address,), **said),)),
            EndpointSlice("default", "outside-1", "outside", (Endpoint((other,), **said),)),
        ]

    engine, table = _engine(WEB, SERVER, service, *slices(), *_policy("a", spec % names))

    def reached(table: PolicyTable) -> list[bool]:
        found = ("192.0.2.1", "192.0.2.2")
        return [_ask(table, "server", one, 443, Direction.EGRESS) is Verdict.ALLOW for one in found]

    assert reached(table) == [True, True]
    # Readiness counts by what comes of it: while it terminates and serves it still gets traffic.
    for revision, said in enumerate(({"node": "n"}, {"zones": ("a",)}, {"ready": False, "terminating": True}), 2):
        table = engine.apply(slices(**said), revision=revision)
        assert reached(table) == [True, True]
        assert table.delta == TableDelta(base=revision - 1)
    moved = msgspec.structs.replace(service, cluster_ips=(ip_address("10.96.0.1"),))
    assert engine.apply([moved], revision=5).delta == TableDelta(base=4)
    assert reached(engine.apply(slices(ready=False), revision=6)) == [False, False]
    assert reached(engine.apply(slices(), revision=7)) == [True, True]
    gone = [("EndpointSlice", "default/kubernetes"), ("EndpointSlice", "default/outside-1")]
    assert reached(engine.apply([], gone, revision=8)) == [False, False]


def test_named_ports_are_the_servers() -> None:
    spec = "{endpointSelector: {}, egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: http, protocol: TCP}]}]}]}"
    one = _pod("one", 11, "x", ports=(ContainerPort("http", Protocol.TCP, 8080),))
    both = tuple(ContainerPort("http", Protocol.TCP, port) for port in (80, 81))
    two = _pod("two", 12, "x", ports=both)
    engine, table = _engine(WEB, one, two, *_policy("a", spec))
    found = {
        (name, port): _ask(table, "web", f"10.240.1.{name}", port, Direction.EGRESS) is Verdict.ALLOW
        for name in (1, 11, 12)
        for port in (80, 81, 8080)
    }
    assert {key for key, allowed in found.items() if allowed} == {(11, 8080), (12, 80), (12, 81)}
    table = engine.apply([_pod("one", 11, "x", ports=(ContainerPort("http", Protocol.TCP, 9090),))], revision=2)
    assert _ask(table, "web", "10.240.1.11", 9090, Direction.EGRESS) is Verdict.ALLOW
    assert _ask(table, "web", "10.240.1.11", 8080, Direction.EGRESS) is Verdict.DENY


def test_a_cidr_group_moves_the_prefixes() -> None:
    spec = "{endpointSelector: {}, egress: [{toCIDRSet: [{cidrGroupRef: office}]}]}"
    group = CidrGroup("office", (ip_network("192.0.2.0/25"),))
    engine, table = _engine(SERVER, group, *_policy("a", spec))
    assert _ask(table, "server", "192.0.2.1", 80, Direction.EGRESS) is Verdict.ALLOW
    table = engine.apply([CidrGroup("office", (ip_network("192.0.2.128/25"),))], revision=2)
    assert _ask(table, "server", "192.0.2.1", 80, Direction.EGRESS) is Verdict.DENY
    assert _ask(table, "server", "192.0.2.200", 80, Direction.EGRESS) is Verdict.ALLOW
    assert ip_network("192.0.2.0/25") not in table.ipcache


HTTP = ", rules: {http: [{path: %s}]}"


def _both_ends() -> list[Object]:
    ingress = f"{{endpointSelector: {{matchLabels: {{role: server}}}}, ingress: [{API % (HTTP % '/a')}]}}"
    ports = "[{ports: [{port: '80', protocol: TCP}]" + HTTP % "/.*" + "}]"
    egress = f"{{endpointSelector: {{matchLabels: {{role: web}}}}, egress: [{{toPorts: {ports}}}]}}"
    return [*_policy("in", ingress), *_policy("out", egress)]


def test_both_ends_with_http_rules_are_a_pair_as_long_as_both_are_there() -> None:
    engine, table = _engine(WEB, SERVER, *_both_ends())
    halves = [
        lookup(table, table.endpoints[f"default/{pod}"], direction, identify(table.ipcache, ip_address(peer)), 6, 80)
        for pod, direction, peer in (
            ("web", Direction.EGRESS, "10.240.1.2"),
            ("server", Direction.INGRESS, "10.240.1.1"),
        )
    ]
    both = table.rule_sets[lookup_pair(table, *halves).rule_set]
    assert both.also is not None
    assert [rule.path for rule in both.rules or ()] == ["/.*"]
    assert [rule.path for rule in both.also.rules or ()] == ["/a"]
    gone = engine.apply([], [("Pod", "default/web")], revision=2)
    assert not gone.pairs
    assert all(rule_set.also is None for rule_set in gone.rule_sets.values())


def test_pairs_are_bounded_and_told() -> None:
    engine, table = _engine(WEB, SERVER, *_both_ends(), limits=Limits(pairs=0))
    assert not table.pairs
    assert len(engine.refused_pairs) == 1
    (pair,) = engine.refused_pairs
    assert {*pair} <= {*table.rule_sets}
    engine.apply([], [("Pod", "default/web")], revision=2)
    assert not engine.refused_pairs


def _asked_at_80(table: PolicyTable) -> Judgement:
    web, server = (table.endpoints[f"default/{pod}"] for pod in ("web", "server"))
    return lookup_pair(
        table,
        lookup(table, web, Direction.EGRESS, server.identity, 6, 80),
        lookup(table, server, Direction.INGRESS, web.identity, 6, 80),
    )


@pytest.mark.parametrize("limits", [Limits(listeners=2), Limits(listeners=2, pairs=1)])
@pytest.mark.parametrize("audited", ["in", "out"])
def test_a_pair_without_room_is_not_denied_because_of_a_policy_in_audit(limits: Limits, audited: str) -> None:
    """Audit changes no traffic: what is enforced at the other end alone is asked."""
    policies = [
        msgspec.structs.replace(policy, audit=policy.name == audited)
        for policy in _both_ends()
        if isinstance(policy, NetworkPolicy)
    ]
    engine, table = _engine(WEB, SERVER, *policies, limits=limits)
    found = _asked_at_80(table)
    assert found.verdict is Verdict.REDIRECT
    rule_set = table.rule_sets[found.rule_set]
    assert [rule.path for rule in rule_set.rules or ()] == ["/.*" if audited == "in" else "/a"]
    assert rule_set.also is None
    assert len(engine.refused_pairs) == 1
    # With both enforced there is nothing that could stand in.
    table = engine.apply(_both_ends(), revision=2)
    assert _asked_at_80(table).reason is Reason.NO_LISTENER
    assert not table.pairs


def test_pairs_give_way_to_rule_sets_of_one_end() -> None:
    """Each is a listener; a pod that brings a pair must not keep the table from coming into force."""
    engine, table = _engine(WEB, SERVER, *_both_ends(), limits=Limits(listeners=3))
    assert (len(table.rule_sets), len(table.pairs)) == (3, 1)
    more = f"{{endpointSelector: {{matchLabels: {{role: web}}}}, ingress: [{API % (HTTP % '/b')}]}}"
    table = engine.apply(_policy("more", more), revision=2)
    assert (len(table.rule_sets), len(table.pairs), len(engine.refused)) == (3, 0, 0)
    assert engine.refused_pairs
    table = engine.apply([], [("CiliumNetworkPolicy", "default/more")], revision=3)
    assert (len(table.rule_sets), len(table.pairs)) == (3, 1)
    assert _asked_at_80(table).verdict is Verdict.REDIRECT


def test_an_edit_of_http_rules_or_of_a_secret_changes_rule_sets_only() -> None:
    header = ", rules: {http: [{headerMatches: [{name: x-key, secret: {name: key, namespace: default}}]}]}"
    spec = f"{{endpointSelector: {{matchLabels: {{role: server}}}}, ingress: [{API % header}]}}"
    engine, table = _engine(WEB, SERVER, Secret("default", "key", {"v": b"1"}), *_policy("a", spec))
    (number,) = table.rule_sets
    for revision, change in enumerate(
        (
            [Secret("default", "key", {"v": b"2"})],
            _policy("a", f"{{endpointSelector: {{matchLabels: {{role: server}}}}, ingress: [{API % (HTTP % '/x')}]}}"),
        ),
        2,
    ):
        new = engine.apply(change, revision=revision)
        assert new.delta is not None
        assert new.delta.rule_sets == {number}
        assert new.rule_sets[number] != table.rule_sets[number]
        assert (new.rows, new.classes) == (table.rows, table.classes)
        table = new


def test_numbers_are_free_once_the_table_without_them_is_in_force() -> None:
    engine, first = _engine(WEB, SERVER)
    number = first.endpoints["default/web"].identity
    engine.apply([], [("Pod", "default/web")], revision=2)
    engine.settle(1)  # the first table is in force; the number may still be in the kernel
    table = engine.apply([WEB], revision=3)
    assert table.endpoints["default/web"].identity == number
    engine.settle(2)  # out of use in revision 2, in use again in 3
    assert engine.apply([_pod("twin", 7, "web")], revision=4).endpoints["default/twin"].identity == number
    engine.apply([], [("Pod", "default/web"), ("Pod", "default/twin")], revision=5)
    engine.settle(5)
    assert engine.apply([WEB], revision=6).endpoints["default/web"].identity != number


def test_numbers_of_an_earlier_agent_are_used_again_and_what_it_alone_used_is_forgotten() -> None:
    numbering = Numbering()
    table = Engine(Options(node="node1"), numbering).apply([WEB, SERVER], revision=1)
    later = Numbering.from_dict(numbering.to_dict())
    engine = Engine(Options(node="node1"), later)
    again = engine.apply([WEB], revision=1)
    assert again.endpoints["default/web"] == table.endpoints["default/web"]
    engine.apply([_pod("new", 9, "new")], revision=2)
    engine.settle(1)  # not yet: the table that was given out last is not in force
    assert len(later.to_dict()["identities"]["numbers"]) == 3
    engine.settle(2)
    assert len(later.to_dict()["identities"]["numbers"]) == 2
    assert (
        engine.apply([_pod("web2", 10, "web")], revision=3).endpoints["default/web2"] == table.endpoints["default/web"]
    )


def test_numbering_says_whether_it_must_be_saved() -> None:
    numbering = Numbering()
    engine = Engine(Options(node="node1"), numbering)
    engine.apply([WEB, SERVER], revision=1)
    before = numbering.changes
    engine.apply([_pod("far", 9, "web", "node2")], revision=2)
    assert numbering.changes == before
    engine.apply([_pod("new", 10, "new")], revision=3)
    assert numbering.changes > before


def test_numbers_that_run_out_leave_the_last_table_and_it_goes_on_from_there() -> None:
    numbering = Numbering()
    saved = numbering.to_dict()
    saved["identities"] = {"next": 256, "numbers": {}}
    saved["hosts"] = {"next": 64, "numbers": {f"x{n}": n for n in range(64, 128)}}
    numbering = Numbering.from_dict(saved)
    engine = Engine(Options(node="node1", pod_cidrs=(RANGE,)), numbering)
    host = Node("node1", (ip_address("172.30.0.1"),))
    first = engine.apply([WEB, SERVER, host], revision=1)
    spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.0/24}}]}]}"
    with pytest.raises(NumberingError, match="all 64 numbers for addresses of this node"):
        engine.apply(_policy("a", spec, "NetworkPolicy"), revision=2)
    assert engine.table is first
    with pytest.raises(NumberingError):
        engine.apply([], revision=3)
    table = engine.apply([], [("NetworkPolicy", "default/a"), ("Pod", "default/web")], revision=4)
    check_delta(first, table)
    assert table.delta is not None
    assert "default/web" in table.delta.endpoints
    assert table.endpoints["default/server"] == first.endpoints["default/server"]


def test_numbers_that_were_given_for_what_failed_are_free_again() -> None:
    """Otherwise what has run out once would stay so until the agent is started anew."""
    numbering = Numbering()
    engine = Engine(Options(node="node1", pod_cidrs=(RANGE,)), numbering)
    host = Node("node1", (ip_address("172.30.0.1"),))
    engine.apply([WEB, SERVER, host], revision=1)
    engine.settle(1)
    kept = numbering.to_dict()
    for number in range(64):
        numbering.identity((f"block:10.{number}.0.0/16", "reserved:host"))
    spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.0/24}}]}]}"
    policy = _policy("a", spec, "NetworkPolicy")
    with pytest.raises(NumberingError):
        engine.apply(policy, revision=2)
    assert engine.apply(policy, revision=3).rows
    engine.settle(3)
    engine.apply([], [("NetworkPolicy", "default/a")], revision=4)
    engine.settle(4)
    after = numbering.to_dict()
    assert [pool["numbers"] for pool in after.values() if isinstance(pool, dict)] == [
        pool["numbers"] for pool in kept.values() if isinstance(pool, dict)
    ]


def test_missing_listeners_are_no_business_of_a_half() -> None:
    """Without room for the pair a connection is denied where both ends ask, and only there."""
    _, table = _engine(WEB, SERVER, _pod("other", 5, "other"), *_both_ends(), limits=Limits(pairs=0))
    server = identify(table.ipcache, SERVER.addresses[0])
    web, other = (identify(table.ipcache, ip_address(f"10.240.1.{n}")) for n in (1, 5))
    egress = lookup(table, table.endpoints["default/web"], Direction.EGRESS, server, 6, 80)
    ingress = lookup(table, table.endpoints["default/server"], Direction.INGRESS, web, 6, 80)
    both = lookup_pair(table, egress, ingress)
    assert (both.verdict, both.reason) == (Verdict.DENY, Reason.NO_LISTENER)
    to_other = lookup(table, table.endpoints["default/web"], Direction.EGRESS, other, 6, 80)
    from_web = lookup(table, table.endpoints["default/other"], Direction.INGRESS, web, 6, 80)
    assert lookup_pair(table, to_other, from_web).verdict is Verdict.REDIRECT


def test_a_pods_change_costs_the_same_in_a_cluster_ten_times_as_large() -> None:
    def far(number: int) -> Pod:
        address = ip_address((10 << 24) + (240 << 16) + number)
        return Pod("default", f"far{number}", {"role": f"r{number % 100}"}, (address,), "node2")

    policy = _policy("a", f"{{endpointSelector: {{matchLabels: {{role: server}}}}, ingress: [{API % ''}]}}")
    costs = {}
    for size in (2_000, 20_000):
        engine, _ = _engine(SERVER, *policy, *(far(number) for number in range(1000, 1000 + size)))
        taken = []
        for revision in range(2, 22):

            def change(revision: int = revision, engine: Engine = engine) -> None:
                engine.apply([far(50_000 + revision)], [("Pod", f"default/far{1000 + revision}")], revision=revision)
                engine.settle(revision)

            taken.append(steps(change))
        costs[size] = statistics.median(taken)
    assert costs[2_000] > 100
    assert costs[20_000] < 1.5 * costs[2_000], costs  # in proportion to the pods it would be ten times


def _without_pairs(whole: PolicyTable, of: PolicyTable, refused: Collection[tuple[int, int]]) -> PolicyTable:
    """A table that knows no limits, without the pairs that another one has refused.

    Where one end is in audit only, the other end's rules stand in.
    """
    sets, numbers = contents(whole), contents(of)
    gone = {repr((numbers[egress], numbers[ingress])) for egress, ingress in refused}
    found = [ends for ends in whole.pairs if repr((sets[ends[0]], sets[ends[1]])) in gone]
    assert len(found) == len(refused)
    pairs, rule_sets = dict(whole.pairs), dict(whole.rule_sets)
    for egress, ingress in found:
        del rule_sets[pairs.pop((egress, ingress))]
        if whole.rule_sets[ingress].rules is None:
            pairs[egress, ingress] = egress
        elif whole.rule_sets[egress].rules is None:
            pairs[egress, ingress] = ingress
    return msgspec.structs.replace(whole, pairs=pairs, rule_sets=rule_sets)


# Two worlds with pairs that have no room.
@example(seed=65787859347, http=True)
@example(seed=148, http=True)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1 << 40), st.booleans())
def test_limits_at_random(seed: int, http: bool) -> None:
    """Whatever is refused: the table fits, and is that of the objects that the engine says are in force.

    Of connections with rules at both ends, too: what has no room is refused by name, and nothing else is.
    """
    world = World(seed, http=http)
    limits = Limits(rows=world.random.randrange(1, 60), classes=world.random.randrange(1, 60), listeners=4)
    engine = Engine(Options(node="node1", pod_cidrs=POD_CIDRS, limits=limits), Numbering())
    pods = [item for key, item in sorted(world.objects.items()) if not key[0].endswith("Policy")]
    table = engine.apply(pods, revision=1)  # without policies there are neither rows nor classes
    revision = 1
    for key, item in sorted(world.objects.items()):
        if key[0].endswith("Policy"):
            revision += 1
            new = engine.apply([item], revision=revision)
            check_delta(table, new)
            table = new
    for _ in range(6):
        revision += 1
        changed, removed = world.change()
        policies = [item for item in changed if type(item).__name__ == "NetworkPolicy"]
        new = engine.apply(policies, [key for key in removed if key[0].endswith("Policy")], revision=revision)
        check_delta(table, new)
        table = new
        assert len(table.rows) <= (limits.rows or 0)
        assert len(table.classes) <= (limits.classes or 0)
        assert len(table.rule_sets) <= (limits.listeners or 0)
        cluster = engine.cluster
        whole = compile_table(cluster, node="node1", numbering=Numbering(), revision=0)
        assert meaning(table) == meaning(_without_pairs(whole, table, engine.refused_pairs))
        # None of them would have had room: each is a listener of its own.
        assert not engine.refused_pairs or len(table.rule_sets) == limits.listeners
        for key in engine.refused:
            assert key not in world.objects or cluster.policies.get(key) != world.objects[key]
