"""The composition root: makes every component, owns every task, and ends them in order.

Start: lock and state → preflight → datapath (loads, or takes over) → xDS server → proxy → source. End
(SIGTERM, SIGINT): tasks are cancelled, followers and the admin API finish, the xDS streams close without another word.
Kernel state and proxy stay, unless cleanup was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog

from spliceway.agent import memory, preflight
from spliceway.agent.admin import admin_app, debug_app, health_app, health_routes, metrics_app, proxy_metrics
from spliceway.agent.cni.side import cni_side
from spliceway.agent.compiler import Compiler
from spliceway.agent.config import Config
from spliceway.agent.control import ListeningPorts
from spliceway.agent.debugapi import debug_routes
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.hostaddresses import OwnNode
from spliceway.agent.intent import Intent
from spliceway.agent.inventory import Inventory
from spliceway.agent.inventoryfiles import Refusal
from spliceway.agent.killswitch import KillSwitch
from spliceway.agent.listening import HttpServer, unix_listener
from spliceway.agent.metrics import Gauges, Metrics
from spliceway.agent.nodelocaldns import NodeLocalDns
from spliceway.agent.policystatus.side import PolicyStatusSide
from spliceway.agent.policystatus.told import collectors
from spliceway.agent.ports import PortAllocator
from spliceway.agent.portwatch import PortWatch
from spliceway.agent.proxylink import ProxyLink
from spliceway.agent.reconcile import Reconciler
from spliceway.agent.recorder import Recorder
from spliceway.agent.refusals import RefusalLog, all_refusals
from spliceway.agent.serviceaddresses import ServiceAddresses
from spliceway.agent.servicesync import ServiceSync
from spliceway.agent.sides import AgentDatapath, ProxyProcess
from spliceway.agent.sockets import listening_ports
from spliceway.agent.sources.choice import Source, make_source
from spliceway.agent.sourceviews import SourceCollector, secret_warnings
from spliceway.agent.splicing import Evidence, Splicing
from spliceway.agent.state import AgentState, Saver, StateStore
from spliceway.agent.views import Views
from spliceway.agent.webports import web_listeners
from spliceway.agent.xdsevents import XdsEvents
from spliceway.agent.xdsviews import XdsViews, xds_counts, xds_warnings
from spliceway.bpf.killswitch import left_disabled
from spliceway.bpf.types import DatapathSettings
from spliceway.policy.numbering import Numbering
from spliceway.xds.debug import csds
from spliceway.xds.debug.view import ServerView
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.server.clients import NodeKey
from spliceway.xds.server.events import XdsEvent
from spliceway.xds.server.server import XdsServer

#: How often it is looked whether interfaces are still the same, in seconds.
LINK_INTERVAL = 1.0
#: How long the proxy may take to say what its configuration is: 10,000 resources are tens of megabytes.
DUMP_SECONDS = 30.0
#: How long requests to the admin API may still take when the agent ends.
DRAIN_SECONDS = 2.5

log = structlog.get_logger(__name__)


class _Stopped(Exception):  # noqa: N818
    """Not an error: it ends the task group."""


class Agent:
    """One agent. `run` is its life."""

    def __init__(
        self,
        config: Config,
        *,
        open_datapath: Callable[[DatapathSettings], Awaitable[AgentDatapath]],
        make_proxy: Callable[[Config, Callable[[str], None]], ProxyProcess],
        evidence: Evidence,
        check: Callable[[Config], None] = preflight.check,
        listening: ListeningPorts = listening_ports,
    ) -> None:
        """Wire it to its kernel and proxy sides (`run.py` names the real ones)."""
        self.config = config
        self._open_datapath = open_datapath
        self._make_proxy = make_proxy
        self._evidence = evidence
        self._check = check
        self._listening = listening
        self._store = StateStore(config.state_dir)
        self._recorder = Recorder(config.flows.buffer_size)
        self._xds_events = XdsEvents()
        self._port_watch = PortWatch()
        self._numbering = Numbering()
        self._node = OwnNode(config.node_name)
        self._dns = NodeLocalDns()
        self._begun = False  # the source was good enough to go by
        self._leave_nothing = False

    def __repr__(self) -> str:
        return f"Agent({self.config.node_name!r}, {self._store!r})"

    async def run(self, stop: asyncio.Event, *, cleanup: bool = False) -> None:
        """Run until `stop` is set; with `cleanup`, remove everything then. Raises one of OWN_ERRORS when it can't."""
        with self._store.lock():
            state = self._store.load()
            self._check(self.config)
            if state.numbering:
                self._numbering = Numbering.from_dict(state.numbering)
            async with contextlib.AsyncExitStack() as stack:
                await self._live(stack, state, stop, cleanup=cleanup)

    async def _live(
        self, stack: contextlib.AsyncExitStack, state: AgentState, stop: asyncio.Event, *, cleanup: bool
    ) -> None:
        config = self.config
        self._source = source = stack.enter_context(make_source(config))
        listeners = web_listeners(stack, config)
        self._server = XdsServer(
            preflight.xds_socket(config),
            identifier=f"spliceway {config.node_name}",
            on_flow=self._recorder.http,
            tcp=preflight.xds_tcp(config),
            on_event=self._on_xds_event,
            unsafe=config.xds.unsafe_envoy,
        )
        node = NodeKey(config.node_name, preflight.PROXY_CLUSTER)
        self._proxy = ProxyLink(self._server, node, preflight.resource_settings(config), config.envoy_extra())
        self._xds_view = ServerView(self._server)
        self._supervisor = self._make_proxy(config, lambda _how: self._reconciler.proxy_gone())
        self._inventory = Inventory(config.node_name, state.held, config.policies.kinds, config.istio.names)
        self._kill_switch = KillSwitch(config.kill_switch, was_on=left_disabled(config.bpffs))
        self._cni = cni_side(config, self._inventory)
        self._told = PolicyStatusSide(config, self._inventory)
        self._splicing = Splicing(config.splice, self._evidence)
        # Before anything is attached: with the switch on, this start changes no traffic.
        base = msgspec.structs.replace(config.datapath_settings(), disabled=self._kill_switch.on)
        settings = self._splicing.settings(base)
        self._datapath = await self._open_datapath(settings)
        self._splicing.use(self._datapath, settings)
        stack.push_async_callback(self._let_go)
        services = ServiceSync(self._datapath, lambda: self._compiler.balance.frontends)
        addresses = ServiceAddresses()
        translates = config.datapath.socket_lb != "off"
        self._compiler = Compiler(
            config.engine_options(self._datapath.limits),
            self._numbering,
            on_services=(self._recorder.services.update, addresses.update, *([services.want] if translates else [])),
        )
        self._metrics = Metrics(self._datapath, self._gauges, self._splicing.status)
        for collector in (SourceCollector(source.status), *collectors(self._told.status), *self._cni.collectors()):
            self._metrics.registry.register(collector)
        ports = config.proxy.listener_ports
        saver = Saver(self._store, config.node_name, self._numbering, lambda: self._compiler.given)
        self._reconciler = Reconciler(
            maker=self._compiler,
            save=saver.save,
            unsaved=saver.unsaved,
            ports=PortAllocator(ports.first, ports.last, assigned=state.ports, freed=state.freed),
            datapath=self._datapath,
            proxy=self._proxy,
            listening=self._listening,
            taken_over=self._datapath.status().taken_over,
            observe=self._metrics.reconcile_duration.observe,
            on_table=self._recorder.use,
            services=services if translates else None,
            addresses=addresses,
            on_pass=partial(self._told.passed, self._cni.passed),
        )
        self._cni.use(self._reconciler, self._datapath.attached, self._resubmit)
        self._proxy.on_answer(self._reconciler.wake)
        self._kill_switch.use(self._datapath, self._proxy, lambda: self._supervisor.status().running)
        self._server.add_services(csds.handlers(self._xds_view, self._server.tcp))
        await self._server.start()
        stack.push_async_callback(self._server.stop)
        await self._supervisor.start(self._datapath.proxy_map)
        self._shown = views = self._views()
        self._told.use(
            self._reconciler, self._compiler, self._cni, self._datapath, self._kill_switch, views.not_applied
        )
        debug = debug_routes(self._xds_view)
        of_proxy = proxy_metrics(partial(admin_get, preflight.proxy_admin_socket(config), "/stats/prometheus"))
        admin = HttpServer(
            admin_app(
                views.routes(),
                views.dumps(),
                flows=self._recorder.flows,
                registry=self._metrics.registry,
                splice=self._splicing,
                resets=views.resets(),
                asks=views.asks(),
                posts=views.posts(),
                xds_events=self._xds_events,
                routes=(*debug, of_proxy),
            )
        )
        health = health_routes(lambda: "" if self._reconciler.status().revision else "no policy is in force yet")
        metrics = metrics_app(self._metrics.registry, of_proxy, *health)
        apps = {"metrics": metrics, "health": health_app(*health), "debug": debug_app(debug)}
        listener = stack.enter_context(unix_listener(config.admin.socket))
        stack.callback(config.admin.socket.unlink, missing_ok=True)
        await self._cni.start(stack)
        log.info("agent started", node=config.node_name, taken_over=self._datapath.status().taken_over)
        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(admin.serve_on(listener), name="admin")
                group.create_task(self._until(stop, admin, serving, cleanup=cleanup), name="stop")
                group.create_task(self._kill_switch.run(), name="kill switch")
                group.create_task(self._watch(source), name="source")
                group.create_task(self._reconciler.run(), name="reconcile")
                group.create_task(self._supervisor.run(), name="proxy")
                group.create_task(self._splicing.run(), name="splicing")
                group.create_task(self._recorder.follow(self._datapath), name="kernel flows")
                group.create_task(self._recorder.count_losses(self._supervisor, self._server), name="losses")
                group.create_task(self._port_watch.run(), name="ports")
                group.create_task(self._recorder.sample(self._supervisor, self._server), name="access log share")
                group.create_task(self._watch_links(), name="interfaces")
                group.create_task(self._node.watch(self._on_addresses), name="addresses")
                group.create_task(memory.give_back(lambda: self._reconciler.reached > 0), name="memory")
                for name, task in {**self._cni.tasks(), **self._told.tasks()}.items():
                    group.create_task(task, name=name)
                for name, bound in listeners.items():
                    group.create_task(HttpServer(apps[name]).serve_on(bound), name=name)
        except* _Stopped:
            self._leave_nothing = cleanup
            log.info("agent stopped", left="nothing" if cleanup else "kernel state and proxy stay in force")

    async def _until(
        self, stop: asyncio.Event, admin: HttpServer, serving: asyncio.Task[None], *, cleanup: bool
    ) -> None:
        await stop.wait()
        if cleanup:
            await self._cni.leave()
        # Followers read what they still have, and requests are answered, before the rest ends.
        self._recorder.flows.close()
        self._xds_events.close()
        admin.stop()
        await asyncio.wait({serving}, timeout=DRAIN_SECONDS)
        raise _Stopped

    async def _watch(self, source: Source) -> None:
        refusals = RefusalLog()
        async for batch in source.batches():
            seen = time.monotonic()
            # Thousands of documents take a second or more: flows and requests must not wait for it.
            read = await asyncio.to_thread(self._inventory.read, batch)
            changed = self._inventory.feed(batch, read)
            refusals.tell(self._inventory.refusals)
            self._told.saw(batch)
            if self._inventory.synced:
                key = self.config.kill_switch.annotation
                self._kill_switch.annotated(self._inventory.annotation(("Node", self.config.node_name), key))
            # Before the first good look nothing is known: an empty cluster would take every policy away.
            if self._inventory.synced and (changed or not self._begun):
                if not self._begun:
                    await self._cni.prepare()
                if not self._begun and self._cni.is_blank and self._datapath.knows_endpoints():
                    # A directory that is not mounted yet looks like this. Detaching all pods would cut them off.
                    log.warning("the source has no pods, but the kernel has: what is in force stays until it has some")
                    continue
                if not self._begun:
                    await self._node.look()
                    self._cni.open()
                self._begun = True
                self._reconciler.submit(self._intent(seen))
            if self._begun:
                self._told.asked(self._reconciler.submitted)

    def _intent(self, seen: float) -> Intent:
        changes = self._cni.changes()
        self._node.complete(changes, probes=self._inventory.hbone.ambient)
        self._dns.complete(changes, self._node.own.dns)
        self._recorder.pods.update(changes.items())
        return Intent(changes, self._cni.endpoints, self._inventory.held, seen, self._node.own.dns)

    def _resubmit(self) -> int:
        return self._reconciler.submit(self._intent(time.monotonic()))

    def _on_addresses(self) -> None:
        if self._begun:
            self._resubmit()

    async def _watch_links(self) -> None:
        while True:
            await asyncio.sleep(LINK_INTERVAL)
            try:
                moved = await self._datapath.endpoints_moved()
            except OWN_ERRORS as error:
                log.warning("interfaces could not be listed", error=str(error))
                continue
            if moved and self._inventory.synced:
                log.info("an endpoint's interface was made anew")
                self._reconciler.endpoints_moved(self._intent(time.monotonic()))

    def _on_xds_event(self, event: XdsEvent) -> None:
        self._xds_events.add(event)
        self._metrics.xds_event(event)
        self._proxy.on_event(event)

    def _gauges(self) -> Gauges:
        policy = self._reconciler.status()
        process = self._supervisor.status()
        policies, in_audit = self._inventory.policies
        node = self._proxy.node
        states = [one.state for one in self._shown.not_applied()]
        clients, late = xds_counts(
            self._server.status(resources=False), self._server.current(node), self._server.snapshot(node)
        )
        return Gauges(
            revision=policy.revision,
            wanted_revision=policy.wanted,
            generation=policy.generation,
            reconcile_failures=policy.failures,
            service_changes=policy.service_changes,
            service_failures=policy.service_failures,
            refused_documents=len(self._refusals()),
            endpoints=len(self._cni.endpoints),
            rule_sets=policy.rule_sets,
            waiting_rule_sets=len(policy.waiting),
            xds_clients=clients,
            xds_not_in_sync=late,
            lost_log_entries=self._lost()["access-log"],
            log_share=self._recorder.share,
            lost_flows=self._recorder.flows.lost,
            proxy_restarts=process.restarts,
            proxy_running=process.running,
            worker_restarts=process.worker_restarts,
            policies=policies,
            policies_in_audit=policies if self.config.enforcement == "audit" else in_audit,
            audit_records=self._recorder.audit.total,
            not_applied={state: states.count(state) for state in ("refused", "waiting")},
            port_use=self._port_watch.use,
            disabled=self._kill_switch.on,
        )

    def _views(self) -> Views:
        return Views(
            config=self.config,
            inventory=self._inventory,
            cni=self._cni,
            reconciler=self._reconciler,
            datapath=self._datapath,
            proxy=self._proxy,
            supervisor=self._supervisor,
            flows=self._recorder.flows,
            audit=self._recorder.audit,
            lost=self._lost,
            refusals=self._refusals,
            refused_pairs=lambda: self._compiler.refused_pairs,
            balance=lambda: self._compiler.balance,
            names=lambda: self._recorder.names,
            splicing=self._splicing,
            kill_switch=self._kill_switch,
            isolating=self._compiler.isolating,
            xds=XdsViews(
                self._xds_view,
                self._proxy,
                rules=lambda: table.rules if (table := self._reconciler.table) else {},
                file_of=self._inventory.file_of,
                config_dump=partial(
                    admin_get, preflight.proxy_admin_socket(self.config), "/config_dump?include_eds", DUMP_SECONDS
                ),
                rejections=self._server.rejections,
            ),
            warnings=lambda: (
                *xds_warnings(self.config.xds, self._server, time.time()),
                *self._port_watch.warnings(),
                *self._source.warnings(),
                *secret_warnings(self._reconciler.table, cluster=self._source.status() is not None),
                *self._told.warnings(),
                *self._inventory.warnings(),
            ),
            port_use=lambda: self._port_watch.use,
            source=self._source.status,
            told=self._told.status,
        )

    def _refusals(self) -> tuple[Refusal, ...]:
        return all_refusals(self._inventory, self._compiler.refused)

    def _lost(self) -> dict[str, int]:
        return self._recorder.lost(self._datapath, self._server)

    async def _let_go(self) -> None:
        if not self._leave_nothing:
            await self._datapath.close()
            return
        await self._datapath.remove()
        await self._supervisor.stop()
        self._store.clear()
