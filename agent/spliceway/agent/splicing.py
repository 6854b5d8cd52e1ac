"""What is spliced: the mode and all that speaks against it, as one decision that may change while the agent runs.

Policy never waits for it: until the self-test is over nothing is spliced, and everything goes by TCP. A decision
reaches new connections only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from spliceway.agent.configsections import SpliceConfig, SpliceMode
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.splicelimits import node_limits
from spliceway.agent.spliceproof import MODES, Proof, SpliceStatus, decide
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import DatapathSettings, SpliceClasses

#: How often readers are looked at that have fallen silent with something unread, in seconds; and, in lengths of such a
#: look, the least pause after it.
MEASURE_SECONDS = 2.0
#: And where many connections are: how often it is asked whether it is urgent.
PRESSED_SECONDS = 0.1
IDLE_SHARE = 20.0

log = structlog.get_logger(__name__)


class SpliceKernel(Protocol):
    """What splicing needs of the datapath."""

    async def set_splice(self, classes: SpliceClasses) -> None:
        """Which legs of new connections are spliced."""

    async def measure(self) -> int:
        """Look at readers that were behind; spliced bytes of the node that wait unread."""

    def pressed(self) -> bool:
        """Whether much of what may wait unread is counted: what was read since the last look is, too."""


class Evidence(Protocol):
    """What there is to know of this kernel (`evidence.KernelEvidence`)."""

    def gate(self, fixed: Collection[str]) -> Proof:
        """What is known of its version."""

    def unmeasured(self) -> str:
        """Why it does not tell what a reader has not read; empty when it does."""

    def kept(self, directory: Path) -> SelfTestReport | None:
        """What the self-test said of it, if that was kept."""

    async def self_test(self, settings: DatapathSettings, directory: Path) -> SelfTestReport:
        """Run the self-test, and keep what it says."""


class Splicing:
    """See the module. `run` is its life; `set_mode` and `status` may be called meanwhile."""

    def __init__(self, config: SpliceConfig, evidence: Evidence) -> None:
        """Decide as far as that can be at once: all of it, if the self-test's report was kept."""
        self._mode: SpliceMode = config.mode
        self._config = config
        self._evidence = evidence
        self._limits = node_limits(config.limits)
        self._gate = evidence.gate(config.kernel_fixes)
        why = evidence.unmeasured()
        self._measured = Proof("measurement", not why, not why, (f"readers can't be measured: {why}",) if why else ())
        self._report = evidence.kept(config.self_test_dir)
        self._tested = _tested(self._report) if self._report else None
        self._decision = decide(self._mode, self._proofs())
        self._kernel: SpliceKernel | None = None
        self._settings: DatapathSettings | None = None
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()
        self._measuring = asyncio.Lock()
        self._unread = 0

    def __repr__(self) -> str:
        return f"Splicing({self._mode}, {self._decision!r})"

    @property
    def mode(self) -> SpliceMode:
        """As it is now."""
        return self._mode

    def settings(self, base: DatapathSettings) -> DatapathSettings:
        """What the datapath is opened with: so that what is decided already has no gap."""
        return msgspec.structs.replace(base, splice=self._decision.classes, splice_limits=self._limits)

    async def set_mode(self, mode: str) -> SpliceStatus:
        """Change the mode until the agent restarts. Raises ValueError for none that there is, or DatapathError."""
        if mode not in MODES:
            raise ValueError(f"{mode!r} is not a splice mode ({', '.join(MODES)})")
        async with self._lock:
            before, self._mode = self._mode, mode
            try:
                await self._decide()
            except BaseException:
                self._mode = before
                raise
        log.info("splice mode changed", mode=mode)
        return self.status()

    def use(self, kernel: SpliceKernel, settings: DatapathSettings) -> None:
        """The datapath, which was opened with these settings, of `settings`."""
        self._kernel, self._settings = kernel, settings

    async def run(self) -> None:
        """Decide anew when the self-test is over; keep what is unread up to date. After `use`."""
        self._tell()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._test(), name="self-test")
            group.create_task(self._look(), name="unread")

    def status(self) -> SpliceStatus:
        """Where things are now."""
        decision = self._decision
        return SpliceStatus(
            mode=self._mode,
            configured=self._config.mode,
            decided=not decision.pending,
            spliced=decision.spliced,
            why=decision.why,
            warnings=decision.warnings,
            gate=(*self._gate.sentences, *self._gate.notes),
            measured=self._measured.sentences,
            self_test=self._report,
            limits=self._limits,
            unread=self._unread,
        )

    def _proofs(self) -> tuple[Proof, Proof, Proof | None]:
        return self._gate, self._measured, self._tested

    async def _decide(self) -> None:
        """Bring into force what the mode and the proofs say. Under the lock."""
        decision = decide(self._mode, self._proofs())
        if decision != self._decision:
            assert self._kernel is not None  # `use` came before
            await self._kernel.set_splice(decision.classes)
            self._decision = decision
            self._tell()

    def _tell(self) -> None:
        """Log what was decided, and begin the self-test if that wants it."""
        decision = self._decision
        if decision.asks_for_test:
            self._wanted.set()
        if decision.pending:
            log.info("nothing is spliced until the self-test is over", mode=self._mode)
            return
        say = log.warning if decision.why or decision.warnings else log.info
        what = ", ".join(decision.spliced) or "nothing"
        say("splicing decided", mode=self._mode, spliced=what, why=decision.why, in_spite_of=decision.warnings)

    async def _test(self) -> None:
        """Run the self-test once, as soon as a mode asks for it."""
        await self._wanted.wait()
        assert self._settings is not None
        try:
            self._report = report = await self._evidence.self_test(self._settings, self._config.self_test_dir)
        except (*OWN_ERRORS, OSError) as error:
            self._tested = _untested(str(error))
        except Exception as error:  # a bug of the self-test's must not end the agent
            log.exception("self-test failed")
            self._tested = _untested(f"internal error: {error!r}")
        else:
            self._tested = _tested(report)
        async with self._lock:
            await self._decide()

    async def measure(self) -> None:
        """Look at readers that have fallen silent with something unread. Raises DatapathError."""
        assert self._kernel is not None  # `use` came before
        async with self._measuring:
            self._unread = await self._kernel.measure()

    async def _look(self) -> None:
        while True:
            begin = time.monotonic()
            with contextlib.suppress(*OWN_ERRORS):  # of the kernel: the next look may do better
                await self.measure()
            took = time.monotonic() - begin
            again = time.monotonic() + max(MEASURE_SECONDS, IDLE_SHARE * took)
            while time.monotonic() < again:
                await asyncio.sleep(max(PRESSED_SECONDS, took))
                if self._is_pressed():
                    break

    def _is_pressed(self) -> bool:
        assert self._kernel is not None  # `use` came before
        with contextlib.suppress(*OWN_ERRORS):
            return self._kernel.pressed()
        return False


def _tested(report: SelfTestReport) -> Proof:
    told = (f"self-test: {report.error or report.why}",) if report.error or report.why else ()
    return Proof("self-test", report.clients, report.servers, told)


def _untested(why: str) -> Proof:
    return Proof("self-test", False, False, (f"the self-test could not be run: {why}",))
