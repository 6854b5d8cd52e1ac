"""Ports, state, staging, JSON and flows: the small parts of the agent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.addresses import AddressBook
from spliceway.agent.errors import PortsExhaustedError, StateError
from spliceway.agent.flowlog import Flow, FlowLog, FlowPeer, flow_filter
from spliceway.agent.flows import Names
from spliceway.agent.jsonable import encode, plain
from spliceway.agent.policyrows import port_text
from spliceway.agent.ports import PortAllocator
from spliceway.agent.ring import Lost
from spliceway.agent.staging import difference, hold_back, same_rows, waiting_units
from spliceway.agent.state import AgentState, Held, StateStore
from spliceway.bpf.types import Hook, KernelFlow, Leg
from spliceway.policy.compile import compile_table
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable, RowKey
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow
from support.agent import NODE, cluster_of, pod, policy, run

PODS = (pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), pod("other", "10.240.1.12"))


# --- ports ---


def test_ports_are_stable_and_reused_last() -> None:
    ports = PortAllocator(100, 103)
    assert ports.assign([7, 3]) == {3: 100, 7: 101}
    assert ports.assign([7, 9]) == {7: 101, 9: 102}
    ports.release([7])
    assert ports.freed == (100, 102)
    assert ports.assign([7, 11]) == {7: 101, 11: 103}
    assert ports.assign([12]) == {12: 100}
    again = PortAllocator(100, 103, assigned=ports.ports, freed=ports.freed)
    assert again.assign([13]) == {13: 102}
    assert again.freed == ()


def test_ports_run_out_with_numbers() -> None:
    ports = PortAllocator(100, 101)
    ports.assign([1])
    with pytest.raises(PortsExhaustedError, match=r"3 rule sets need a listener port each.* has 2"):
        ports.assign([1, 2, 3])
    assert ports.ports == {1: 100}


def test_ports_outside_a_new_range_are_forgotten() -> None:
    ports = PortAllocator(200, 201, assigned={1: 100, 2: 200, 3: 200}, freed=[5, 201])
    assert ports.ports == {2: 200}
    assert ports.freed == (201,)
    assert ports.replace(2) == 201
    with pytest.raises(PortsExhaustedError):
        PortAllocator(1, 1, assigned={1: 1}).replace(1)


# --- state ---


def test_state_survives(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "state")
    assert store.load() == AgentState()
    store.prepare()
    state = AgentState(
        node="n",
        numbering={"a": 1},
        ports={5: 23000},
        freed=(1,),
        held=Held({"f": ({"kind": "Pod"},)}, {"Pod a/b": "f"}),
    )
    assert store.save(state)
    assert not store.save(state)
    assert StateStore(tmp_path / "state").load() == state
    assert stat.S_IMODE((tmp_path / "state" / "state.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.json"]


def test_damaged_and_newer_state_is_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    (tmp_path / "state.json").write_text('{"ports": {"a": 1}')
    with pytest.raises(StateError, match=r"state.json is damaged"):
        store.load()
    (tmp_path / "state.json").write_text('{"version": 99}')
    with pytest.raises(StateError, match=r"has version 99, this agent reads up to 1"):
        store.load()


def test_two_agents_do_not_share_a_node(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from spliceway.agent.state import StateStore
with StateStore(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(StateError, match=rf"belongs to a running agent \(pid {other.pid}\)"),
            StateStore(tmp_path).lock(),
        ):
            pass
        other.kill()
    with StateStore(tmp_path).lock():
        assert (tmp_path / "agent.lock").read_text() == f"{os.getpid()}\n"


def test_a_failed_write_leaves_the_old_state(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(AgentState(node="old"))
    (tmp_path / ".state.json.new").mkdir()  # what the write would go to
    with pytest.raises(StateError, match=r"can't be written"):
        store.save(AgentState(node="new"))
    assert store.load().node == "old"


# --- staging ---


def tables(*edits: tuple[str, ...]) -> list[PolicyTable]:
    numbering = Numbering()
    return [
        compile_table(cluster_of(*PODS, *edit), node=NODE, numbering=numbering, revision=number)
        for number, edit in enumerate(edits, start=1)
    ]


def test_hold_back_keeps_whole_units() -> None:
    old, new = tables(
        (policy("s", "server", 80), policy("o", "other", 80)),
        (policy("s", "server", 80, http=["/a"]), policy("o", "other", 81)),
    )
    (rule_set,) = new.rule_sets
    target, left = hold_back(old, new, {rule_set}, difference(old, new))
    held = waiting_units(new, {rule_set})
    assert left is not None
    assert len(held) == 1
    for table, keys in ((old, held), (new, waiting_units(new, ()) or None)):
        if keys:
            assert {k: r for k, r in target.rows.items() if (k.policy_id, k.direction) in held} == {
                k: r for k, r in table.rows.items() if (k.policy_id, k.direction) in held
            }
    assert {k: r for k, r in target.rows.items() if (k.policy_id, k.direction) not in held} == {
        k: r for k, r in new.rows.items() if (k.policy_id, k.direction) not in held
    }
    assert target.revision == old.revision
    assert hold_back(old, new, set(), difference(old, new)) == (new, None)


def test_hold_back_keeps_an_open_direction_open_only_where_it_was() -> None:
    old, new = tables((), (policy("s", "server", 80, http=["/a"]),))
    target, _left = hold_back(old, new, set(new.rule_sets), difference(old, new))
    assert not target.endpoints["default/server"].ingress
    assert same_rows(old, target, difference(old, target))


def test_hold_back_does_not_judge_new_identities_by_old_classes() -> None:
    numbering = Numbering()
    old = compile_table(cluster_of(*PODS, policy("s", "server", 80)), node=NODE, numbering=numbering, revision=1)
    late = cluster_of(*PODS, pod("late", "10.240.1.20"), policy("s", "server", 80, http=["/a"]))
    new = compile_table(late, node=NODE, numbering=numbering, revision=2)
    assert hold_back(old, new, set(new.rule_sets), difference(old, new)) == (new, None)


def test_hold_back_of_a_pair_keeps_the_end_that_is_new() -> None:
    """The server's rules are served already; the client's need the listener of both, which is on its way."""
    ingress = policy("in", "server", 80, http=["/a"])
    egress = policy("out", "client", 80, peer="server", http=["/b"]).replace("ingress:", "egress:")
    egress = egress.replace("fromEndpoints", "toEndpoints")
    old, new = tables((ingress,), (ingress, egress))
    ((client_set, server_set), both) = next(iter(new.pairs.items()))
    assert set(old.rule_sets) == {server_set}
    assert set(new.rule_sets) == {client_set, server_set, both}
    client = new.endpoints["default/client"]
    for pending in ({client_set, both}, {both}, {client_set}):
        target, left = hold_back(old, new, pending, difference(old, new))
        assert left is not None
        assert target.endpoints["default/client"] == old.endpoints["default/client"] != client
        assert same_rows(old, msgspec.structs.replace(target, pairs=old.pairs), difference(old, target))
        # Once the listeners are there, everything comes.
        assert hold_back(target, new, (), left) == (new, None)
        assert not same_rows(target, new, left)


def test_same_rows_is_blind_to_http_rules() -> None:
    first, second, third = tables(
        (policy("s", "server", 80, http=["/a"]),),
        (policy("s", "server", 80, http=["/b"]),),
        (policy("s", "server", 81, http=["/b"]),),
    )
    assert same_rows(first, second, difference(first, second))
    assert not same_rows(second, third, difference(second, third))


# --- JSON ---


def test_plain_values() -> None:
    key = RowKey(1, Direction.EGRESS, 2, Protocol.TCP, 80, 16)
    assert plain(key) == {
        "policyId": 1, "direction": "egress", "classId": 2, "protocol": "tcp", "port": 80, "portBits": 16,
    }  # fmt: skip
    assert plain({ip_address("::1"): (Path("/a"), True, None, 1.5, Reason.DEFAULT_DENY)}) == {
        "::1": ["/a", True, None, 1.5, "default-deny"]
    }
    assert encode(FlowPeer("a", 1, 2)) == b'{"address":"a","port":1,"identity":2,"pod":"","labels":[]}'


@pytest.mark.parametrize(
    ("protocol", "port", "bits", "text"),
    [
        (Protocol.TCP, 0, 0, "*"),
        (Protocol.TCP, 80, 16, "80"),
        (Protocol.UDP, 64, 10, "64-127"),
        (Protocol.ICMP, 0x0800, 8, "type 8"),
        (Protocol.ICMPV6, 0x8001, 16, "type 128 code 1"),
    ],
)
def test_port_text(protocol: Protocol, port: int, bits: int, text: str) -> None:
    assert port_text(RowKey(1, Direction.INGRESS, 0, protocol, port, bits)) == text


# --- flows ---


def names() -> Names:
    cluster = cluster_of(*PODS, policy("web", "server", 80, http=["/articles/[0-9]+"]))
    table = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    book = AddressBook()
    book.update((("Pod", key), item) for key, item in cluster.pods.items())
    return Names(table, book)


def http_flow(path: str, verdict: Verdict, reason: Reason, rule: int = 0, status: int = 200) -> HttpFlow:
    return HttpFlow(
        time=1_700_000_000_123_456_789,
        duration_ns=1_500_000,
        source=ip_address("10.240.1.10"),
        source_port=40000,
        destination=ip_address("10.240.1.11"),
        destination_port=80,
        protocol="HTTP/1.1",
        method="GET",
        authority="server",
        path=path,
        status=status,
        verdict=verdict,
        reason=reason,
        rule_set=1,
        rule=rule,
    )


def test_http_flows_have_names_and_the_nearest_miss() -> None:
    denied = names().http(http_flow("/private", Verdict.DENY, Reason.HTTP_DENIED, status=403))
    assert denied.time == "2023-11-14T22:13:20.123456Z"
    assert (denied.source.pod, denied.destination.pod) == ("default/client", "default/server")
    assert "k8s:app=client" in denied.source.labels
    assert denied.rule_set == "default/web:ingress[0].toPorts[0]" or "web" in denied.rule_set
    assert "path /private does not match /articles/[0-9]+" in denied.nearest_miss
    assert denied.http is not None
    assert (denied.http.status, denied.http.duration) == (403, 1.5)
    ambiguous = names().http(http_flow("/a;b", Verdict.DENY, Reason.HTTP_AMBIGUOUS, status=403))
    assert ambiguous.nearest_miss == ""


def test_kernel_flows_have_names() -> None:
    found = names()
    rule = next(number for number in range(1, 10) if "http[0]" in found.rule(number))
    flow = found.kernel(
        KernelFlow(
            time=0,
            hook=Hook.FROM_POD,
            verdict=Verdict.REDIRECT,
            reason=Reason.REDIRECTED,
            rule=rule,
            rule_set=1,
            source=ip_address("10.240.1.10"),
            source_port=1,
            source_identity=256,
            destination=ip_address("192.0.2.1"),
            destination_port=80,
            destination_identity=9,
            protocol=6,
            length=60,
            leg=Leg.DOWNSTREAM,
        )
    )
    assert flow.rule == "CiliumNetworkPolicy default/web spec.ingress[0].toPorts[0].rules.http[0]"
    assert (flow.destination.pod, flow.destination.labels) == ("", ("reserved:world-ipv4",))
    assert found.rule(99) == "rule 99 (gone)"
    assert Names(None, None, found).rule(rule) == flow.rule
    assert Names(None, None, Names(None, None, found)).rule(rule) == flow.rule
    assert Names().http(http_flow("/", Verdict.DENY, Reason.HTTP_DENIED)).nearest_miss == ""


def flow(reason: str, verdict: str = "deny") -> Flow:
    peer = FlowPeer("10.0.0.1", 80, 1, "default/a")
    return Flow("t", "from-pod", verdict, reason, peer, peer, "TCP", "direct", reply=False)


def test_flow_log_keeps_the_latest_and_filters() -> None:
    log = FlowLog(3)
    for number in range(5):
        log.publish(lambda number=number: flow(f"r{number}", "allow" if number % 2 else "deny"))  # type: ignore[misc]
    assert [one.reason for one in log.latest(10)] == ["r2", "r3", "r4"]
    assert [one.reason for one in log.latest(1)] == ["r4"]
    assert log.latest(0) == []
    assert [one.reason for one in log.latest(10, flow_filter({"verdict": "allow", "pod": "default/a"}))] == ["r3"]
    with pytest.raises(ValueError, match=r"unknown filter color"):
        flow_filter({"color": "red"})


def test_a_slow_follower_loses_and_is_told() -> None:
    async def body() -> None:
        log = FlowLog(10, follower_queue=2)
        log.publish(lambda: flow("before"))
        follower = log.follow(last=1)
        assert await anext(follower) == flow("before")
        for number in range(5):
            log.publish(lambda number=number: flow(f"r{number}"))  # type: ignore[misc]
        log.close()
        assert [one async for one in follower] == [flow("r0"), flow("r1"), Lost(3)]
        assert log.lost == 3

    run(body)
