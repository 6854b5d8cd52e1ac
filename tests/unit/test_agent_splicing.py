"""What is spliced: the table of decisions, and that what runs follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from spliceway.agent.config import parse_config
from spliceway.agent.configsections import SpliceConfig, SpliceLimitsConfig, SpliceMode
from spliceway.agent.errors import AgentError
from spliceway.agent.evidence import gate_proof
from spliceway.agent.splicemetrics import LEFT, splice_metrics
from spliceway.agent.spliceproof import Decision, Proof, decide
from spliceway.agent.splicing import Splicing
from spliceway.bpf.abi import Why
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.gate import KernelRelease, judge
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import SpliceClasses, SpliceCounters
from support.agent import MemoryDatapath, MemoryEvidence, report, run, until

BASE = "cgroups: {pods: /cg/pods, proxy: /cg/proxy}\nsource: {directory: /d}\n"
LIMITS = SpliceLimitsConfig(connection_kib=64, endpoint_kib=128, node_kib=256)
OFF = SpliceClasses(clients=False, servers=False, wanted=False)
NONE = SpliceClasses(clients=False, servers=False)
BOTH = SpliceClasses()
CLIENTS = SpliceClasses(servers=False)

GOOD = Proof("gate", True, True, (), ("a note",))
NO_SERVERS = Proof("gate", True, False, ("CVE-1: bad",))
NOTHING = Proof("gate", False, False, ("CVE-2: worse",))
SEEN = Proof("measurement", True, True)
BLIND = Proof("measurement", False, False, ("readers can't be measured: no BTF",))
PASSED = Proof("self-test", True, True)
FAILED = Proof("self-test", False, False, ("self-test: order is bad",))
HALF = Proof("self-test", True, False, ("self-test: fin is bad for servers",))


@pytest.mark.parametrize(
    ("mode", "proofs", "classes", "why", "warnings", "pending", "asks"),
    [
        # Everything is well.
        ("auto", (GOOD, SEEN, PASSED), BOTH, (), (), False, False),
        ("force", (GOOD, SEEN, PASSED), BOTH, (), (), False, False),
        ("off", (GOOD, SEEN, PASSED), OFF, (), (), False, False),
        # The self-test still runs.
        ("auto", (GOOD, SEEN, None), NONE, (), (), True, True),
        ("auto", (NO_SERVERS, SEEN, None), NONE, NO_SERVERS.sentences, (), True, True),
        ("force", (GOOD, SEEN, None), BOTH, (), (), False, True),
        ("off", (GOOD, SEEN, None), OFF, (), (), False, False),
        # One of the three speaks against it.
        ("auto", (NO_SERVERS, SEEN, PASSED), CLIENTS, NO_SERVERS.sentences, (), False, False),
        ("auto", (NOTHING, SEEN, PASSED), NONE, NOTHING.sentences, (), False, False),
        ("auto", (GOOD, BLIND, PASSED), NONE, BLIND.sentences, (), False, False),
        ("auto", (GOOD, SEEN, HALF), CLIENTS, HALF.sentences, (), False, False),
        ("auto", (GOOD, SEEN, FAILED), NONE, FAILED.sentences, (), False, False),
        # What is ruled out is not tried.
        ("auto", (NOTHING, SEEN, None), NONE, NOTHING.sentences, (), False, False),
        ("auto", (GOOD, BLIND, None), NONE, BLIND.sentences, (), False, False),
        # All of them: not heeded, and told.
        (
            "force",
            (NO_SERVERS, BLIND, FAILED),
            BOTH,
            (),
            (*NO_SERVERS.sentences, *BLIND.sentences, *FAILED.sentences),
            False,
            False,
        ),
        ("off", (NOTHING, BLIND, FAILED), OFF, (), (), False, False),
    ],
)
def test_decisions(
    mode: SpliceMode,
    proofs: tuple[Proof | None, ...],
    classes: SpliceClasses,
    why: tuple[str, ...],
    warnings: tuple[str, ...],
    pending: bool,
    asks: bool,
) -> None:
    assert decide(mode, proofs) == Decision(classes, why, warnings, pending=pending, asks_for_test=asks)


def test_the_gate_as_proof() -> None:
    old = gate_proof(judge(KernelRelease.parse("6.1.0-40-amd64", "#1 SMP Debian 6.1.153-1")))
    assert not old.clients
    assert all("spliced" in sentence for sentence in old.sentences)
    assert any("FIONREAD" in note for note in gate_proof(judge(KernelRelease.parse("6.18.44"))).notes)
    servers = gate_proof(judge(KernelRelease.parse("6.18.0-rc1"), ()))
    assert "CVE-2025-68227" in " ".join(servers.sentences)
    declared = gate_proof(judge(KernelRelease.parse("6.18.0-rc1"), ("CVE-2025-68227",)))
    assert "CVE-2025-68227" not in " ".join(declared.sentences)
    assert any(note.startswith("CVE-2025-68227") and "declared" in note for note in declared.notes)


class Bench:
    """One Splicing with all that it looks at."""

    def __init__(self, mode: SpliceMode = "auto", *, kept: SelfTestReport | None = None, **known: Any) -> None:
        self.evidence = MemoryEvidence(kept, **known)
        self.answer = self.evidence.answer = asyncio.get_running_loop().create_future()
        self.splicing = Splicing(SpliceConfig(mode=mode, limits=LIMITS), self.evidence)
        self.kernel = MemoryDatapath([])
        settings = self.splicing.settings(parse_config(BASE, "").datapath_settings())
        self.kernel.splice = settings.splice
        self.splicing.use(self.kernel, settings)

    async def settled(self, classes: SpliceClasses) -> None:
        await until(lambda: self.kernel.splice == classes)


def with_bench(body: Callable[[Bench], Awaitable[None]], **options: Any) -> list[Any]:
    async def whole() -> list[Any]:
        bench = Bench(**options)
        with capture_logs() as logs:
            task = asyncio.create_task(bench.splicing.run())
            try:
                await body(bench)
            finally:
                task.cancel()
                await asyncio.wait({task})
        assert task.cancelled(), task.exception()
        return logs

    return run(whole)


def test_nothing_is_spliced_until_the_self_test_is_over() -> None:
    async def body(bench: Bench) -> None:
        await bench.settled(NONE)
        assert not bench.splicing.status().decided
        bench.answer.set_result(report())
        await bench.settled(BOTH)
        status = bench.splicing.status()
        assert (status.decided, status.spliced, status.why) == (True, ("clients", "servers"), ())
        assert status.gate == ("a note",)

    logs = with_bench(body, gate=GOOD)
    assert [each["event"] for each in logs] == ["nothing is spliced until the self-test is over", "splicing decided"]


def test_a_report_that_was_kept_leaves_no_gap() -> None:
    async def body(bench: Bench) -> None:
        assert (bench.kernel.splice, bench.splicing.status().decided) == (CLIENTS, True)
        bench.kernel.unread = 5
        await until(lambda: bench.splicing.status().unread)
        assert bench.evidence.runs == 0

    logs = with_bench(body, kept=report(servers=False, why="fin is bad"))
    assert [each["event"] for each in logs] == ["splicing decided"]


def test_a_failed_self_test_leaves_it_off_and_says_so_once() -> None:
    async def body(bench: Bench) -> None:
        bench.answer.set_result(report(clients=False, servers=False, why="order is bad for clients and servers"))
        await until(lambda: bench.splicing.status().decided)
        assert bench.kernel.splice == NONE
        assert bench.splicing.status().why == ("self-test: order is bad for clients and servers",)
        await bench.splicing.set_mode("auto")  # as it is: nothing to tell

    (told,) = [each for each in with_bench(body) if each["event"] == "splicing decided"]
    assert (told["log_level"], told["spliced"]) == ("warning", "nothing")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AgentError("no cgroup"), "the self-test could not be run: no cgroup"),
        (OSError(28, "No space left"), "the self-test could not be run: [Errno 28] No space left"),
        (KeyError("x"), "the self-test could not be run: internal error: KeyError('x')"),
    ],
)
def test_a_self_test_that_cannot_run_proves_nothing(error: Exception, why: str) -> None:
    async def body(bench: Bench) -> None:
        bench.answer.set_exception(error)
        await until(lambda: bench.splicing.status().decided)
        assert (bench.kernel.splice, bench.splicing.status().why) == (NONE, (why,))

    with_bench(body)


def test_one_that_did_not_end_is_told_with_its_error() -> None:
    async def body(bench: Bench) -> None:
        bench.answer.set_result(report(clients=False, servers=False, error="took longer than 30 s"))
        await until(lambda: bench.splicing.status().decided)
        assert bench.splicing.status().why == ("self-test: took longer than 30 s",)

    with_bench(body)


def test_modes_change_while_it_runs() -> None:
    async def body(bench: Bench) -> None:
        await bench.settled(OFF)
        assert bench.splicing.status().decided
        assert bench.evidence.runs == 0
        status = await bench.splicing.set_mode("force")
        assert (bench.kernel.splice, status.mode, status.configured, status.decided) == (BOTH, "force", "off", True)
        await until(lambda: bench.evidence.runs)
        status = await bench.splicing.set_mode("auto")
        assert (bench.kernel.splice, status.decided) == (NONE, False)
        bench.answer.set_result(report(servers=False, why="fin is bad"))
        await bench.settled(CLIENTS)
        status = await bench.splicing.set_mode("force")
        assert (bench.kernel.splice, status.warnings) == (BOTH, ("self-test: fin is bad",))
        await bench.splicing.set_mode("off")
        assert (bench.kernel.splice, bench.evidence.runs) == (OFF, 1)
        with pytest.raises(ValueError, match=r"'fast' is not a splice mode \(auto, force, off\)"):
            await bench.splicing.set_mode("fast")
        bench.kernel.fail["set_splice"] = "the kernel is full"
        with pytest.raises(DatapathError):
            await bench.splicing.set_mode("auto")
        assert bench.splicing.mode == "off"

    with_bench(body, mode="off")


def test_what_the_gate_rules_out_is_not_tried_in_auto() -> None:
    async def body(bench: Bench) -> None:
        await until(lambda: bench.splicing.status().decided)
        assert (bench.kernel.splice, bench.evidence.runs) == (NONE, 0)

    with_bench(body, gate=NOTHING)


def test_unmeasured_readers_leave_it_off() -> None:
    async def body(bench: Bench) -> None:
        await until(lambda: bench.splicing.status().decided)
        assert (bench.kernel.splice, bench.splicing.status().why) == (NONE, ("readers can't be measured: no BTF",))
        assert (await bench.splicing.set_mode("force")).warnings == ("readers can't be measured: no BTF",)

    with_bench(body, unmeasured="no BTF")


def test_what_is_unread_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spliceway.agent.splicing.MEASURE_SECONDS", 0.001)
    monkeypatch.setattr("spliceway.agent.splicing.PRESSED_SECONDS", 0.001)

    async def body(bench: Bench) -> None:
        bench.kernel.unread = 77
        await until(lambda: bench.splicing.status().unread == 77)
        bench.kernel.fail["measure"] = "gone"  # the next look may do better
        await until(lambda: bench.kernel.fails)
        bench.kernel.fail.clear()
        bench.kernel.unread = 78
        await until(lambda: bench.splicing.status().unread == 78)

    with_bench(body)


def test_where_much_is_counted_it_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spliceway.agent.splicing.MEASURE_SECONDS", 3600.0)
    monkeypatch.setattr("spliceway.agent.splicing.PRESSED_SECONDS", 0.001)

    async def body(bench: Bench) -> None:
        bench.kernel.fail["pressed"] = "gone"  # the next question may be answered
        await until(lambda: bench.kernel.fails)
        bench.kernel.fail.clear()
        bench.kernel.unread = 77
        bench.kernel.is_pressed = True
        await until(lambda: bench.splicing.status().unread == 77)

    with_bench(body)


def test_metrics() -> None:
    async def status() -> Any:
        bench = Bench(gate=NO_SERVERS)
        task = asyncio.create_task(bench.splicing.run())
        bench.answer.set_result(report(servers=False, why="fin is bad"))
        await until(lambda: bench.splicing.status().decided)
        task.cancel()
        await asyncio.wait({task})
        return bench.splicing.status()

    by_why = {"sent-first": 4, "small-writes": 2}
    counters = SpliceCounters(10, 2, 30, 3, 5, 4, 1, left=2, leave_waits=7, by_why=by_why)
    families = splice_metrics(counters, run(status))
    found = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    assert found["spliceway_splice_enabled", "clients"] == 1
    assert found["spliceway_splice_enabled", "servers"] == 0
    assert [found["spliceway_splice_mode", mode] for mode in ("auto", "force", "off")] == [1, 0, 0]
    assert found["spliceway_splice_self_test_complete",] == 1
    assert [found["spliceway_splice_self_test_checks", each] for each in ("ok", "bad")] == [1, 1]
    assert found["spliceway_splice_connections_total", "spliced", ""] == 5
    assert found["spliceway_splice_connections_total", "revoked", ""] == 1
    assert found["spliceway_splice_connections_total", "tcp-only", "sent-first"] == 4
    assert found["spliceway_splice_left_total", "small-writes"] == 2
    assert found["spliceway_splice_bytes_total", "redirected"] == 10
    assert found["spliceway_splice_messages_total", "tcp"] == 3
    assert found["spliceway_splice_leave_waits_total",] == 7
    limits = [found["spliceway_splice_unread_limit_bytes", each] for each in ("connection", "endpoint", "node")]
    assert limits == [64 << 10, 128 << 10, 256 << 10]
    reasons = {key[2] for key in found if key[0] == "spliceway_splice_connections_total"} | {why.label for why in LEFT}
    assert reasons == {why.label for why in Why}
