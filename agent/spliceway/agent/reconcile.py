"""One task that makes kernel and proxy what the latest cluster says, in the contract's order.

Numbers are persisted → endpoints are attached → the proxy gets new listeners and routes → those that are accepted and
listen become known to the kernel → rows flip → what is no longer steered to is removed, in reverse. Backends of
Services that have gone leave before the rows flip, new ones come after (`servicesync`). It is driven by
levels, not by events: each pass looks at what is wanted and what is there, does what can be done now, and is run again
when something new is known. So events coalesce, and an answer that comes late is no special case.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_network

import msgspec
import structlog

from spliceway.agent.control import Acceptance, DatapathControl, ListeningPorts, ProxyControl, TableMaker
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.inforce import Live, tell
from spliceway.agent.intent import Intent, ReconcileStatus
from spliceway.agent.manifests import Key
from spliceway.agent.pace import RETRY_SECONDS, Pace
from spliceway.agent.ports import PortAllocator
from spliceway.agent.readiness import Readiness
from spliceway.agent.serviceaddresses import ServiceAddresses
from spliceway.agent.servicesync import NoServices, ServiceSync
from spliceway.agent.staging import steered
from spliceway.agent.state import Held
from spliceway.agent.tablechain import TableChain
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import Object
from spliceway.policy.table import PolicyTable, RuleSet, TableDelta

#: How long a policy stays as it was while its listener is on its way. A healthy proxy answers in milliseconds.
PATIENCE_SECONDS = 2.0
#: Between ACK and listen(2) of the proxy's workers: first and longest pause between two looks.
LISTEN_POLL_SECONDS = (0.002, 0.1)
#: How long a rule set that goes stays at the proxy at most, for the ending of its connections.
_SWEEP_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Reconciler:
    """See the module. `submit`, `wake` and `proxy_gone` may be called at any time from the event loop."""

    def __init__(
        self,
        *,
        maker: TableMaker,
        save: Callable[[PortAllocator, Held], object],
        unsaved: Callable[[PortAllocator, Held], bool] = lambda _ports, _held: True,
        ports: PortAllocator,
        datapath: DatapathControl,
        proxy: ProxyControl,
        listening: ListeningPorts,
        taken_over: bool = False,
        observe: Callable[[float], None] = lambda _seconds: None,
        on_table: Callable[[PolicyTable], None] = lambda _table: None,
        services: ServiceSync | None = None,
        addresses: ServiceAddresses | None = None,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """Wire it up.

        `save` persists numbering, ports and held documents (it runs in a thread and may block for an fsync), `unsaved`
        says whether it has to;
        `taken_over`: the kernel already enforces what an earlier agent left; `observe` gets the seconds from a change
        to its rows being in force; `on_table` is told of each table that comes into force;
        `services`: None where others translate their addresses; `addresses`: those that Services are dialled by;
        `on_pass` is told when an intent is live, and in force, and when a pass has ended, however.
        """
        self._maker = maker
        self._save = save
        self._must_save = unsaved
        self._ports = ports
        self._datapath = datapath
        self._proxy = proxy
        self._listening = listening
        self._taken_over = taken_over
        self._observe = observe
        self._on_table = on_table
        self._services = services or NoServices()
        self._addresses = addresses or ServiceAddresses()
        self._on_pass = on_pass

        self._readiness = Readiness(ports.ports)
        self._pace = Pace()
        self._intent: Intent | None = None
        self._changes: dict[Key, Object | None] = {}
        self._tables = TableChain()
        self._told: PolicyTable | None = None
        self._observed: Intent | None = None
        self._removed: PolicyTable | None = None
        self._unsaved = False
        self._saved = Held()
        self._published: tuple[dict[int, RuleSet], dict[int, int]] | None = None
        self._listeners: dict[int, int] | None = None
        self._attached: tuple[LocalEndpoint, ...] = ()
        self._moved = self._rows_due = False
        #: What packets are judged by: a grace period later it is in force. Number 0: somebody has no rows yet.
        self.live = Live()
        self._submitted = self._reached = 0
        self._generation = 0
        self._revision = 0
        self._applies = 0
        self._failures = 0
        self._error = ""
        self._endpoint_error = ""
        self._service_error = ""
        self._poll = LISTEN_POLL_SECONDS[0]

    def __repr__(self) -> str:
        return f"Reconciler({self._tables!r}, error={self._error!r})"

    def submit(self, intent: Intent) -> int:
        """Want this from now on, too; of an intent that was not begun with yet only the changes are kept.

        Returns its number: when `reached` is that or more, it is in force.
        """
        self._changes.update(intent.changes)
        self._intent = msgspec.structs.replace(intent, changes={})  # at first it has all objects
        self._submitted += 1
        self._pace.look()
        return self._submitted

    def wake(self) -> None:
        """Look again, soon: the proxy answered."""
        self._pace.answered()

    def proxy_gone(self) -> None:
        """The proxy process ended: nothing listens any more."""
        self._readiness.proxy_gone()
        self._pace.look()

    @property
    def table(self) -> PolicyTable | None:
        """The table that packets are judged by from now on, None before the first."""
        return self.live.table

    @property
    def reached(self) -> int:
        """The number of the last intent that is in force, but for policies that wait for their listeners.

        Endpoints that can't be attached are no part of it.
        """
        return self._reached

    @property
    def submitted(self) -> int:
        """The number of the last intent."""
        return self._submitted

    @property
    def ports(self) -> dict[int, int]:
        """Rule set id → port, ready ones only."""
        return dict(self._listeners or {})

    def status(self) -> ReconcileStatus:
        """Where things are now."""
        applied, desired = self._tables.applied, self._tables.desired
        return ReconcileStatus(
            revision=applied.revision if applied else 0,
            wanted=desired.revision if desired else 0,
            generation=self._generation,
            rule_sets=len(applied.rule_sets) if applied else 0,
            rows=len(applied.rows) if applied else 0,
            waiting=self._readiness.unready(desired.rule_sets.values(), self._proxy) if desired else {},
            error=self._error,
            endpoint_error=self._endpoint_error,
            failures=self._failures,
            applied=self._applies,
            service_error=self._service_error,
            service_pending=self._services.is_pending,
            service_changes=self._services.changes,
            service_failures=self._services.failures,
        )

    async def run(self) -> None:
        """Reconcile until cancelled. A pass that has begun is finished: nothing is left half staged behind its back."""
        while True:
            await self._pace.wait()
            step = asyncio.ensure_future(self.step())
            try:
                await asyncio.shield(step)
            except asyncio.CancelledError:
                await step
                raise

    async def step(self) -> None:
        """One pass. A failure is recorded and tried again later; what is in force stays."""
        if self._intent is None:
            self._pace.idle()
            return
        self._pace.begin()
        asked = self._submitted
        try:
            await self._pass(self._intent, asked)
        except OWN_ERRORS as error:
            self._error = self._failed("reconcile failed, the last policy stays in force", str(error))
        except Exception as error:
            # A bug. Ending the agent would help nobody: the next policy may well be one that it can handle.
            log.exception("reconcile failed")
            self._error = self._failed("reconcile failed, the last policy stays in force", f"internal error: {error!r}")
        else:
            self._error = ""
            if not (self._endpoint_error or self._service_error):
                self._pace.went_well()
        finally:
            self._pace.end()
            self._on_pass()

    def _failed(self, what: str, error: str) -> str:
        """Count, log and plan the next attempt; returns `error`."""
        self._failures += 1
        log.error(what, error=error, retry_seconds=self._pace.failed())
        return error

    async def _pass(self, intent: Intent, number: int) -> None:
        try:
            await self._bring(intent, number)
        except Exception:
            # Nobody is sent to a backend that has gone, whatever else can't be done.
            if (applied := self._tables.applied) is not None:
                await self._balance(applied, join=False)
                if self._rows_due:
                    await self._give(applied, self._reached)  # pods that were attached for what did not come about
            raise

    async def _bring(self, intent: Intent, number: int) -> None:
        desired = await self._table_of()
        applied = self._tables.applied
        live = steered(applied) if applied else frozenset()
        self._ports.assign(desired.rule_sets)
        await self._persist(intent)
        await self._attach({e.name: e for e in (*self._attached, *intent.endpoints)}, first=True)
        self._services.serve(intent.served)
        await self._balance(desired, join=False)  # after the pods are known: their sockets may have to be ended
        self._publish({**(applied.rule_sets if applied else {}), **desired.rule_sets})

        loop_time = asyncio.get_running_loop().time()
        await self._check_ready(loop_time)
        pending = self._pending(desired, loop_time)
        if pending and applied is None and self._taken_over:
            # What an earlier agent left goes on, its tables are unknown here; where nothing was left, everything drops.
            return
        target, left = self._tables.target(pending | self._readiness.refused & steered(desired))
        # Listeners before the rows that steer to them, and the old ones until no row does.
        await self._listen(live | steered(target))
        await self._datapath.set_served(intent.served)
        await self._datapath.set_service_addresses(self._addresses.take())
        await self._apply(intent, target, left, number)
        await self._balance(desired, join=True)
        await self._attach({e.name: e for e in intent.endpoints})
        self._reached = number  # pods that wait need not wait for what is cleaned up
        self._on_pass()
        if target is desired:
            await self._remove(intent, desired)

    def endpoints_moved(self, intent: Intent) -> None:
        """Attach anew, also what is wanted as before: a veth is another one under its old name."""
        self._moved = True
        self.submit(intent)

    async def _table_of(self) -> PolicyTable:
        desired = self._tables.desired
        retry = desired is self._tables.applied and self._maker.hopeful
        if desired is not None and not self._changes and not retry:
            return desired
        taken, self._changes = self._changes, {}
        try:
            desired = await asyncio.to_thread(self._maker.apply, taken, self._revision + 1)
        except BaseException:
            self._changes = {**taken, **self._changes}
            raise
        self._revision += 1
        self._tables.want(desired)
        self._unsaved = True
        return desired

    async def _persist(self, intent: Intent) -> None:
        if self._unsaved or intent.held != self._saved:
            if self._must_save(self._ports, intent.held):
                await asyncio.to_thread(self._save, self._ports, intent.held)
            self._unsaved, self._saved = False, intent.held

    async def _attach(self, endpoints: Mapping[str, LocalEndpoint], *, first: bool = False) -> None:
        """`first`: the pass gives the kernel a table after this; what failed is tried again."""
        wanted = tuple(endpoints[name] for name in sorted(endpoints))
        if wanted == self._attached and not self._moved and not (first and self._endpoint_error):
            return
        self._moved = False
        if first:  # who is attached now has no rows yet, whatever the table says of it
            self._rows_due, self.live = True, self.live._replace(number=0)
        try:
            await self._datapath.set_endpoints(wanted, rows=not first)
        except OWN_ERRORS as error:
            # A pod whose interface isn't there must not keep the policies of all others from coming into force.
            self._endpoint_error = self._failed("not all endpoints could be attached", str(error))
        else:
            self._endpoint_error = ""
        self._attached = wanted

    def _publish(self, rule_sets: Mapping[int, RuleSet]) -> None:
        for rule_set in rule_sets:
            if self._proxy.acceptance(rule_set) is Acceptance.PORT_TAKEN:
                port = self._ports.replace(rule_set)
                self._unsaved = True
                log.warning("a listener port is taken by something else on the node", rule_set=rule_set, instead=port)
        ports = self._ports.ports
        wanted = (dict(rule_sets), {rule_set: ports[rule_set] for rule_set in rule_sets})
        if wanted != self._published:
            self._proxy.publish(*wanted)
            self._published = wanted

    async def _check_ready(self, now: float) -> None:
        published = self._published[1] if self._published else {}
        await self._readiness.refresh(published, self._proxy, self._listening, now)
        unheard = published.keys() - self._readiness.ready
        if any(self._proxy.acceptance(rule_set) is Acceptance.ACCEPTED for rule_set in unheard):
            self._pace.again_in(self._poll)
            self._poll = min(self._poll * 2, LISTEN_POLL_SECONDS[1])
        else:
            self._poll = LISTEN_POLL_SECONDS[0]

    def _pending(self, desired: PolicyTable, now: float) -> frozenset[int]:
        """Rule sets that are worth waiting for."""
        waiting = self._readiness.waiting(now, PATIENCE_SECONDS) & steered(desired)
        if waiting:
            deadline = self._readiness.next_deadline(now, PATIENCE_SECONDS)
            assert deadline is not None  # something waits
            self._pace.again_in(deadline - now)
        return waiting

    async def _balance(self, table: PolicyTable, *, join: bool) -> None:
        """What of Services can be done before (`join`: once) this table is in force. Policy goes on if it fails."""
        try:
            if join:
                await self._services.join()
                self._service_error = ""
            else:
                await self._services.leave(lambda address: ip_network(address) in table.ipcache)
        except Exception as error:
            text = str(error) if isinstance(error, OWN_ERRORS) else f"internal error: {error!r}"
            self._service_error = self._failed("Services are not all in the kernel", text)

    async def _listen(self, rule_sets: frozenset[int]) -> None:
        ports = self._ports.ports
        listeners = {key: ports[key] for key in sorted(rule_sets & self._readiness.ready) if key in ports}
        if listeners != self._listeners:
            await self._datapath.set_listeners(listeners)
            self._listeners = listeners

    async def _give(self, target: PolicyTable, number: int) -> None:
        """`number`: of the intent that is live with it."""

        def live() -> None:
            self.live = Live(number, target)
            self._on_pass()

        self._generation = await self._datapath.apply(self._tables.for_kernel(target), live)
        self._rows_due, self.live = False, Live(number, target)

    async def _apply(self, intent: Intent, target: PolicyTable, left: TableDelta | None, number: int) -> None:
        tables = self._tables
        if (changes := tables.changes_rows(target)) or self._rows_due:
            await self._give(target, number)
        if changes:
            self._applies += 1
            tables.given(target)
            self._told = None
        self.live = Live(number, target)
        if self._told is not tables.desired or (left is None and tables.applied is not target):
            tables.settle(target, left)
            self._told = tables.desired
            self._on_table(target)
        if target is tables.desired and self._observed is not intent:
            self._observed = intent
            seconds = time.monotonic() - intent.seen
            self._observe(seconds)
            tell(target, self._generation, seconds)

    async def _remove(self, intent: Intent, desired: PolicyTable) -> None:
        """No row steers to what only the last table had: the kernel forgets it, then the proxy, then the numbers."""
        if self._removed is not desired:
            await self._listen(steered(desired))
            if self._published and self._published[0].keys() - desired.rule_sets.keys():
                # A proxy resets what is connected for a rule set that goes: then nobody could tell why, and of whom.
                await self._datapath.swept(_SWEEP_SECONDS)
            self._publish(desired.rule_sets)
            self._ports.release(desired.rule_sets)
            await asyncio.to_thread(self._maker.settle, desired)
            self._unsaved = True
            self._removed = desired
        await self._persist(intent)
        if self._maker.hopeful:
            self._pace.again_in(RETRY_SECONDS[0])
