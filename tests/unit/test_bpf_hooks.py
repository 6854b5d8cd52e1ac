"""The order of programs at a hook: what is wrong with it, how long it is mended, and how it is told."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from spliceway.agent.cli.summary import _hooks
from spliceway.agent.nodecheck import hooks as nodehooks
from spliceway.agent.nodecheck.hooks import Other
from spliceway.agent.nodecheck.model import Status
from spliceway.bpf.attach import is_ours
from spliceway.bpf.filters import Filter, messages, parse
from spliceway.bpf.hookorder import CLSACT, PEACE, ROUNDS, TCX, Contest, Place, Seen, State, judge, listed

OURS, THEIRS = Seen(TCX, "to_pod", 7, ours=True), Seen(TCX, "cil_to_container", 8)
OUR_FILTER, THEIR_FILTER = Seen(CLSACT, "to_pod", 7, ours=True), Seen(CLSACT, "flower", 0)


@pytest.mark.parametrize(
    ("found", "kind", "state", "front", "can_move"),
    [
        ([OURS], TCX, State.GOOD, (), False),
        ([OURS, THEIRS], TCX, State.GOOD, (), False),
        ([], TCX, State.MISSING, (), False),
        ([THEIRS], TCX, State.MISSING, (), False),
        ([OUR_FILTER], TCX, State.MISSING, (), False),
        ([THEIRS, OURS], TCX, State.BEHIND, (THEIRS,), True),
        ([OUR_FILTER, THEIR_FILTER], CLSACT, State.GOOD, (), False),
        ([OURS, OUR_FILTER], CLSACT, State.GOOD, (), False),
        ([THEIR_FILTER, OUR_FILTER], CLSACT, State.BEHIND, (THEIR_FILTER,), True),
        ([THEIRS, OUR_FILTER], CLSACT, State.BEHIND, (THEIRS,), False),
        ([THEIRS, THEIR_FILTER, OUR_FILTER], CLSACT, State.BEHIND, (THEIRS, THEIR_FILTER), True),
        ([THEIRS], CLSACT, State.MISSING, (), False),
    ],
)
def test_what_is_found_at_a_hook(
    found: list[Seen], kind: str, state: State, front: tuple[Seen, ...], can_move: bool
) -> None:
    assert judge(found, kind) == (state, front, can_move)


def test_sides_and_words() -> None:
    sides = {name: Place(1, name).side for name in ("from_pod", "from_network", "to_pod", "to_network")}
    assert sides == {"from_pod": "ingress", "from_network": "ingress", "to_pod": "egress", "to_network": "egress"}
    assert str(THEIRS) == "cil_to_container (tcx, program id 8)"
    assert str(THEIR_FILTER) == "flower (clsact)"
    assert str(Seen(TCX, "", 9)) == "a program without a name (tcx, program id 9)"
    assert listed([THEIRS] * 5).endswith(", cil_to_container (tcx, program id 8) and 2 more")


def test_a_contest_ends_and_is_forgotten_in_peace() -> None:
    contest, here, there = Contest(), Place(1, "to_pod"), Place(2, "to_pod")
    for turn in range(ROUNDS):
        assert contest.may_move(here)
        contest.moved(here, float(turn))
        contest.good(here, turn + 1.0)
    assert not contest.may_move(here)
    assert contest.may_move(there)
    contest.good(here, ROUNDS - 1 + PEACE - 1)
    assert not contest.may_move(here)
    contest.good(here, ROUNDS - 1 + PEACE)
    assert contest.may_move(here)
    contest.moved(there, 0.0)
    contest.keep([here])
    assert contest.may_move(there)


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def new_filter(handle: int, priority: int, kind: bytes, options: bytes, chain: int = 0) -> bytes:
    body = struct.pack("=BxxxiIII", 0, 5, handle, 0xFFFFFFF2, priority << 16 | 0x0300)
    return body + attribute(1, kind + b"\0") + attribute(11, struct.pack("=I", chain)) + attribute(2 | 0x8000, options)


def test_filters_are_read_in_the_kernels_order() -> None:
    options = attribute(7, b"from_pod\0") + attribute(11, struct.pack("=I", 42))
    assert parse(new_filter(0x5317, 1, b"bpf", options)) == [Filter("bpf", 1, 0x5317, "from_pod", 42)]
    assert parse(new_filter(0x80000800, 9, b"u32", attribute(7, b"no name"), chain=3)) == [
        Filter("u32", 9, 0x80000800, chain=3)
    ]
    assert parse(new_filter(0, 1, b"bpf", b"")) == []
    header = struct.Struct("=IHHII")
    two = header.pack(19, 44, 0, 1, 0) + b"abc\0" + header.pack(16, 3, 0, 1, 0)
    assert list(messages(two)) == [(44, b"abc"), (3, b"")]
    assert list(messages(b"\0" * 32)) == []


def test_which_filters_are_ours() -> None:
    assert is_ours(Filter("bpf", 1, 0x5317, "to_pod"))
    assert is_ours(Filter("bpf", 1, 0x5318, "from_network", chain=0))
    for other in (
        Filter("bpf", 2, 0x5317, "to_pod"),
        Filter("bpf", 1, 1, "to_pod"),
        Filter("bpf", 1, 0x5317, "cil_to_container"),
    ):
        assert not is_ours(other)


def told(**fields: Any) -> str:
    none = {"kind": "tcx", "watched": 5, "missing": 0, "behind": 0, "putBack": 0, "moved": 0, "last": "", "lastTime": 0}
    return _hooks(none | fields)


def test_status_says_how_it_is_and_what_was_mended() -> None:
    assert told() == "tcx: 5 watched"
    assert told(missing=1, behind=2) == "tcx: 5 watched, 1 without our program, 2 where others come before ours"
    text = told(putBack=3, last="to_pod at egress of lxc1 \x1b[31mwas taken off", lastTime=1.0)
    assert "; 3 put back, 0 moved to the front; last, " in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("other", "by_tcx", "status"),
    [
        (Other(TCX, "ingress", "bpf", "cil_from_container"), True, Status.INFO),
        (Other(TCX, "ingress", "bpf", "cil_from_container"), False, Status.WARN),
        (Other(CLSACT, "egress", "bpf", "handle_egress", 1), True, Status.INFO),
        (Other(CLSACT, "egress", "bpf", "handle_egress", 1), False, Status.INFO),
        (Other(CLSACT, "egress", "u32", "", 1), True, Status.INFO),
        (Other(CLSACT, "egress", "u32", "", 1), False, Status.FAIL),
        (Other(CLSACT, "egress", "u32", "", 49152), False, Status.INFO),
    ],
)
def test_preflight_names_others(other: Other, by_tcx: bool, status: Status) -> None:
    (check,) = nodehooks.judge({other: ["lxc1", "lxc2", "lxc3", "lxc4", "lxc5"]}, by_tcx=by_tcx, has_tcx=True)
    assert (check.name, check.status) == ("tc-programs", status)
    assert str(other) in check.found
    assert check.found.endswith("lxc1, lxc2, lxc3, lxc4 and 1 more")
    assert check.to_do


_WATCHER = "tc_ingress_flow_"


@pytest.mark.parametrize(
    ("other", "by_tcx", "status", "owner", "to_do"),
    [
        (Other(TCX, "ingress", "bpf", "some_prog", pods=True), True, Status.INFO, "", "ask its owner"),
        (Other(TCX, "ingress", "bpf", "some_prog", pods=True), True, Status.INFO, "", "what goes to the proxy"),
        (Other(CLSACT, "egress", "bpf", "some_prog", 1, pods=True), False, Status.INFO, "", "gets unjudged"),
        (Other(TCX, "egress", "bpf", "cil_to_containe", pods=True), True, Status.WARN, "Cilium", "switch it off"),
        (Other(CLSACT, "ingress", "bpf", "calico_tc_main", 9, pods=True), True, Status.WARN, "Calico", "switch it off"),
        (Other(CLSACT, "ingress", "bpf", _WATCHER, 1, pods=True), True, Status.INFO, "NetObserv", "only looks"),
        (Other(CLSACT, "ingress", "u32", "", 1, pods=True), True, Status.INFO, "", "tc filter show"),
        # Where ours can't be in front, that comes first.
        (Other(TCX, "ingress", "bpf", _WATCHER, pods=True), False, Status.WARN, "NetObserv", "set datapath.tcx"),
        (Other(CLSACT, "ingress", "u32", "", 1, pods=True), False, Status.FAIL, "", "another priority"),
    ],
)
def test_preflight_says_what_others_may_do_behind_ours_at_pods_devices(
    other: Other, by_tcx: bool, status: Status, owner: str, to_do: str
) -> None:
    (check,) = nodehooks.judge({other: ["lxc1", "lxc2"]}, by_tcx=by_tcx, has_tcx=True)
    assert (check.name, check.status) == ("tc-programs", status)
    assert check.found.startswith(f"{other} ({owner}" if owner else f"{other}, pods' devices")
    assert check.found.endswith(", pods' devices: lxc1, lxc2")
    assert to_do in check.to_do


def test_preflight_without_others_and_with_many() -> None:
    (check,) = nodehooks.judge({}, by_tcx=True, has_tcx=True)
    assert (check.status, "by TCX" in check.found) == (Status.OK, True)
    (check,) = nodehooks.judge({}, by_tcx=False, has_tcx=False)
    assert "Linux 6.6 has TCX" in check.found
    many = {Other(TCX, "ingress", "bpf", f"program{number}"): ["lxc1"] for number in range(12)}
    checks = list(nodehooks.judge(many, by_tcx=True, has_tcx=True))
    assert len(checks) == 9
    assert checks[-1].found == "4 more"
