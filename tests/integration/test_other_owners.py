"""A second sockmap on our sockets (row 10 of docs/splicing.md): found, counted, and the connection goes on by TCP.

Whoever comes first has the socket. Where that is the other one, the connection stays on TCP; where it is us, the kernel
refuses the other one. Either way every byte arrives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from spliceway.agent.nodecheck import owners
from spliceway.agent.nodecheck.model import Check, Status, Target
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Leg, SpliceState
from spliceway.bpf.views import other_owner_count
from support.node import pod_manifest
from support.otherowner import OtherOwner, other_owner
from support.splicebed import Pair, SpliceBed

pytestmark = pytest.mark.kernel

SIZES = (1, 700, 16 << 10, 64 << 10)


Bed = tuple[SpliceBed, dict[str, OtherOwner]]
WHOSE = ("pods", "proxy")


@pytest.fixture(scope="module")
def crowded() -> Iterator[Bed]:
    """Our datapath, and at its cgroups one other owner that came before it and one that came after."""
    manifests = [pod_manifest("client", {"role": "client"}), pod_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed, contextlib.ExitStack() as stack:
        cgroups = [getattr(testbed.node.info.cgroups, whose) for whose in WHOSE]
        before = stack.enter_context(other_owner(*cgroups))
        bed = stack.enter_context(SpliceBed(testbed))
        after = stack.enter_context(other_owner(*cgroups))
        yield bed, {"theirs first": before, "ours first": after}


@pytest.fixture(params=WHOSE)
def whose(request: pytest.FixtureRequest) -> str:
    """The cgroup whose sockets the other owner takes."""
    chosen: str = request.param
    return chosen


def echo(pair: Pair) -> None:
    """Messages of several sizes in both directions, in turns; every byte must arrive in order."""
    for number, size in enumerate(SIZES):
        for to_pod in (False, True):
            writer, reader = pair.ends(to_pod=to_pod)
            sent = bytes([number + 1 + 100 * to_pod]) * size
            writer.sendall(sent)
            got = b""
            while len(got) < size:
                part = reader.recv(size - len(got))
                assert part, "the connection ended"
                got += part
            assert got == sent


def counted(bed: SpliceBed) -> int:
    return bed.node.datapath.splice_counters().by_why["other-owner"]


def checks_of(bed: SpliceBed) -> list[Check]:
    target = Target(settings=bed.node.settings, configured=True)
    return bed.node.loop.call(lambda: list(owners.owners(target)))


@pytest.mark.row(10)
def test_theirs_first_stays_on_tcp_and_is_counted(crowded: Bed, whose: str, leg: Leg, version: int) -> None:
    bed, others = crowded
    other, before = others["theirs first"], counted(bed)
    with other.on(WHOSE.index(whose)), bed.connect(leg, version) as pair:
        assert pair.wait_state(SpliceState.TCP_ONLY).why == "other-owner"
        echo(pair)
        assert (pair.known.to_proxy_bytes, pair.known.from_proxy_bytes) == (0, 0)
        counts = other.counts()
    assert (counts["taken"], counts["refused"]) == (1, 0)
    assert counts["messages"] >= len(SIZES)
    assert counted(bed) == before + 1
    assert other_owner_count(bed.node.settings.bpffs) == before + 1


@pytest.mark.row(10)
def test_ours_first_is_spliced_and_theirs_is_refused(crowded: Bed, whose: str, leg: Leg, version: int) -> None:
    bed, others = crowded
    other, before = others["ours first"], counted(bed)
    with other.on(WHOSE.index(whose)), bed.spliced(leg, version) as pair:
        echo(pair)
        assert pair.known.to_proxy_bytes == pair.known.from_proxy_bytes == sum(SIZES)
        counts = other.counts()
    assert counts == {"taken": 0, "refused": 1, "messages": 0}
    assert counted(bed) == before


def test_after_it_has_gone_connections_are_spliced_again(crowded: Bed, whose: str) -> None:
    bed, others = crowded
    with others["theirs first"].on(WHOSE.index(whose)), bed.connect(Leg.DOWNSTREAM) as pair:
        pair.wait_state(SpliceState.TCP_ONLY)
    with bed.spliced(Leg.DOWNSTREAM) as pair:
        echo(pair)


def test_preflight_names_the_other_owner(crowded: Bed, whose: str) -> None:
    bed, others = crowded
    with others["theirs first"].on(WHOSE.index(whose)), bed.connect(Leg.DOWNSTREAM) as pair:
        pair.wait_state(SpliceState.TCP_ONLY)
    checks = [check for check in checks_of(bed) if check.status is Status.WARN]
    programs = [check.found for check in checks if check.name == "cgroup-programs"]
    place = str(getattr(bed.testbed.node.info.cgroups, whose))
    assert [text for text in programs if "other_sockops" in text and place in text and "other_socks" in text]
    assert [check.found for check in checks if check.name == "other-owner"] == [
        f"{counted(bed)} connections stayed on TCP"
    ]
    maps = [check.found for check in checks if check.name == "sockmaps"]
    for other in others.values():
        held = f"(pid {other.pid})"
        assert [text for text in maps if "sockhash other_socks" in text and held in text], maps
        assert [text for text in maps if "sk_msg other_message" in text and held in text], maps
    assert all(check.to_do and "\n" not in check.to_do for check in checks)


def test_preflight_finds_no_conflict_with_ours_alone(crowded: Bed) -> None:
    bed, _ = crowded
    seen, holders = owners.read(bed.node.settings.bpffs)
    mine = {number: "here" for kind, number in seen.ours if kind == "prog"}
    assert len(mine) >= 3  # sockops of both cgroups, splice_message
    assert [check.status for check in owners.judge_cgroups(mine, seen, holders)] == [Status.OK]
    assert not [check for check in owners.judge_sockmaps(seen, holders) if "splice_message" in check.found]
