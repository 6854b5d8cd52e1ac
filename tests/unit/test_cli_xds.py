"""What `spliceway xds …` and `status` print of what the agent says: rows and sentences, as values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from spliceway.agent.cli import xdsrender
from spliceway.agent.cli.common import FullOutput
from spliceway.agent.cli.render import emit_full
from spliceway.agent.cli.summary import held_up, not_applied, problems, warnings

Json = dict[str, Any]

EPOCH, LATER = "1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:01.500123Z"


def resource(name: str, state: str = "SYNCED", error: str = "") -> Json:
    return {"name": name, "state": state, "version": "2", "sent": "2", "acked": "2", "size": 10, "error": error}


def kind(type_: str, *resources: Json, **fields: Any) -> Json:
    worst = next((s for s in ("NACK", "STALE", "NOT SENT") if any(r["state"] == s for r in resources)), "SYNCED")
    made = {
        "type": type_, "state": worst, "resources": list(resources), "count": len(resources), "sentVersion": "2",
        "ackedVersion": "1", "sentNonce": "n-2", "ackedNonce": "n-1", "size": 2048, "ackSeconds": 0.0123, "nacks": 0,
        "waiting": False, "sentAt": "1970-01-01T00:01:40.000000Z", "lastError": None,
    }  # fmt: skip
    return made | fields


def client(*types: Json, **fields: Any) -> Json:
    made = {
        "client": {"node": "node1", "cluster": "c", "agent": "envoy", "version": "1.40.0", "warning": ""},
        "stream": "s-1", "since": EPOCH, "current": True, "snapshot": "2", "types": list(types), "unsupported": {},
        "service": "ADS", "protocol": "delta", "peer": "unix:",
    }  # fmt: skip
    return made | fields


def test_a_row_for_each_stream_and_one_for_each_type_of_the_current_one() -> None:
    old = client(kind("LDS", resource("a")), current=False, stream="s-0")
    now = client(kind("LDS", resource("a")), kind("RDS", resource("a"), resource("b", "STALE"), ackSeconds=None))
    rows = list(xdsrender.client_rows([old, now]))
    assert [row[-1] for row in rows] == ["s-0 (replaced by a newer one)", "s-1"]
    assert rows[1][:-1] == ("node1", "c", "envoy", "1.40.0", "delta", "ADS", "unix:", "1970-01-01T00:00:00Z")
    assert list(xdsrender.type_rows([old, now])) == [
        ("node1", "LDS", "SYNCED", 1, "2", "1", "n-2", "n-1", "2.0 KiB", "12.3", 0),
        ("node1", "RDS", "STALE", "1/2", "2", "1", "n-2", "n-1", "2.0 KiB", "", 0),
    ]


def test_what_makes_the_exit_status_1() -> None:
    assert xdsrender.status_problems([], 0.0) == ["no client is connected"]
    assert xdsrender.status_problems([client(kind("LDS", resource("a")))], 1e9) == []
    stale = client(kind("RDS", resource("a", "STALE"), waiting=True))
    assert xdsrender.status_problems([stale], 104.0) == []  # a moment ago
    assert xdsrender.status_problems([stale], 160.0) == ["node1: RDS: no answer to n-2 for 60 s"]
    assert xdsrender.status_problems([stale | {"current": False}], 160.0) == []  # half-open
    refused = client(kind("RDS", *(resource(f"r{number}", "NACK") for number in range(7))))
    assert xdsrender.status_problems([refused], 0.0) == ["node1: RDS: NACK of r0, r1, r2, r3, r4 and 2 more"]
    stranger = client(kind("LDS"), kind("CDS"), snapshot="")
    assert xdsrender.status_problems([stranger], 0.0) == [
        "node1: LDS: there is nothing to send: no resources for this node",
        "node1: CDS: there is nothing to send: no resources for this node",
    ]


def test_what_xds_serve_refused_and_who_was_not_served() -> None:
    refused = [
        {"kind": "file", "name": "a.yaml", "reason": "a.yaml: x\n\x1b[2J", "time": None},
        {"kind": "client", "name": "", "reason": "no node id", "time": LATER},
    ]
    assert xdsrender.refused_problems(refused) == ["refused: a.yaml: x\\n\\x1b[2J"]
    assert xdsrender.refused_warnings(refused) == ["(without node id) is not served: no node id (1970-01-01T00:00:01Z)"]


def test_refusals_are_told_whole_also_when_they_are_over() -> None:
    error = {"version": "2", "nonce": "n-2", "resources": ["r"], "message": "line 1\nline 2 " + "x" * 500}
    now = client(kind("RDS", resource("r", "NACK", error["message"]), lastError=error))
    assert list(xdsrender.status_notes([now])) == [f"node1: RDS r refused: {error['message']}"]
    over = client(kind("RDS", resource("r"), lastError=error), unsupported={"": 2, "type/Scoped": 1})
    over["client"]["warning"] = "unsafe"
    assert list(xdsrender.status_notes([over])) == [
        "node1: unsafe",
        "node1: asked 2 times for no type at all, which is not served",
        "node1: asked 1 times for type/Scoped, which is not served",
        f"node1: RDS 2 was refused and is over: {error['message']}",
    ]


def event(kind: str, **fields: Any) -> Json:
    made = {
        "time": LATER, "kind": kind, "node": "node1", "cluster": "c", "stream": "s-1", "protocol": "delta", "type": "",
        "version": "", "nonce": "", "resources": [], "count": 0, "removed": [], "size": 0, "error": "",
        "ackSeconds": None,
    }  # fmt: skip
    return made | fields


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (event("connected"), "connected node1 delta (s-1)"),
        (event("rejected", node="", error="no node id"), "rejected (no node) delta (s-1): no node id"),
        (
            event("push", type="RDS", version="3", nonce="n", resources=["a", "b"], count=9, removed=["c"], size=3000),
            "push node1 delta RDS 3 nonce n a, b and 7 more removed c 2.9 KiB",
        ),
        (event("ack", type="RDS", nonce="n", count=2, ackSeconds=0.0042), "ack node1 delta RDS nonce n after 4.2 ms"),
        # A line is one line, and nothing that a client says moves the cursor.
        (event("nack", type="LDS", resources=["a"], count=1, error="bad\nport"), "nack node1 delta LDS a: bad port"),
        (event("connected", node="x\x1b[2J\x07é"), "connected x\\x1b[2J\\x07é delta (s-1)"),
    ],
)  # fmt: skip
def test_events(given: Json, line: str) -> None:
    assert xdsrender.event_line(given) == f"1970-01-01T00:00:01.500Z {line}"
    assert xdsrender.event_line({"lost": 7}) == "(7 events lost: this reader is too slow)"


def test_a_row_for_each_place_that_differs() -> None:
    base = {"type": "RDS", "name": "r", "message": "", "more": 0, "version": "2", "envoyVersion": "1", "fields": []}
    fields = [{"path": "a.b", "desired": "x", "envoy": None}, {"path": "c", "desired": {"k": "v" * 500}, "envoy": 1}]
    differs = base | {"state": "differs", "fields": fields, "more": 3}
    gone = base | {"state": "missing", "name": "s", "envoyVersion": ""}
    error = base | {"state": "error", "name": "t", "message": "Envoy's own words"}
    rows = list(xdsrender.diff_rows([differs, gone, error]))
    assert rows[0] == ("RDS", "r", "differs", "a.b", '"x"', "(none)")
    assert rows[1][5] == "1"
    assert len(rows[1][4]) < 170
    assert rows[2:] == [
        ("RDS", "s", "missing", "(version)", "2", ""),
        ("RDS", "t", "error", "(version)", "2", "1"),
    ]
    assert list(xdsrender.diff_notes([differs, gone, error])) == [
        "RDS r: 3 more places differ", "RDS t: Envoy's own words",
    ]  # fmt: skip
    same = [base | {"state": "same"}] * 5
    answer = {"node": "node1", "resources": [*same, differs, gone]}
    assert xdsrender.diff_sum(answer) == "node1: 7 resources: 1 differs, 1 missing, 5 same"
    assert xdsrender.diff_sum({"node": "node1", "resources": []}) == "node1: 0 resources: nothing to compare"


@pytest.mark.parametrize("size", ["0 B", "1023 B", "1.0 KiB", "1.0 MiB"])
def test_sizes(size: str) -> None:
    given = {"0 B": 0, "1023 B": 1023, "1.0 KiB": 1024, "1.0 MiB": 1 << 20}
    assert xdsrender.size_text(given[size]) == size


def test_dump_has_a_row_for_each_policy() -> None:
    rule = {"id": 1, "path": "spec.a", "audit": False}
    policy = {"kind": "K", "namespace": "n", "name": "p", "file": "f.yaml", "rules": [rule, rule | {"audit": True}]}
    clusterwide = policy | {"namespace": "", "rules": [rule]}
    head = {"type": "RDS", "name": "r", "state": "SYNCED", "version": "2", "size": 5, "origin": "policy"}
    rows = list(xdsrender.dump_rows([head | {"policies": [policy, clusterwide]}]))
    assert [row[5:] for row in rows] == [("f.yaml", "K n/p spec.a, spec.a (audit)"), ("f.yaml", "K p spec.a")]
    (row,) = xdsrender.dump_rows([head | {"origin": "configuration", "policies": []}])
    assert row == ("RDS", "r", "SYNCED", "2", "5 B", "", "(configuration)")


def test_yaml_is_a_document_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    values = [
        {"b": 1, "a": "no"},
        {"a": "é: {x}\n--- y", "n": None, "at": 1.5, "on": "on", "v": "1.10", "d": "2026-01-01"},
    ]
    emit_full(values, FullOutput.YAML, (), ())
    text = capsys.readouterr().out
    assert list(yaml.safe_load_all(text)) == values
    assert text.startswith("---\nb: 1\n")  # in the order in which they came
    emit_full([], FullOutput.YAML, (), ())
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == []


FIVE = {"ruleSet": "five", "state": "refused", "type": "RDS", "resource": "rule-set-5", "message": "a\n b"}
STATUS: Json = {
    "policy": {
        "waiting": {"five": "refused", "six": "waiting"}, "error": "", "endpointError": "", "revision": 1, "wanted": 1,
        "refusedPairs": 0,
        "notApplied": [
            {
                "policy": "K n/p", "file": "f.yaml", "state": "refused",
                "why": [
                    FIVE,
                    {"ruleSet": "odd", "state": "refused", "type": "", "resource": "", "message": "can't be asked"},
                ],
            }
        ],
    },
    "proxy": {
        "process": None, "unfit": {"odd": "can't be asked"}, "clients": 1, "warnings": ["plain TCP"],
        "refused": [{"type": "LDS", "resource": "mine", "message": "no such filter"}],
    },
    "source": {"refusals": []},
    "services": {"conflicts": 1},
    "datapath": {"problems": []},
    "splice": {
        "decided": True, "spliced": ["clients", "servers"], "why": [], "warnings": [], "counters": {"byWhy": {}},
    },
}  # fmt: skip


def test_status_says_which_policy_the_proxy_refused_and_why() -> None:
    assert problems(STATUS) == [
        "rule set five: refused: RDS rule-set-5: a b (K n/p in f.yaml)",
        "rule set six: waiting",
        "rule set odd: refused: can't be asked (K n/p in f.yaml)",
        "proxy: refused LDS mine: no such filter",
    ]
    assert warnings(STATUS) == [
        "plain TCP",
        "services: several Services want the same address and port (1 frontend), see `spliceway service list`",
    ]
    assert held_up(STATUS) == " (2 rule sets refused, 1 rule set waiting)"
    taken = copy.deepcopy(STATUS)
    taken["policy"]["waiting"], taken["proxy"]["unfit"] = {"six": "port-taken"}, {}
    assert held_up(taken) == " (1 rule set waiting)"
    taken["policy"]["waiting"] = {}
    assert held_up(taken) == ""
    assert not_applied(STATUS) == [
        "K n/p (f.yaml): refused: RDS rule-set-5: a b",
        "K n/p (f.yaml): refused: can't be asked",
    ]
    held = copy.deepcopy(STATUS)
    held["policy"]["wanted"] = 2
    assert not_applied(held)[-1] == "revision 1 is shown, 2 is wanted: what is held back is not in the table"
