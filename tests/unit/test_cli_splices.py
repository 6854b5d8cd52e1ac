"""What is told of splices: rows, rates and sentences."""

from __future__ import annotations

from typing import Any

import pytest

from spliceway.agent.cli.splices import (
    SOCK_COLUMNS,
    WATCH_COLUMNS,
    counted,
    gate_line,
    self_test_line,
    sock_rows,
    splice_line,
    splice_notes,
    splice_wish,
    totals_line,
    watch_rows,
    with_rates,
)

COUNTERS = {
    "spliced": 5,
    "tcpOnly": 3,
    "revoked": 0,
    "redirectedBytes": 3 << 20,
    "byWhy": {"off": 0, "opted-out": 1, "sent-first": 2, "half-closed": 3, "unread-limit": 1, "peer-gone": 0},
}


def sock(port: int = 40000, **changes: Any) -> dict[str, Any]:
    return {
        "endpointPod": "default/client",
        "endpoint": "fd00::1",
        "endpointPort": port,
        "peer": "10.0.0.2",
        "peerPort": 80,
        "leg": "downstream",
        "state": "spliced",
        "why": "",
        "ruleSetName": "web",
        "toProxyBytes": 1000,
        "toProxyMessages": 10,
        "fromProxyBytes": 2000,
        "fromProxyMessages": 20,
        "toProxyUnread": 7,
        "fromProxyUnread": 8,
        "ageSeconds": 3.25,
    } | changes


def splice(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "auto",
        "configured": "auto",
        "decided": True,
        "spliced": ["clients", "servers"],
        "why": [],
        "warnings": [],
        "selfTest": None,
        "limits": {"node": 384 << 20},
        "unread": 512,
        "counters": COUNTERS,
    } | changes


def test_rows_have_what_the_columns_say() -> None:
    (row,) = sock_rows([sock()])
    assert dict(zip(SOCK_COLUMNS, row, strict=True))["UNREAD"] == 15
    assert row == (
        "default/client", "[fd00::1]:40000", "10.0.0.2:80", "downstream", "spliced", "", 1000, 10,
        2000, 20, 15, 3.25, "web",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sums", "unread"),
    [
        ({}, (1000, 10, 2000, 20), 15),
        ({"state": "undecided"}, (1000, 10, 2000, 20), 15),
        # It never was spliced: what it moves by TCP is counted nowhere.
        ({"state": "tcp-only", "why": "opted-out", "toProxyUnread": 0, "fromProxyUnread": 0}, (None,) * 4, None),
        # It was, and these are the sums of that time; what of it still waits is told as long as it does.
        ({"state": "tcp-only", "why": "unread-limit"}, (1000, 10, 2000, 20), 15),
        ({"state": "tcp-only", "why": "half-closed", "toProxyUnread": 0}, (1000, 10, 2000, 20), 8),
        (
            {"state": "tcp-only", "why": "half-closed", "toProxyUnread": 0, "fromProxyUnread": 0},
            (1000, 10, 2000, 20),
            None,
        ),
    ],
)
def test_what_is_not_counted_is_no_zero(changes: dict[str, Any], sums: tuple[int | None, ...], unread: int) -> None:
    (row,) = sock_rows([sock(**changes)])
    assert (row[6:10], row[SOCK_COLUMNS.index("UNREAD")]) == (sums, unread)
    ((*_, watched, _age),) = watch_rows(with_rates([sock(**changes)], [], 1.0))
    assert watched == (None if unread is None else f"{unread} B")


def test_rates_are_of_the_same_connection() -> None:
    before = [sock(1), sock(2, ageSeconds=9.0), sock(3), sock(4, toProxyBytes=0), sock(6)]
    now = [
        sock(1, toProxyBytes=3000, fromProxyBytes=2001, ageSeconds=5.25),
        sock(2, ageSeconds=0.5),  # another one on the same ports
        sock(3, ageSeconds=5.25),
        sock(4, toProxyBytes=100_000, ageSeconds=5.25),
        sock(5, ageSeconds=0.1),
        sock(6, toProxyBytes=9000, ageSeconds=5.25, state="tcp-only", why="unread-limit"),  # it has left
    ]
    rated = with_rates(now, before, 2.0)
    assert [each["endpointPort"] for each in rated] == [4, 1, 3, 2, 5, 6]
    rates = {each["endpointPort"]: (each["toProxyBytesPerSecond"], each["fromProxyBytesPerSecond"]) for each in rated}
    unknown = dict.fromkeys((2, 5, 6), (None, None))
    assert rates == {4: (50_000.0, 0.0), 1: (1000.0, 0.5), 3: (0.0, 0.0), **unknown}
    assert totals_line(rated) == "6 connections: 5 spliced, 1 tcp-only; 49.8 KiB/s spliced"
    rows = [dict(zip(WATCH_COLUMNS, row, strict=True)) for row in watch_rows(rated)]
    assert [row["TO PROXY/S"] for row in rows] == ["48.8 KiB", "1000 B", "0 B", None, None, None]
    assert with_rates([], before, 2.0) == []
    assert totals_line([]) == "0 connections: none; 0 B/s spliced"


def test_counts_by_reason() -> None:
    gone = sock(4, state="tcp-only", why="half-closed")
    there = [gone, sock(1), sock(2, state="tcp-only", why="opted-out"), sock(3, state="tcp-only", why="opted-out")]
    assert [tuple(each.values()) for each in counted(COUNTERS, there)] == [
        ("spliced", "", 5, 1),
        ("revoked", "", 0, 0),
        ("left", "half-closed", 3, 1),
        ("left", "unread-limit", 1, 0),
        ("tcp-only", "sent-first", 2, 0),
        ("tcp-only", "opted-out", 1, 2),
    ]


def test_the_line_in_status() -> None:
    tail = (
        "5 spliced, of them 4 went on by TCP (3 half-closed, 1 unread-limit), "
        "3 never spliced (2 sent-first, 1 opted-out), "
        "3.0 MiB redirected, 512 B of 384.0 MiB unread"
    )
    assert splice_line(splice()) == f"auto, clients and servers: {tail}"
    assert splice_line(splice(spliced=["clients"])) == f"auto, clients: {tail}"
    assert splice_line(splice(spliced=[])) == f"auto, nothing: {tail}"
    assert splice_line(splice(mode="off", spliced=[])) == f"off: {tail}"


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        ({"mode": "off", "spliced": []}, []),
        ({"decided": False, "spliced": []}, ["splice: nothing is spliced until the self-test is over"]),
        ({"spliced": ["clients"], "why": ["CVE-1: bad"]}, ["splice: servers not spliced: CVE-1: bad"]),
        (
            {"spliced": [], "why": ["self-test: order is bad", "no BTF\x1b"]},
            [
                "splice: clients and servers not spliced: self-test: order is bad",
                "splice: clients and servers not spliced: no BTF\\x1b",
            ],
        ),
        ({"mode": "force", "warnings": ["CVE-1: bad"]}, ["splice: spliced (force) in spite of: CVE-1: bad"]),
    ],
)
def test_what_is_told_beside(changes: dict[str, Any], notes: list[str]) -> None:
    assert splice_notes(splice(**changes)) == notes


def test_the_gate_in_status() -> None:
    assert gate_line(splice(gate=[])) == "nothing is known that speaks against splicing on this kernel"
    one = splice(gate=["told"])
    assert gate_line(one) == "known of this kernel: 1 without effect; -o json tells them"
    two = splice(gate=["bad", "told"], why=["bad"])
    assert gate_line(two) == "known of this kernel: 1 against splicing (below), 1 without effect; -o json tells them"
    assert gate_line(splice(gate=["bad"], warnings=["bad"])).endswith("1 against splicing (below); -o json tells them")


def test_what_a_pod_wants() -> None:
    assert splice_wish({"splice": True, "unsplicedPorts": []}) == "yes"
    assert splice_wish({"splice": True, "unsplicedPorts": [9000, 9001]}) == "not 9000, 9001"
    assert splice_wish({"splice": False, "unsplicedPorts": [9000]}) == "no"


def test_the_self_test_in_status() -> None:
    assert self_test_line(splice()) == "not run"
    assert self_test_line(splice(decided=False)) == "runs"
    report = {
        "error": "",
        "seconds": 4.21,
        "kernel": "6.18.44",
        "checks": [{"result": "ok"}, {"result": "known"}, {"result": "ok"}],
    }
    assert self_test_line(splice(selfTest=report)) == "2 ok, 1 known in 4.2 s (Linux 6.18.44)"
    assert self_test_line(splice(selfTest=report | {"error": "killed by signal 9"})) == "failed: killed by signal 9"
