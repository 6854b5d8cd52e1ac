"""Audit as people see it: one verdict in flows, metrics and sums, bounded, with what is missing said."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from spliceway.agent.addresses import AddressBook
from spliceway.agent.audit import AuditEntry, AuditLog, AuditSummary
from spliceway.agent.blame import Blamer
from spliceway.agent.cli.audits import By, audit_groups, audit_notes, audit_rows, group_columns
from spliceway.agent.cli.ruletext import _http_rule
from spliceway.agent.cli.summary import _socket_lb, summary
from spliceway.agent.flowlog import Flow, FlowPeer, HttpPart
from spliceway.agent.flows import Names
from spliceway.agent.jsonable import encode, plain
from spliceway.agent.metrics import _Collector
from spliceway.agent.policyrows import _http
from spliceway.agent.verdicts import verdict_label, with_audit
from spliceway.bpf.portuse import PortUse
from spliceway.bpf.types import Hook, KernelFlow, Leg, ReasonCount, SocketLbStatus
from spliceway.policy.compile import compile_table
from spliceway.policy.engine import Engine, Options
from spliceway.policy.lookup import identify
from spliceway.policy.numbering import Numbering
from spliceway.policy.rulesets import NO_VALUE
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, PolicyTable, RuleRef, RuleSet
from spliceway.policy.verdict import Direction, Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow
from support.agent import NODE, MemoryDatapath, cluster_of, pod, policy

AUDITED = "metadata: {name: web, namespace: default, annotations: {spliceway.io/enforcement: audit}}"
POLICY = policy("web", "server", 80).replace("metadata: {name: web, namespace: default}", AUDITED)


def peer(identity: int, pod_name: str = "", address: str = "10.0.0.1", port: int = 0) -> FlowPeer:
    return FlowPeer(address, port, identity, pod_name, (f"k8s:app=n{identity}", "k8s:io.kubernetes.pod.namespace=shop"))


def flow(second: int, source: int = 256, port: int = 80, path: str = "", rule: str = "", miss: str = "") -> Flow:
    http = HttpPart("GET", path, "h", 200, 1.0) if path else None
    return Flow(
        f"2026-01-01T00:00:{second:02d}.000000Z", "from-pod", "audit", "http-denied" if path else "default-deny",
        peer(source, f"shop/p{second}"), peer(300, port=port), "HTTP/1.1" if path else "TCP", "direct", reply=False,
        rule=rule, rule_set="shop/web" if path else "", http=http, nearest_miss=miss,
    )  # fmt: skip


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("reason", Reason)
def test_a_pass_with_a_denying_reason_is_an_audit(verdict: Verdict, reason: Reason) -> None:
    denying = 32 <= reason < 64 or reason > Reason.HTTP_ALLOWED
    expected = "audit" if denying and verdict in (Verdict.ALLOW, Verdict.REDIRECT) else verdict.name.lower()
    assert verdict_label(verdict, reason) == expected
    entry = {"verdict": verdict.label, "reason": reason.label, "more": 1}
    assert with_audit(entry) == {**entry, "verdict": expected}


def test_records_add_up_by_rule_and_pair() -> None:
    log = AuditLog()
    for second in (5, 3, 9):
        log.add(flow(second), "ingress")
    log.add(flow(4, source=257), "ingress")
    log.add(flow(4, port=81), "ingress")
    log.add(flow(6), "egress")
    told = log.summary({"kernel": 2, "access-log": 0})
    first = told.entries[0]
    assert (first.count, first.first, first.last) == (3, "2026-01-01T00:00:03.000000Z", "2026-01-01T00:00:09.000000Z")
    assert (first.source.identity, first.source.pod, first.port) == (256, "shop/p9", 80)
    assert [(entry.source.identity, entry.port, entry.direction, entry.count) for entry in told.entries[1:]] == [
        (256, 81, "ingress", 1), (257, 80, "ingress", 1), (256, 80, "egress", 1),
    ]  # fmt: skip
    assert (told.records, told.uncounted, told.lost) == (6, 0, {"kernel": 2, "access-log": 0})


def test_what_came_to_no_request_adds_up_by_port() -> None:
    """Its first bytes may look like a request's line, another one each time."""
    log = AuditLog()
    for second in (1, 2):
        log.add(msgspec.structs.replace(flow(second, path=f"/{second}"), protocol="", reason="http-tls"), "")
    (entry,) = log.summary({}).entries
    assert (entry.protocol, entry.port, entry.method, entry.path, entry.count) == ("TCP", 80, "", "", 2)
    ((_, _, _, _, _, port, request, *_),) = audit_rows(plain(log.summary({})))
    assert (port, request) == ("TCP 80", "")


def test_requests_add_up_by_method_and_path_without_query() -> None:
    log = AuditLog()
    log.add(flow(1, path="/a?token=secret"), "")
    log.add(flow(2, path="/a?token=other", miss="path /a"), "")
    log.add(flow(3, path="/b"), "")
    told = log.summary({})
    assert [(entry.method, entry.path, entry.count) for entry in told.entries] == [("GET", "/a", 2), ("GET", "/b", 1)]
    assert told.entries[0].nearest_miss == "path /a"
    assert b"token" not in encode(told)


def test_memory_is_bounded_and_nothing_vanishes() -> None:
    log = AuditLog(max_pairs=2, max_details=3)
    for port in range(10):
        log.add(flow(1, port=port), "ingress")
    for source in range(256, 260):
        log.add(flow(2, source=source, port=0), "ingress")
    told = log.summary({})
    assert sum(entry.count for entry in told.entries) + told.uncounted == 14
    assert (told.records, told.uncounted) == (12, 2)
    assert [(entry.protocol, entry.port, entry.count) for entry in told.entries if not entry.protocol] == [("", 0, 7)]
    assert log.total == 14


def test_all_pairs_together_are_bounded_too() -> None:
    log = AuditLog(max_entries=4)
    for source in (256, 257):
        for port in range(4):
            log.add(flow(1, source=source, port=port), "ingress")
    told = log.summary({})
    assert sum(entry.count for entry in told.entries) == 8
    assert sorted((entry.source.identity, entry.protocol) for entry in told.entries) == [
        *[(256, "TCP")] * 4, (257, ""),
    ]  # fmt: skip
    log.reset({})
    log.add(flow(1, source=257), "ingress")
    assert log.summary({}).entries[0].protocol == "TCP"


def test_long_paths_are_cut() -> None:
    log = AuditLog()
    log.add(flow(1, path="/" + "a" * 60_000, miss="path /" + "a" * 60_000), "")
    (entry,) = log.summary({}).entries
    assert (len(entry.path), entry.path[-1], len(entry.nearest_miss)) == (256, "…", 256)


def test_a_reset_tells_what_there_was_and_begins_anew() -> None:
    log = AuditLog()
    log.add(flow(1), "ingress")
    assert log.reset({"kernel": 5}).records == 1
    log.add(flow(2), "ingress")
    told = log.summary({"kernel": 7})
    assert (told.records, told.lost) == (1, {"kernel": 2})
    assert log.total == 2


def shown(told: AuditSummary) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(encode(told))
    return found


def test_the_table_for_people() -> None:
    log = AuditLog(max_pairs=2, max_details=1)
    log.add(flow(1, rule="CiliumNetworkPolicy shop/web spec.ingressDeny[0]"), "ingress")
    log.add(flow(2, path="/a"), "")
    log.add(flow(3, path="/b"), "")
    log.add(flow(3, source=9), "ingress")
    told = shown(log.summary({"kernel": 3, "access-log": 0}))
    assert [row[:7] for row in audit_rows(told)] == [
        (
            1, "default-deny", "CiliumNetworkPolicy shop/web spec.ingressDeny[0]",
            "shop: k8s:app=n256", "shop: k8s:app=n300", "TCP 80", "",
        ),
        (1, "http-denied", "(rule set shop/web)", "shop: k8s:app=n256", "shop: k8s:app=n300", "HTTP/1.1 80", "GET /a"),
        (1, "http-denied", "(rule set shop/web)", "shop: k8s:app=n256", "shop: k8s:app=n300", "(others)", ""),
    ]  # fmt: skip
    notes = audit_notes(told)
    assert notes[0].startswith("3 records since ")
    assert notes[1:] == [
        "! 1 more records of other pairs: too many to keep apart",
        "! 3 records were lost (kernel): some of them may have been audits",
    ]


def test_sums_by_policy_pair_and_port() -> None:
    log = AuditLog()
    for second in (1, 2):
        log.add(flow(second, rule="CiliumNetworkPolicy shop/web spec.ingressDeny[0]"), "ingress")
    log.add(flow(3, port=81), "ingress")
    log.add(flow(4, path="/a"), "")

    def blame(entry: AuditEntry) -> tuple[str, ...]:
        return ("CiliumNetworkPolicy shop/web",) if entry.rule or entry.rule_set else ()

    told = shown(log.summary({}, blame))
    rows = {by: list(audit_groups(told, by)) for by in By}
    assert all(len(row) == len(group_columns(by)) for by in By for row in rows[by])
    client, server = "shop: k8s:app=n256", "shop: k8s:app=n300"
    first, last = "2026-01-01T00:00:01.000000Z", "2026-01-01T00:00:04.000000Z"
    third = "2026-01-01T00:00:03.000000Z"
    both = "default-deny, http-denied"
    assert rows[By.POLICY] == [
        (3, "CiliumNetworkPolicy shop/web", client, server, "HTTP/1.1 80; TCP 80", both, first, last),
        (1, "(gone)", client, server, "TCP 81", "default-deny", third, third),
    ]
    assert [row[:3] for row in rows[By.PAIR]] == [(4, client, server)]
    assert [row[:3] for row in rows[By.PORT]] == [
        (2, server, "TCP 80"), (1, server, "HTTP/1.1 80"), (1, server, "TCP 81"),
    ]  # fmt: skip
    assert next(iter(audit_rows(told)))[2] == "CiliumNetworkPolicy shop/web spec.ingressDeny[0]"


def test_default_deny_is_due_to_the_policies_that_isolate() -> None:
    """In audit as well; of other policies and the other direction none."""
    other = policy("other", "client", 80)
    cluster = cluster_of(pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), POLICY, other)
    engine = Engine(Options(node=NODE), Numbering())
    table = engine.apply((*cluster.pods.values(), *cluster.policies.values()), revision=1)
    log = AuditLog()
    log.add(flow(1), "ingress")
    log.add(flow(2), "egress")
    (ingress, egress) = sorted(log.summary({}).entries, key=lambda entry: entry.direction, reverse=True)
    blame = Blamer(table, engine.isolating)
    server = msgspec.structs.replace(ingress.destination, pod="default/server")
    assert blame(msgspec.structs.replace(ingress, destination=server)) == ("CiliumNetworkPolicy default/web",)
    assert blame(msgspec.structs.replace(ingress, destination=server, reason="spoofed-source")) == ()
    assert blame(msgspec.structs.replace(egress, source=server)) == ()
    assert blame(ingress) == ()  # a pod that is not of this node


def test_requests_are_due_to_the_policies_of_their_rule_set() -> None:
    text = policy("web", "server", 80, http=["/a"])
    cluster = cluster_of(pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), text)
    table = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    (rule_set,) = table.rule_sets.values()
    log = AuditLog()
    log.add(msgspec.structs.replace(flow(1, path="/b"), rule_set=rule_set.name), "")
    (entry,) = log.summary({}, Blamer(table, lambda _pod, _direction: ())).entries
    assert entry.policies == ("CiliumNetworkPolicy default/web",)


def names() -> tuple[Names, KernelFlow]:
    cluster = cluster_of(pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), pod("z", "10.240.1.12"), POLICY)
    table = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    book = AddressBook()
    book.update((("Pod", key), item) for key, item in cluster.pods.items())
    source, destination = ip_address("10.240.1.12"), ip_address("10.240.1.11")
    record = KernelFlow(
        time=0, hook=Hook.FROM_POD, verdict=Verdict.ALLOW, reason=Reason.DEFAULT_DENY, rule=0, rule_set=0,
        source=source, source_port=1, source_identity=identify(table.ipcache, source),
        destination=destination, destination_port=80, destination_identity=identify(table.ipcache, destination),
        protocol=6, length=60, leg=Leg.DIRECT,
    )  # fmt: skip
    return Names(table, book), record


def test_kernel_records_become_audits_of_a_direction() -> None:
    found, record = names()
    assert found.kernel(record).verdict == "audit"
    assert found.direction(record, found.ends(record)) == Direction.INGRESS.label
    assert found.kernel(record).direction == Direction.INGRESS.label
    assert found.kernel(msgspec.structs.replace(record, reply=True)).direction == ""
    other = msgspec.structs.replace(record, reason=Reason.POLICY_DENIED)
    assert found.direction(other, found.ends(other)) == ""
    assert found.kernel(other).direction == ""
    assert Names().direction(record, ("", "")) == ""


def test_http_records_become_audits_with_the_nearest_miss() -> None:
    text = policy("web", "server", 80, http=["/a"]).replace("metadata: {name: web, namespace: default}", AUDITED)
    cluster = cluster_of(pod("client", "10.240.1.10"), pod("server", "10.240.1.11"), text)
    table = compile_table(cluster, node=NODE, numbering=Numbering(), revision=1)
    (rule_set,) = table.rule_sets
    record = HttpFlow(
        time=0, duration_ns=0, source=ip_address("10.240.1.10"), source_port=1, destination=ip_address("10.240.1.11"),
        destination_port=80, protocol="HTTP/1.1", method="GET", authority="server", path="/b", status=200,
        verdict=Verdict.ALLOW, reason=Reason.HTTP_DENIED, rule_set=rule_set, rule=0,
    )  # fmt: skip
    told = Names(table).http(record)
    assert told.verdict == "audit"
    assert "path /b does not match /a" in told.nearest_miss


class Counters(MemoryDatapath):
    def reasons(self) -> list[ReasonCount]:
        return [
            ReasonCount(Hook.FROM_POD, Verdict.ALLOW, Reason.DEFAULT_DENY, 2, 100),
            ReasonCount(Hook.FROM_POD, Verdict.REDIRECT, Reason.DEFAULT_DENY, 3, 200),
            ReasonCount(Hook.FROM_POD, Verdict.DENY, Reason.DEFAULT_DENY, 4, 300),
        ]


def test_audits_are_one_series() -> None:
    class Verdicts(Collector):
        def collect(self) -> Iterable[object]:  # type: ignore[override]
            return _Collector(Counters([]), lambda: None, lambda: None)._verdicts()  # type: ignore[arg-type,return-value]

    registry = CollectorRegistry()
    registry.register(Verdicts())
    lines = generate_latest(registry).decode().splitlines()
    labels = 'hook="from-pod",reason="default-deny"'
    assert f'spliceway_verdicts_total{{{labels},verdict="audit"}} 5.0' in lines
    assert f'spliceway_verdict_bytes_total{{{labels},verdict="audit"}} 300.0' in lines
    assert f'spliceway_verdicts_total{{{labels},verdict="deny"}} 4.0' in lines


@pytest.mark.parametrize(
    ("mode", "count", "text"),
    [
        ("enforce", 0, "enforce: 7 policies"),
        ("enforce", 2, "enforce: 7 policies, 2 of them in audit"),
        ("audit", 2, "audit: nothing is denied by any policy (7 policies)"),
    ],
)
def test_status_says_what_is_enforced(mode: str, count: int, text: str) -> None:
    status = {
        "node": "n", "pid": 1, "started": "1970-01-01T00:00:00.000000Z",
        "source": {"directory": "/d", "files": 0, "objects": 0},
        "policy": {"revision": 1, "rows": 0, "ruleSets": 0, "waiting": {}},
        "enforcement": {"mode": mode, "policies": 7, "policiesInAudit": count},
        "services": {"services": 0, "frontends": 0, "withoutBackends": 0, "conflicts": 0, "leftOut": 0},
        "datapath": {"generation": 1, "abi": 1, "attached": (), "lostEvents": 0},
        "proxy": {"kind": "envoy", "listeners": {}, "clients": 0, "nacks": 0, "unfit": {}, "ports": plain(PortUse())},
        "splice": {
            "mode": "auto", "decided": True, "spliced": [], "gate": [], "selfTest": None, "unread": 0,
            "limits": {"node": 1},
            "counters": {"spliced": 0, "tcpOnly": 0, "redirectedBytes": 0, "byWhy": {}},
        },
        "flows": {"published": 0},
    }  # fmt: skip
    assert ("enforcement", text) in summary(status)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (SocketLbStatus(), "off"),
        (SocketLbStatus("auto", True, (), 1, 80), "auto: 1 frontend, 80 backends in the kernel"),
        (SocketLbStatus("auto", False, ("x (id 1)",), 1, 80), "auto, but off: others translate: x (id 1)"),
    ],
)
def test_status_says_who_translates_services(found: SocketLbStatus, text: str) -> None:
    assert _socket_lb(plain(found)) == text


def test_policy_get_shows_every_condition_and_no_secret() -> None:
    headers = (HeaderMatch("x-a"), HeaderMatch("x-b", "1"), HeaderMatch("x-c", "hush", secret=True))
    others = (HeaderMatch("x-d", NO_VALUE, secret=True), HeaderMatch("x-e", "1", mismatch=Mismatch.ADD))
    rule_set = RuleSet(
        1, "s", (HttpRule(1, "GET", "/a", "h", headers),), audit=(HttpRule(1, path="/b", headers=others),)
    )
    table = PolicyTable(1, {}, {}, {}, {}, {}, {1: rule_set}, {1: RuleRef("P", "spec")})
    shown_rules = msgspec.json.decode(encode(_http(table, rule_set)))
    assert [_http_rule(rule) for rule in shown_rules] == [
        "GET /a host h x-a x-b: 1 x-c: (secret)",
        "* /b x-d: (secret is missing or can be no header: never matches) (ADD x-e: 1) (audit)",
    ]
    assert b"hush" not in encode(_http(table, rule_set))
