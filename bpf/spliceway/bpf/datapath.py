"""The datapath: everything of Spliceway that is in the kernel, behind one object.

`open` loads or takes over, `set_endpoints` attaches, `apply` makes a PolicyTable live, `set_listeners` says where
the proxy listens. `close` leaves all of it in place, so that verdicts stay while the agent is away; `remove` takes
it out. Runs inside the node's network namespace.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import msgspec
from pyroute2 import AsyncIPRoute

from spliceway.bpf import abi, diag, leftovers, libbpf, node, record, views
from spliceway.bpf.attach import EGRESS, INGRESS, attach_link, attach_tc, interface_index
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.events import EventStream
from spliceway.bpf.kernelstructs import offsets
from spliceway.bpf.loader import LoadRequest, load
from spliceway.bpf.maps import Maps
from spliceway.bpf.netns import cookie_of
from spliceway.bpf.revoke import Revoker
from spliceway.bpf.rows import Attached, pack_endpoint, unpack_endpoint, with_slots
from spliceway.bpf.source import PROGRAMS, digest
from spliceway.bpf.splicecontrol import SpliceControl
from spliceway.bpf.staging import KernelTable
from spliceway.bpf.sweep import Sweeper, SweepTotals
from spliceway.bpf.types import (
    CtEntry,
    DatapathSettings,
    DatapathStatus,
    KernelFlow,
    LocalEndpoint,
    ReasonCount,
    SockEntry,
    SpliceClasses,
    SpliceCounters,
)
from spliceway.policy.table import PolicyTable

_PROGRAM_NAMES = tuple(spec.name for specs in PROGRAMS.values() for spec in specs)
_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


#: Descriptors that keep this process the owner of what is pinned on a bpffs.
_claims: list[int] = []


def claim(settings: DatapathSettings) -> None:
    """Make this process the only agent on the bpffs until it ends. Raises DatapathError when another one is."""
    _check(settings)
    path = settings.bpffs / "spliceway"
    path.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DatapathError(f"bpffs: another agent runs on {path}; two would undo each other's work") from error
    _claims.append(descriptor)


def pin_root(settings: DatapathSettings) -> Path:
    """Where everything is pinned. The ABI's version is in the path: two versions never share a map."""
    return settings.bpffs / "spliceway" / f"v{abi.ABI_VERSION}"


def defines(settings: DatapathSettings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Definitions that the programs are compiled with."""
    return {
        "PIN_ROOT": f'"{pin_root(settings)}"',
        "MAX_ENDPOINTS": str(settings.max_endpoints),
        "MAX_IPCACHE": str(settings.max_ipcache),
        "MAX_ROWS": str(settings.max_rows),
        "MAX_PAIRS": str(settings.max_pairs),
        "MAX_CONNECTIONS": str(settings.max_connections),
        "EVENT_BYTES": str(settings.event_buffer_bytes),
        **measuring()[0],
        **(extra or {}),
    }


def measuring() -> tuple[dict[str, str], str]:
    """Definitions with which the programs can look at a reader's queue, or none and why they can't."""
    try:
        found = offsets()
    except LookupError as error:
        return {}, str(error)
    return {"MEASURED": "1", **{name: str(offset) for name, offset in found.items()}}, ""


class Datapath:
    """The kernel side of one node. Make it with `open`."""

    def __init__(self, settings: DatapathSettings, maps: Maps, *, taken_over: bool) -> None:
        """Use `open`."""
        self._settings, self._maps, self._taken_over = settings, maps, taken_over
        self._table = KernelTable(maps)
        self._attached: dict[str, Attached] = {}
        self._policy: PolicyTable | None = None
        self._listeners: dict[int, int] = views.listeners(maps)
        self._revoker = Revoker()
        self._events = EventStream(maps, self._revoker.see)
        self._sweeper = Sweeper(maps, pin_root(settings) / "programs" / "judge")
        self._lock = asyncio.Lock()
        self._splices = SpliceControl(settings, maps)
        self._uplinks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Datapath({self._table!r}, endpoints={sorted(self._attached)}, taken_over={self._taken_over})"

    @classmethod
    async def open(cls, settings: DatapathSettings, *, test_defines: Mapping[str, str] | None = None) -> Datapath:
        """Load the programs, or take over those that an earlier agent pinned, and attach them.

        `test_defines` compiles test hooks in. Raises DatapathError: no BPF rights, no bpffs, no cgroup2, no BCC.
        """
        _check(settings)
        root = pin_root(settings)
        names = defines(settings, test_defines)
        wanted = digest(names)
        have = _loaded_digest(root)
        known = (root / "maps").is_dir() and any((root / "maps").iterdir())
        if have != wanted:
            await _load(root, names, wanted)
        self = cls(settings, Maps(root), taken_over=known)
        self._splices.write()
        self._attach_links()
        async with AsyncIPRoute() as ipr:
            await node.set_up(ipr, settings)
            await leftovers.forget_uplinks(ipr, settings.uplinks)
            program = libbpf.open_pin(root / "programs" / "from_network")
            try:
                for name in settings.uplinks:
                    index = await interface_index(ipr, name)
                    await attach_tc(ipr, index, INGRESS, program, "from_network", settings.bpffs)
            finally:
                os.close(program)
        self._uplinks = settings.uplinks
        self._events.start()
        self._sweeper.start()
        if known:  # the agent before this one may have ended between a change and its sweep
            self._sweeper.ask()
        return self

    # ---- endpoints ----

    async def set_endpoints(self, endpoints: Sequence[LocalEndpoint]) -> None:
        """Attach to these veths and detach from all others.

        Endpoints that no table knows yet drop everything as «not ready». Raises DatapathError naming every endpoint
        that failed; the others are done by then, and the next call tries again.
        """
        wanted = {one.name: one for one in endpoints}
        async with self._lock, AsyncIPRoute() as ipr:
            links = await _links(ipr)
            for name, old in list(self._attached.items()):
                new = wanted.get(name)
                if new is None or not _is_same_endpoint(new, old.endpoint) or not _is_same(old, links):
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
        if self._policy is not None:
            await self.apply(self._policy)
        if failures:
            raise DatapathError("; ".join(failures))

    async def _attach(self, ipr: AsyncIPRoute, endpoint: LocalEndpoint) -> Attached:
        for version in (4, 6):
            if sum(address.version == version for address in endpoint.addresses) > 1:
                raise DatapathError(f"more than one IPv{version} address")
        index = await interface_index(ipr, endpoint.interface)
        attached = Attached(endpoint, index, cookie_of(endpoint.netns))
        key = index.to_bytes(4, "little")
        old = self._maps.endpoints.lookup(key)
        live = unpack_endpoint(old, self._table.generation & 1) if old else b""
        if not old or abi.Endpoint.from_buffer_copy(old).netns_cookie != attached.netns_cookie:
            live = b""  # new, or an interface index that another pod had
            self._table.rows.endpoints.pop(key, None)
        slots = (live, live)
        self._maps.endpoints.update(key, pack_endpoint(attached, slots))
        for hook, parent in (("from_pod", INGRESS), ("to_pod", EGRESS)):
            program = libbpf.open_pin(pin_root(self._settings) / "programs" / hook)
            try:
                await attach_tc(ipr, index, parent, program, hook, self._settings.bpffs)
            finally:
                os.close(program)
        return attached

    def _change_splicing(self, attached: Attached) -> None:
        """Only whether its sockets may be spliced is another now: that is for new connections."""
        self._attached[attached.endpoint.name] = attached
        key = attached.ifindex.to_bytes(4, "little")
        value = abi.Endpoint.from_buffer_copy(self._maps.endpoints.lookup(key) or pack_endpoint(attached, (b"", b"")))
        value.unspliced = not attached.endpoint.splice
        self._maps.endpoints.update(key, bytes(value))

    async def _detach(self, attached: Attached) -> None:
        """The endpoint is known no more: its packets are dropped, its connections end.

        The filters stay on the veth as long as that is there: a pod that is still running must not be without.
        """
        key = attached.ifindex.to_bytes(4, "little")
        raw = self._maps.endpoints.lookup(key)
        if raw is not None:  # nothing is allowed any more, but the resets of its connections still reach it
            self._maps.endpoints.update(key, with_slots(raw, (b"", b"")))
        await asyncio.to_thread(self._end_connections, attached.endpoint)
        self._maps.endpoints.delete(key)
        self._table.rows.endpoints.pop(key, None)

    async def _forget_strangers(self, wanted: Mapping[str, LocalEndpoint], links: Mapping[str, int]) -> None:
        """Endpoints in the kernel that went while no agent ran. Those that stay are attached again, in place."""
        known = {a.ifindex for a in self._attached.values()}
        staying = {links[one.interface] for one in wanted.values() if one.interface in links}
        for key in list(self._maps.endpoints.keys()):
            index = int.from_bytes(key, "little")
            if index not in known | staying:
                gone = LocalEndpoint("", "", Path("/"), views.endpoint_addresses(self._maps, key))
                await self._detach(Attached(gone, index, 0))

    async def endpoints_moved(self) -> bool:
        """Whether an endpoint's veth was made anew under its name since it was attached."""
        async with AsyncIPRoute() as ipr:
            links = await _links(ipr)
        return not all(_is_same(one, links) for one in self._attached.values())

    def knows_endpoints(self) -> bool:
        """Whether the kernel has endpoints, of this agent or of an earlier one."""
        return next(iter(self._maps.endpoints.keys()), None) is not None

    def _end_connections(self, endpoint: LocalEndpoint) -> None:
        """When an endpoint goes, its connections, the proxy's for it and its splices go with it."""
        own = set(endpoint.addresses)
        for connection in diag.tcp_sockets():
            if connection.local in own or connection.remote in own:
                diag.destroy_this(connection)
        views.forget_connections(self._maps, own)

    # ---- policy ----

    async def apply(self, table: PolicyTable) -> int:
        """Make the table live in one step and return the kernel's generation. On failure the old one stays.

        Costs what changed, when the table has a delta against the one before (see `PolicyTable.delta`).
        """
        async with self._lock:
            before = self._table.generation
            generation = await asyncio.to_thread(self._table.apply, table, self._attached)
            self._policy = table
            if generation != before:
                self._sweeper.ask()
            return generation

    @property
    def limits(self) -> dict[str, int]:
        """How many elements a PolicyTable may bring: endpoints, ipcache, classes, rows, listeners, pairs.

        While a revision is staged, the keys that go are there together with those that come.
        """
        maps, (low, high) = self._maps, self._settings.listener_ports
        return {
            "endpoints": maps.endpoints.max_entries,
            "ipcache": maps.ipcache.max_entries,
            "classes": maps.classes.max_entries,
            "rows": maps.policy.max_entries,
            "listeners": min(maps.listeners.max_entries, high - low + 1),
            "pairs": maps.pairs.max_entries,
        }

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
                self._sweeper.ask()

    def _may_have_moved(self, rule_set: int, port: int) -> bool:
        """Whether connections of this rule set may be at another listener. Call it before `_listeners` changes."""
        before = self._listeners.get(rule_set)
        if before is None:  # it may have had one before, if rows name it
            return rule_set in self._policy.rule_sets if self._policy is not None else self._taken_over
        return before != port

    @property
    def sweeps(self) -> SweepTotals:
        """What became of connections that a change of policy or listeners ended."""
        return self._sweeper.totals

    async def listening(self, port: int) -> bool:
        """Whether sockets listen on this port of 127.0.0.1 and ::1."""
        there = await asyncio.to_thread(diag.listeners)
        return all((address, port) in there for address in _LOOPBACK)

    async def set_splice(self, classes: SpliceClasses) -> None:
        """Which legs of new connections are spliced. Those that are spliced stay so."""
        self._splices.set_classes(classes)

    @property
    def measured(self) -> str:
        """Empty when the programs can see what a reader has not read, else why not."""
        return measuring()[1]

    async def measure(self) -> int:
        """Look at all readers that were behind; returns how many spliced bytes wait unread on the node."""
        await asyncio.to_thread(self._splices.measure)
        return self._splices.unread()

    # ---- views ----

    async def events(self) -> AsyncIterator[KernelFlow]:
        """Verdicts as they are made. One consumer."""
        async for flow in self._events.flows():
            yield flow

    def conntrack(self) -> list[CtEntry]:
        """All connections that the kernel tracks."""
        return views.conntrack(self._maps)

    def socks(self) -> list[SockEntry]:
        """All redirected connections that are alive: spliced or not, and why."""
        return views.socks(self._maps)

    def reasons(self) -> list[ReasonCount]:
        """Counters by hook, verdict and reason."""
        return views.reasons(self._maps)

    def splice_counters(self) -> SpliceCounters:
        """Node-wide splice counters."""
        return views.splice_counters(self._maps)

    def dump_policy(self) -> list[dict[str, object]]:
        """Policy rows as they are in the kernel."""
        return views.policy(self._maps, self._table.generation & 1)

    def dump_ipcache(self) -> list[dict[str, object]]:
        """Prefixes and identities as they are in the kernel."""
        return views.ipcache(self._maps, self._table.generation & 1)

    def status(self) -> DatapathStatus:
        """What is loaded and attached, and what is wrong."""
        attached = [f"{one.endpoint.name} ({one.endpoint.interface})" for one in self._attached.values()]
        return DatapathStatus(
            abi=abi.ABI_VERSION,
            generation=self._table.generation,
            taken_over=self._taken_over,
            programs={name: str(pin_root(self._settings) / "programs" / name) for name in _PROGRAM_NAMES},
            attached=(*sorted(attached), *(f"uplink {name}" for name in self._uplinks)),
            lost_events=views.lost_events(self._maps) + self._events.lost,
            problems=tuple(node.problems(self._settings)),
        )

    # ---- end ----

    async def close(self) -> None:
        """Let go of everything, and leave it in place."""
        self._events.stop()
        await self._sweeper.stop()
        self._maps.close()

    async def remove(self) -> None:
        """Detach and take out all of it. Traffic flows as if Spliceway had never been there."""
        async with self._lock:
            await self.close()
            await leftovers.take_out(await leftovers.find(self._settings), self._settings)

    # ---- parts ----

    def _attach_links(self) -> None:
        root = pin_root(self._settings)
        (root / "links").mkdir(exist_ok=True)
        program = {name: libbpf.open_pin(root / "programs" / name) for name in _PROGRAM_NAMES}
        try:
            libbpf.attach_to_map(program["splice_message"], self._maps.socks.fd, libbpf.BPF_SK_MSG_VERDICT)
            for name, target, kind in (
                ("guard", Path("/proc/thread-self/ns/net"), libbpf.BPF_SK_LOOKUP),
                ("sockops_proxy", self._settings.proxy_cgroup, libbpf.BPF_CGROUP_SOCK_OPS),
                ("splice_room", self._settings.proxy_cgroup, libbpf.BPF_CGROUP_GETSOCKOPT),
                ("guard_ulp", self._settings.pods_cgroup, libbpf.BPF_CGROUP_SETSOCKOPT),
                ("sockops_pod", self._settings.pods_cgroup, libbpf.BPF_CGROUP_SOCK_OPS),
            ):
                attach_link(root / "links" / name, target, kind, program[name])
        finally:
            for descriptor in program.values():
                os.close(descriptor)


def _check(settings: DatapathSettings) -> None:
    for field, path in (("cgroups.pods", settings.pods_cgroup), ("cgroups.proxy", settings.proxy_cgroup)):
        if not (path / "cgroup.procs").exists():
            raise DatapathError(f"{field}: {path} is not a cgroup2 directory (is cgroup2 mounted there?)")
    if not settings.bpffs.is_dir():
        raise DatapathError(f"bpffs: {settings.bpffs} does not exist (mount -t bpf bpf {settings.bpffs})")
    if os.statvfs(settings.bpffs).f_namemax != 255 or not record.on_bpffs(settings.bpffs):
        raise DatapathError(f"bpffs: {settings.bpffs} is not a bpffs (mount -t bpf bpf {settings.bpffs})")


async def _links(ipr: AsyncIPRoute) -> dict[str, int]:
    """Interfaces of this network namespace: name → index."""
    return {link.get_attr("IFLA_IFNAME"): int(link["index"]) async for link in await ipr.link("dump")}


def _is_same_endpoint(one: LocalEndpoint, other: LocalEndpoint) -> bool:
    """Whether they are one endpoint, whatever they say about splicing."""
    return msgspec.structs.replace(one, splice=other.splice, unspliced_ports=other.unspliced_ports) == other


def _is_same(attached: Attached, links: Mapping[str, int]) -> bool:
    """Whether the veth is the one that was attached: an index isn't used again in a namespace's life."""
    return links.get(attached.endpoint.interface) == attached.ifindex


def _loaded_digest(root: Path) -> str:
    link = root / "digest"
    complete = all((root / "programs" / name).exists() for name in _PROGRAM_NAMES)
    return str(link.readlink()) if complete and link.is_symlink() else ""


async def _load(root: Path, names: dict[str, str], wanted: str) -> None:
    """Compile and pin beside what is there, then put the programs in place."""
    try:
        _prepare(root)
        await load(LoadRequest(pin_root=str(root), defines=names))
        _put_in_place(root, wanted)
    except OSError as error:
        raise KernelRefusedError(f"pin below {root}", error.errno or 0, "is it a bpffs, and are you root?") from error


def _prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if (root / "staging").exists():
        shutil.rmtree(root / "staging")


def _put_in_place(root: Path, wanted: str) -> None:
    (root / "programs").mkdir(exist_ok=True)
    (root / "digest").unlink(missing_ok=True)  # first: whoever dies in between must not pass for complete
    for name in _PROGRAM_NAMES:
        (root / "staging" / name).rename(root / "programs" / name)
    (root / "digest").symlink_to(wanted)  # bpffs has no regular files
    (root / "staging").rmdir()
