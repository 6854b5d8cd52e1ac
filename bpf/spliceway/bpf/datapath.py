"""The datapath: everything of Spliceway that is in the kernel, behind one object.

`open` loads or takes over, `set_endpoints` attaches, `apply` makes a PolicyTable live, `set_listeners` says where
the proxy listens. `close` leaves all of it in place, so that verdicts stay while the agent is away; `remove` takes
it out. Runs inside the node's network namespace.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from pyroute2 import AsyncIPRoute

from spliceway.bpf import abi, diag, leftovers, libbpf, mapsizes, node, record, upgrade, views
from spliceway.bpf.attach import interface_index
from spliceway.bpf.devicewatch import DeviceWatch
from spliceway.bpf.endings import end_connections
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.events import EventStream
from spliceway.bpf.hookorder import Place
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.hookwatch import HookWatch
from spliceway.bpf.install import check, defines, install, loaded_digest, missing_pins, pins
from spliceway.bpf.kernelviews import KernelViews
from spliceway.bpf.layouts import layouts
from spliceway.bpf.links import attach_links
from spliceway.bpf.maps import Maps
from spliceway.bpf.netns import cookie_of
from spliceway.bpf.notes import resetting
from spliceway.bpf.podinterfaces import Uncovered, usable
from spliceway.bpf.revoke import Revoker
from spliceway.bpf.rows import Attached, pack_endpoint, unpack_endpoint, with_slots
from spliceway.bpf.services import Applied, FrontendRow
from spliceway.bpf.sidecars import Sidecars
from spliceway.bpf.socketlb import SocketLb
from spliceway.bpf.source import digest, program_names
from spliceway.bpf.splicecontrol import SpliceControl
from spliceway.bpf.staging import KernelTable
from spliceway.bpf.sweep import Sweeper
from spliceway.bpf.types import DatapathSettings, DatapathStatus, IPAddress, LocalEndpoint, SpliceClasses
from spliceway.bpf.upkeep import Upkeep
from spliceway.policy.lbmodel import Frontend, FrontendState
from spliceway.policy.table import PolicyTable

_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


class Datapath(KernelViews):
    """The kernel side of one node. Make it with `open`."""

    #: Services of pods' sockets. `set_services` changes them.
    services: SocketLb

    def __init__(self, settings: DatapathSettings, maps: Maps, programs: tuple[str, ...], *, taken_over: bool) -> None:
        """Use `open`."""
        self._settings, self._maps, self._programs, self._taken_over = settings, maps, programs, taken_over
        self._table = KernelTable(maps, mapsizes.configured(settings))
        self._attached: dict[str, Attached] = {}
        self._served: frozenset[IPAddress] = frozenset()
        self._policy: PolicyTable | None = None
        self._listeners: dict[int, int] = views.listeners(maps)
        judge = maps.root / "programs" / "judge"
        self._revoker = Revoker(judge)
        self._events = EventStream(maps, self._revoker.see)
        self._sweeper = Sweeper(maps, judge)
        self._drain = upgrade.Drain(settings.bpffs, maps.root)
        self._lock = asyncio.Lock()
        self._sidecars = Sidecars(maps, wanted=settings.sidecars)
        self._splices = SpliceControl(settings, maps, self._sidecars.end)
        self._hooks = Hooks(settings, maps.root)
        self._watch = HookWatch(self._hooks, self._look_further)
        tell = partial(self._on_unjudged, "devices")
        self._devices = DeviceWatch(self._hooks, settings.devices, self.endpoint_devices, tell)
        self._uncovered = Uncovered()
        self._upkeep = Upkeep(settings, self._hooks, self._splices.set_steering)
        self._pins: frozenset[str] = frozenset()
        self._sizes: tuple[str, ...] = ()
        self._proxy_map = libbpf.info_of(maps.root / "maps" / "proxy_socks").id

    def __repr__(self) -> str:
        return f"Datapath({self._table!r}, endpoints={sorted(self._attached)}, taken_over={self._taken_over})"

    @classmethod
    async def open(cls, settings: DatapathSettings, *, test_defines: Mapping[str, str] | None = None) -> Datapath:
        """Load the programs, or take over those that an earlier agent pinned, and attach them.

        `test_defines` compiles test hooks in. Raises DatapathError: no BPF rights, no bpffs, no cgroup2, no BCC.
        """
        check(settings)
        names = defines(settings, test_defines)
        root, wanted = Path(names["PIN_ROOT"].strip('"')), digest(names)
        live, shapes = upgrade.live_root(settings.bpffs), layouts(names)
        upgrade.share_maps(live, root, shapes)
        known = (root / "maps").is_dir() and any((root / "maps").iterdir())
        if loaded_digest(root, names) != wanted:
            await install(root, names, wanted, settings.program_cache)
        upgrade.record_layouts(root, shapes)
        self = cls(settings, Maps(root), program_names(names), taken_over=known)
        self._sizes = mapsizes.differing(root, names)
        record.set_netns(settings.bpffs)
        await asyncio.to_thread(self._hooks.adopt, self._drain.others)
        await self._upkeep.begin()
        await self._resetting()
        attach_links(settings, self._maps, self._drain.others)
        self.services = await asyncio.to_thread(SocketLb, settings, root)
        self._pins = pins(root)
        record.set_live(settings.bpffs, root)
        async with AsyncIPRoute() as ipr:
            await node.set_up(ipr, settings)
            await self._upkeep.mend()
        await self._devices.begin()
        self._events.start()
        self._sweeper.start()
        self._drain.start()
        self._watch.start()
        self._devices.start()
        self._upkeep.start()
        self.services.start()
        if known:  # the agent before this one may have ended between a change and its sweep
            self._sweeper.ask()
        return self

    # ---- endpoints ----

    async def set_endpoints(self, endpoints: Sequence[LocalEndpoint], *, rows: bool = True) -> None:
        """Attach to these veths and detach from all others.

        Endpoints that no table knows yet drop everything as «not ready», without `rows` new ones until `apply`. Raises
        DatapathError naming every endpoint that failed; the others are done by then, and the next call tries again.
        """
        wanted = {one.name: one for one in endpoints}
        async with self._lock, AsyncIPRoute() as ipr:
            links = await _links()
            for name, old in list(self._attached.items()):
                new = wanted.get(name)
                if new is None or not old.is_of(new) or not old.is_there(links):
                    await self._detach(self._attached.pop(name))
                elif new != old.endpoint:
                    self._change_splicing(old._replace(endpoint=new))
            await self._forget_strangers(wanted, links)
            failures = []
            for name in wanted.keys() - self._attached.keys():
                try:
                    self._attached[name] = await self._attach(ipr, wanted[name])
                except DatapathError as error:
                    failures.append(f"endpoint {name}: {error}")
            self._splices.exclude(self._attached)
            there = list(self._attached.values())
            await self.services.leave_alone(one.netns_cookie for one in there if one.endpoint.mesh)
            await asyncio.to_thread(self._sidecars.apply, there)
            await asyncio.to_thread(self._uncovered.look, there)
            try:
                self._table.marks.hold("filters", await self._resetting())
            except DatapathError as error:
                failures.append(str(error))
            without = {wanted[name].interface for name in wanted.keys() - self._attached.keys()}
            waiting = {links[interface]: interface for interface in without & links.keys()}
            failures += await self._drain.settle(self._hooks, ipr, waiting)
        if rows and self._policy is not None:
            await self.apply(self._policy)
        if failures:
            raise DatapathError("; ".join(failures))

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        """With this device and these addresses; what it says may be older about splicing and meshes."""
        return one.endpoint if (one := self._attached.get(endpoint.name)) and one.is_of(endpoint) else None

    async def _attach(self, ipr: AsyncIPRoute, endpoint: LocalEndpoint) -> Attached:
        for version in (4, 6):
            if sum(address.version == version for address in endpoint.addresses) > 1:
                raise DatapathError(f"more than one IPv{version} address")
        index = await interface_index(ipr, endpoint.interface)
        bridge = (await asyncio.to_thread(usable, index)).master
        attached = Attached(endpoint, index, cookie_of(endpoint.netns), bridge)
        key = index.to_bytes(4, "little")
        old = self._maps.endpoints.lookup(key)
        live = unpack_endpoint(old, self._table.generation & 1) if old else b""
        if not old or abi.Endpoint.from_buffer_copy(old).netns_cookie != attached.netns_cookie:
            live = b""  # new, or an interface index that another pod had
            self._table.rows.endpoints.pop(key, None)
        self._maps.endpoints.update(key, pack_endpoint(attached, (live, live)))
        try:
            for hook in ("from_pod", "to_pod"):
                await self._hooks.put(ipr, Place(index, hook), endpoint.interface)
        except DatapathError:
            if index not in self._hooks.of_pods:  # else who looks at devices would leave it without any program
                self._maps.endpoints.delete(key)
            raise
        await self._devices.leave(ipr, index)  # from now on nobody puts it there again
        return attached

    def _change_splicing(self, attached: Attached) -> None:
        """Only whether its sockets may be spliced is another now: that is for new connections."""
        self._attached[attached.endpoint.name] = attached
        key = attached.ifindex.to_bytes(4, "little")
        value = abi.Endpoint.from_buffer_copy(self._maps.endpoints.lookup(key) or pack_endpoint(attached, (b"", b"")))
        value.unspliced = not attached.endpoint.splice
        self._maps.endpoints.update(key, bytes(value))
        self._splices.exclude(self._attached)

    async def _detach(self, attached: Attached) -> None:
        """The endpoint is known no more: its packets are dropped, its connections end.

        The programs stay on the veth as long as that is there: a pod that is still running must not be without.
        """
        key = attached.ifindex.to_bytes(4, "little")
        raw = self._maps.endpoints.lookup(key)
        if raw is not None:  # nothing is allowed any more, but the resets of its connections still reach it
            self._maps.endpoints.update(key, with_slots(raw, (b"", b"")))
        await asyncio.to_thread(end_connections, self._maps, attached.endpoint)
        self._maps.endpoints.delete(key)
        if raw is not None:
            self._splices.forget(raw)
        self._table.rows.endpoints.pop(key, None)

    async def _forget_strangers(self, wanted: Mapping[str, LocalEndpoint], links: Mapping[str, int]) -> None:
        """Endpoints in the kernel that went while no agent ran. Those that stay are attached again, in place."""
        staying = {links[one.interface] for one in wanted.values() if one.interface in links}
        staying |= {one.ifindex for one in self._attached.values()}
        for key in list(self._maps.endpoints.keys()):
            index = int.from_bytes(key, "little")
            if index not in staying:
                gone = LocalEndpoint("", "", Path("/"), views.endpoint_addresses(self._maps, key))
                await self._detach(Attached(gone, index, 0))

    async def endpoints_moved(self) -> bool:
        """Whether an endpoint's veth was made anew under its name since it was attached."""
        links = await _links()
        await asyncio.to_thread(self._uncovered.look, list(self._attached.values()))
        return not all(one.is_there(links) for one in self._attached.values())

    # ---- policy ----

    async def apply(self, table: PolicyTable, live: Callable[[], None] = lambda: None) -> int:
        """Make the table live in one step and return the kernel's generation. On failure the old one stays.

        Costs what changed, when the table has a delta against the one before (see `PolicyTable.delta`). If anything
        changes, `live` is called in the event loop once all packets from then on are judged by it: some milliseconds
        before this returns, when no program goes by the old one any more.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            before = self._table.generation
            tell = partial(loop.call_soon_threadsafe, live)
            generation = await asyncio.to_thread(self._table.apply, table, self._attached, self._served, tell)
            self._policy = table
            if generation != before:
                self._sweeper.ask(table.revision)
            return generation

    async def set_served(self, addresses: frozenset[IPAddress]) -> None:
        """Addresses of other identities than the host's by which processes of the node answer pods."""
        if addresses != self._served:
            self._served = addresses
            if self._policy is not None:
                await self.apply(self._policy)

    async def set_service_addresses(self, changes: Mapping[IPAddress, bool]) -> None:
        """Services are dialled by these addresses from now on, or (False) not any more: see `servicemarks`."""
        async with self._lock:
            self._table.marks.want(changes)
        if self._table.marks.pending and self._policy is not None:
            await self.apply(self._policy)

    async def _on_unjudged(self, kind: str, who: Sequence[str]) -> None:  # then Services' own addresses are judged, too
        async with self._lock:
            self._table.marks.hold(kind, who)
        await self.set_service_addresses({})

    async def _look_further(self) -> None:
        async with self._lock:
            await asyncio.to_thread(self._sidecars.look)
            who = await self._resetting()
        await self._on_unjudged("filters", who)
        await self._on_unjudged("not attached", self._watch.unjudged)

    async def _resetting(self) -> list[str]:
        """Who makes the kernel forget whose a packet is; programs are told whether anybody does. Under the lock."""
        bridges = self.endpoint_bridges()
        who = await asyncio.to_thread(resetting, bridges)
        self._splices.set_notes_stay(bool(bridges) and not who)  # of no endpoint nothing is known
        return who

    async def set_listeners(self, ports: Mapping[int, int]) -> None:
        """Where the proxy listens for each rule set: acknowledged listeners whose sockets are there, no others.

        When it returns, nothing passes any more on connections whose rule set has another listener now; they end soon.
        """
        low, high = self._settings.listener_ports
        for rule_set, port in ports.items():
            if not low <= port <= high:
                raise DatapathError(
                    f"rule set {rule_set}: port {port} is outside of the listeners' ports {low} to {high}"
                )
        async with self._lock:
            for rule_set in self._listeners.keys() - ports.keys():
                self._maps.listeners.delete(rule_set.to_bytes(4, "little"))
            self._maps.listeners.update_many(
                [(rule_set.to_bytes(4, "little"), bytes(abi.Listener(port))) for rule_set, port in ports.items()]
            )
            moved = any(self._may_have_moved(rule_set, port) for rule_set, port in ports.items())
            self._listeners = dict(ports)
            if moved:
                await asyncio.to_thread(self._table.judge_again)
                self._sweeper.ask(self._policy.revision if self._policy is not None else 0)

    def _may_have_moved(self, rule_set: int, port: int) -> bool:
        """Whether connections of this rule set may be at another listener. Call it before `_listeners` changes."""
        if (before := self._listeners.get(rule_set)) is None:  # it may have had one before, if rows name it
            return rule_set in self._policy.rule_sets if self._policy is not None else self._taken_over
        return before != port

    @property
    def proxy_map(self) -> int:
        """Id of the map that knows the proxy's sockets: another one when that map is made anew."""
        return self._proxy_map

    async def listening(self, port: int) -> bool:
        """Whether sockets listen on this port of 127.0.0.1 and ::1."""
        there = await asyncio.to_thread(diag.listeners)
        return all((address, port) in there for address in _LOOPBACK)

    async def set_services(self, changes: Mapping[Frontend, FrontendState | None]) -> Applied:
        """What pods' sockets get for Services' addresses, by what changes; see `ServiceMaps.apply`."""
        return await self.services.apply(changes, [one.endpoint.netns for one in self._attached.values()])

    async def held_services(self) -> list[FrontendRow]:
        """Frontends as they are in the kernel, also what an earlier agent left; none where it is switched off."""
        return await self.services.held()

    async def set_disabled(self, disabled: bool) -> None:
        """The kill switch: on, programs pass all and hand on what the proxy has; off, next packets are judged."""
        self._splices.set_disabled(disabled)
        self._sweeper.ask(self._policy.revision if self._policy is not None else 0)  # on, that ends nothing

    async def set_splice(self, classes: SpliceClasses) -> None:
        """Which legs of new connections are spliced. Those that are spliced stay so."""
        self._splices.set_classes(classes)

    # ---- views: see also `KernelViews` ----

    def status(self) -> DatapathStatus:
        """What is loaded and attached, and what is wrong."""
        attached = [f"{one.endpoint.name} ({one.endpoint.interface})" for one in self._attached.values()]
        root = self._maps.root
        return DatapathStatus(
            abi=int(root.name.removeprefix("v")),
            generation=self._table.generation,
            taken_over=self._taken_over,
            programs={name: str(root / "programs" / name) for name in self._programs},
            attached=tuple(sorted(attached)),
            lost_events=views.lost_events(self._maps) + self._events.lost,
            draining=self._drain.left,
            problems=(
                *missing_pins(root, self.services.expected(self._pins)),
                *self._watch.problems,
                *self._sidecars.lost,
                *self._devices.problems,
                *node.problems(),
                *self._upkeep.problems,
                *self.services.problems,
                *self._table.marks.problems,
            ),
            warnings=(*self._sizes, *self._sidecars.problems),
            hooks=self._sidecars.counted(self._watch.status),
            devices=self._devices.status,
            uncovered=self._uncovered.told,
            socket_lb=self.services.status,
        )

    # ---- end ----

    async def close(self) -> None:
        """Let go of everything, and leave it in place."""
        await self._watch.stop()
        await self._devices.stop()
        self._events.stop()
        await self._sweeper.stop()
        await self._drain.stop()
        await self._upkeep.stop()
        await self.services.close()
        self._maps.close()

    async def remove(self) -> None:
        """Detach and take out all of it. Traffic flows as if Spliceway had never been there."""
        await self._watch.stop()  # these two take the lock themselves
        await self._devices.stop()
        async with self._lock:
            await self.close()
            await leftovers.take_out(await leftovers.find(self._settings), self._settings)


async def _links() -> dict[str, int]:
    """Interfaces of this network namespace: name → index."""
    return {name: index for index, name in await asyncio.to_thread(socket.if_nameindex)}
