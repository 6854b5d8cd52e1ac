"""What the agents tell the API server, as the composition root sees it. Nothing of it can fail for others."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from spliceway.agent.authorization.side import AuthorizationSide
from spliceway.agent.cni.side import CniSide
from spliceway.agent.config import Config
from spliceway.agent.errors import SourceError
from spliceway.agent.inventory import Inventory
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.figures import Figures
from spliceway.agent.policystatus.ledger import Ledger
from spliceway.agent.policystatus.local import Force, LocalReport, Policies
from spliceway.agent.policystatus.pacing import Bucket, Pacing
from spliceway.agent.policystatus.report import Enforcement, Report
from spliceway.agent.policystatus.reporter import Reporter
from spliceway.agent.policystatus.taint import NotReadyTaint
from spliceway.agent.policystatus.told import WritingStatus
from spliceway.agent.policystatus.writer import Writer
from spliceway.agent.provenance import PolicyState
from spliceway.agent.sources.events import Batch
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.bpf.types import LocalEndpoint

#: Seconds between two looks at what is in force: the shortest, and the longest, should nobody say that it changed.
_SHORTEST, _LONGEST = 0.25, 5.0
#: Seconds after which what could not be begun, or has failed by a bug, is begun again.
_AGAIN = 30.0
#: Failing for so many seconds, the connection is made anew: certificates may have been replaced.
_RENEW = 60.0

log = structlog.get_logger(__name__)


class Attached(Protocol):
    """What is asked of the datapath."""

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        """This endpoint as the kernel has it."""


class Switch(Protocol):
    """What is asked of the kill switch."""

    @property
    def on(self) -> bool:
        """Whether nothing is enforced."""


class PolicyStatusSide:
    """Owns it all. Off, it does nothing."""

    def __init__(
        self, config: Config, inventory: Inventory, *, pacing: Pacing | None = None, timing: Timing | None = None
    ) -> None:
        """`pacing`, `timing`: other times than a cluster's, for tests."""
        self._config = config
        self._inventory = inventory
        self._pacing = pacing or Pacing()
        self._timing = timing or Timing()
        self._ledger = Ledger()
        self._authorization = AuthorizationSide(config, inventory, self._ledger, self._pacing, self._timing)
        self._figures = Figures()
        self._local: LocalReport | None = None
        self._force: Force | None = None
        self._cni: CniSide | None = None
        self._current: Report | None = None
        self._reporter: Reporter | None = None
        self._election: Election | None = None
        self._taint: NotReadyTaint | None = None
        self._writer: Writer | None = None
        self._changed = asyncio.Event()
        self._problem = ""

    def __repr__(self) -> str:
        return f"PolicyStatusSide(writes={self._config.status.write}, {self._election!r}, {self._reporter!r})"

    @property
    def _is_on(self) -> bool:
        return self._config.status.write or bool(self._config.node.not_ready_taint)

    def use(
        self,
        force: Force,
        policies: Policies,
        cni: CniSide,
        datapath: Attached,
        kill_switch: Switch,
        not_applied: Callable[[], Sequence[PolicyState]],
    ) -> None:
        """The parts of the agent that know; see `LocalReport`."""
        mode = self._config.enforcement

        def enforcement() -> Enforcement:
            return "off" if kill_switch.on else mode

        self._force, self._cni = force, cni
        self._local = LocalReport(
            self._ledger,
            self._inventory,
            force,
            policies,
            cni,
            attached=datapath.attached,
            enforcement=enforcement,
            not_applied=not_applied,
        )

    def saw(self, batch: Batch) -> None:
        """The source says this, and the inventory has taken it in."""
        if self._is_on:
            self._ledger.saw(batch)
            self._authorization.saw(batch)

    def asked(self, number: int) -> None:
        """What was seen is in force when the intent of this number is."""
        if self._is_on:
            self._ledger.asked(number, self._document)
            self._authorization.asked(number)
            self._changed.set()

    def passed(self, first: Callable[[], None]) -> None:
        """A pass of reconciliation has ended; `first` is told before."""
        first()
        self._changed.set()

    def tasks(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What must run, by name."""
        return {"policy status": self._run()} if self._is_on else {}

    def status(self) -> WritingStatus:
        """Where things are now."""
        if not self._is_on:
            return WritingStatus()
        figures, reporter, election, taint = self._figures, self._reporter, self._election, self._taint
        leads = election is not None and election.leads
        parts = (reporter, election, taint, self._authorization)
        errors = (self._problem, *(one.error for one in parts if one is not None))
        return WritingStatus(
            enabled=self._config.status.write,
            reported=reporter.when if reporter else 0.0,
            reports=reporter.writes if reporter else 0,
            report_failures=reporter.failures if reporter else 0,
            writer=election.holder.rpartition("_")[0] if election else "",
            leads=leads,
            terms=election.terms if election else 0,
            policies=figures.policies if leads else 0,
            nodes=figures.nodes if leads else 0,
            statuses=figures.statuses,
            events=figures.events,
            dropped_events=figures.dropped,
            conflicts=figures.conflicts,
            failures=figures.failures,
            taint=self._config.node.not_ready_taint,
            taint_removed=taint.removed if taint else 0,
            problems=tuple(dict.fromkeys(text for text in (*errors, figures.error if leads else "") if text)),
            authorization=self._authorization.status(),
        )

    def warnings(self) -> tuple[str, ...]:
        """What should be known: none of it keeps policy from being enforced."""
        return tuple(f"policy status: {text}" for text in self.status().problems)

    async def _run(self) -> None:
        while True:
            try:
                await self._live()
            except SourceError as error:
                self._problem = str(error)
            except Exception as error:
                # A bug. It must not be one for the traffic of this node.
                log.exception("what is in force can't be told")
                self._problem = f"internal error: {error!r}"
            await asyncio.sleep(_AGAIN)

    async def _live(self) -> None:
        kubernetes = self._config.source.kubernetes
        assert kubernetes is not None  # `parse_config` has seen to it
        node, ledger, pacing = self._config.node_name, self._ledger, self._pacing
        connection = Connection(kubernetes.kubeconfig, kubernetes.context)
        self._problem = ""

        def uid() -> str:
            return ledger.nodes.get(node, "")

        def nodes() -> int:
            return len(ledger.nodes)

        tasks = [self._observe(), self._renew(connection)]
        if self._config.node.not_ready_taint:
            taint = self._config.node.not_ready_taint
            self._taint = NotReadyTaint(connection, node, taint, ready=self._is_ready, uid=uid)
            tasks.append(self._taint.run())
        if self._config.status.write:
            self._reporter = Reporter(
                connection,
                node,
                pacing,
                current=lambda: self._current,
                uid=uid,
                nodes=nodes,
                heard=lambda: ledger.heard,
            )
            status = self._config.status
            lease = (status.namespace, status.lease)
            identity = f"{node}_{secrets.token_hex(8)}"
            again = self._reporter.again
            self._election = election = Election(connection, lease, identity, pacing, nodes, on_back=again)
            rates = (
                Bucket(status.writes_per_second, 2 * status.writes_per_second),
                Bucket(pacing.events, pacing.burst),
            )
            tasks += [self._reporter.run(), election.run(partial(self._lead, connection, election, rates))]
        try:
            async with asyncio.TaskGroup() as group:
                for one in tasks:
                    group.create_task(one, name="policy status")
        except* SourceError as errors:
            raise errors.exceptions[0] from None
        finally:
            await connection.close()

    async def _lead(self, connection: Connection, election: Election, rates: tuple[Bucket, Bucket]) -> None:
        def whole() -> bool:
            return self._inventory.synced and self._force is not None and bool(self._force.reached)

        self._writer = writer = Writer(
            connection,
            self._ledger,
            election,
            self._config.node_name,
            kinds=self._config.policies.kinds,
            own=lambda: self._current,
            whole=whole,
            pacing=self._pacing,
            timing=self._timing,
            rates=rates,
            figures=self._figures,
            translated=self._authorization.condition,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.run(), name="status writer")
                applied = self._authorization.lead(connection, election, whole=whole, on_news=writer.again)
                group.create_task(applied, name="authorization writer")
        finally:
            self._writer = None

    async def _observe(self) -> None:
        """Keep the report up to date, for whoever reads it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST):
                    await self._changed.wait()
            self._changed.clear()
            current = self._local.make() if self._local is not None else None
            if current != self._current:
                self._current = current
                if self._reporter is not None:
                    self._reporter.wake()
            if self._writer is not None:
                self._writer.wake()
                self._authorization.looked(self._writer.in_audit)
            await asyncio.sleep(_SHORTEST)

    async def _renew(self, connection: Connection) -> None:
        bad_since: float | None = None
        while True:
            await asyncio.sleep(_RENEW / 4)
            failing = [one.error for one in (self._reporter, self._election, self._taint) if one is not None]
            now = time.monotonic()
            if not failing or not all(failing):
                bad_since = None
            elif bad_since is None:
                bad_since = now
            elif now - bad_since > _RENEW:
                bad_since = now
                try:
                    await connection.renew()
                except SourceError as error:
                    log.warning("the connection to the API server can't be made anew", error=str(error))

    def _is_ready(self) -> bool:
        """Whether pods may come: policy is in force, and the plugin, where there is one, is in the chain."""
        if self._force is None or self._cni is None or not self._force.reached:
            return False
        return not self._config.cni.enabled or bool(self._cni.status().chain.file)

    def _document(self, key: tuple[str, str]) -> dict[str, Any] | None:
        entry = self._inventory.entry(key)
        return entry.document() if entry is not None else None
