"""What is spliced: the mode and all that speaks against it, as one decision that may change while the agent runs.

Policy never waits for it: until the self-test is over nothing is spliced, and everything goes by TCP. A decision
reaches new connections only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from spliceway.agent.configsections import SpliceMode
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.spliceproof import MODES, Decision, Proof, SpliceStatus, decide
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import SpliceClasses, SpliceLimits

#: How often readers are looked at that have fallen silent with something unread, in seconds; and, in lengths of such a
#: look, the least pause after it.
MEASURE_SECONDS = 2.0
IDLE_SHARE = 20.0

log = structlog.get_logger(__name__)


class SpliceKernel(Protocol):
    """What splicing needs of the datapath."""

    @property
    def measured(self) -> str:
        """Empty, or why the kernel does not tell what a reader has not read."""

    async def set_splice(self, classes: SpliceClasses) -> None:
        """Which legs of new connections are spliced."""

    async def measure(self) -> int:
        """Look at readers that were behind; spliced bytes of the node that wait unread."""


class Splicing:
    """See the module. `run` is its life; `set_mode` and `status` may be called meanwhile."""

    def __init__(
        self,
        mode: SpliceMode,
        kernel: SpliceKernel,
        *,
        gate: Proof,
        limits: SpliceLimits,
        self_test: Callable[[], Awaitable[SelfTestReport]],
    ) -> None:
        """`gate`: what is known of this kernel's version; `self_test` runs it, or reads what it said before."""
        self._mode: SpliceMode = mode
        self._configured = mode
        self._kernel = kernel
        self._gate = gate
        self._limits = limits
        self._run_self_test = self_test
        why = kernel.measured
        self._measured = Proof("measurement", not why, not why, (f"readers can't be measured: {why}",) if why else ())
        self._tested: Proof | None = None
        self._report: SelfTestReport | None = None
        self._decision: Decision | None = None
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()
        self._unread = 0

    def __repr__(self) -> str:
        return f"Splicing({self._mode}, {self._decision!r})"

    @property
    def mode(self) -> SpliceMode:
        """As it is now."""
        return self._mode

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

    async def run(self) -> None:
        """Decide at once as far as that can be, then with the self-test; keep what is unread up to date."""
        async with self._lock:
            await self._decide()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._test(), name="self-test")
            group.create_task(self._look(), name="unread")

    def status(self) -> SpliceStatus:
        """Where things are now."""
        decision = self._decision or decide(self._mode, self._proofs())
        return SpliceStatus(
            mode=self._mode,
            configured=self._configured,
            decided=self._decision is not None and not decision.pending,
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
            await self._kernel.set_splice(decision.classes)
            self._decision = decision
            self._tell(decision)
        if decision.asks_for_test:
            self._wanted.set()

    def _tell(self, decision: Decision) -> None:
        if decision.pending:
            log.info("nothing is spliced until the self-test is over", mode=self._mode)
            return
        say = log.warning if decision.why or decision.warnings else log.info
        what = ", ".join(decision.spliced) or "nothing"
        say("splicing decided", mode=self._mode, spliced=what, why=decision.why, in_spite_of=decision.warnings)

    async def _test(self) -> None:
        """Run the self-test once, as soon as a mode asks for it."""
        await self._wanted.wait()
        try:
            self._report = report = await self._run_self_test()
        except (*OWN_ERRORS, OSError) as error:
            self._tested = _untested(str(error))
        except Exception as error:  # a bug of the self-test's must not end the agent
            log.exception("self-test failed")
            self._tested = _untested(f"internal error: {error!r}")
        else:
            told = (f"self-test: {report.error or report.why}",) if report.error or report.why else ()
            self._tested = Proof("self-test", report.clients, report.servers, told)
        async with self._lock:
            await self._decide()

    async def _look(self) -> None:
        while True:
            begin = time.monotonic()
            with contextlib.suppress(*OWN_ERRORS):  # of the kernel: the next look may do better
                self._unread = await self._kernel.measure()
            took = time.monotonic() - begin
            await asyncio.sleep(max(MEASURE_SECONDS, IDLE_SHARE * took))


def _untested(why: str) -> Proof:
    return Proof("self-test", False, False, (f"the self-test could not be run: {why}",))
