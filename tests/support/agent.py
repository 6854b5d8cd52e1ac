"""Kernel and proxy in memory, for tests of the agent: they behave, and remember every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from spliceway.agent.control import Acceptance
from spliceway.agent.proxysupervisor import Draining, ProxyStatus
from spliceway.agent.spliceproof import Proof
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.selftest.report import Check, Result, SelfTestReport, Side
from spliceway.bpf.services import Applied, BackendRow, FrontendRow
from spliceway.bpf.types import (
    CtEntry,
    DatapathSettings,
    DatapathStatus,
    Hook,
    IPAddress,
    KernelFlow,
    Leg,
    LocalEndpoint,
    ReasonCount,
    SockEntry,
    SpliceClasses,
    SpliceCounters,
    SpliceState,
)
from spliceway.policy.lbmodel import Frontend, FrontendState
from spliceway.policy.model import Cluster
from spliceway.policy.parse import parse_text
from spliceway.policy.table import PolicyTable, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from support.waiting import LIMIT, until_async

NODE = "node1"
PROVED = Proof("gate", True, True)
until = until_async


def cluster_of(*texts: str) -> Cluster:
    """A cluster from YAML texts; every document must be good."""
    parsed = parse_text("\n---\n".join(texts), "test.yaml")
    assert not parsed.errors, [str(error) for error in parsed.errors]
    return Cluster().with_objects(parsed.objects)


def pod(name: str, address: str, *, node: str = NODE, wired: bool = True, **labels: str) -> str:
    """YAML of a Pod, by default one that is wired on this node."""
    shown = labels or {"app": name}
    wiring = f"{{spliceway.io/interface: lxc{name}, spliceway.io/netns: /run/netns/{name}}}" if wired else "{}"
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {shown}, annotations: {wiring}}}
spec: {{nodeName: {node}}}
status: {{podIPs: [{{ip: {address}}}]}}
"""


def policy(name: str, subject: str, *ports: int, peer: str = "client", http: Sequence[str] = ()) -> str:
    """YAML of a policy: `peer` may reach these TCP ports of `subject`, with HTTP rules for the paths in `http`."""
    rules = ", ".join(f"{{path: '{path}'}}" for path in http)
    listed = ", ".join(f"{{port: '{port}', protocol: TCP}}" for port in ports)
    extra = f", rules: {{http: [{rules}]}}" if http else ""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: {subject}}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]
    toPorts: [{{ports: [{listed}]{extra}}}]
"""


def endpoint(name: str, address: str) -> LocalEndpoint:
    """What the agent makes of `pod`."""
    return LocalEndpoint(f"default/{name}", f"lxc{name}", Path(f"/run/netns/{name}"), (ip_address(address),))


class MemoryProxy:
    """Accepts what is published at once, or when `answer` is called; `open` ports listen."""

    def __init__(self, journal: list[str], *, prompt: bool = True) -> None:
        self.journal = journal
        self.prompt = prompt
        self.rule_sets: dict[int, RuleSet] = {}
        self.ports: dict[int, int] = {}
        self.said: dict[int, Acceptance] = {}
        self.open: set[int] = set()
        self.refuse: dict[int, Acceptance] = {}

    def publish(self, rule_sets: Mapping[int, RuleSet], ports: Mapping[int, int]) -> None:
        self.journal.append(f"publish {sorted(rule_sets)}")
        assert len(set(ports.values())) == len(ports)
        for rule_set in rule_sets:
            if self.rule_sets.get(rule_set) != rule_sets[rule_set] or self.ports.get(rule_set) != ports[rule_set]:
                self.said[rule_set] = Acceptance.WAITING
        self.rule_sets, self.ports = dict(rule_sets), dict(ports)
        self.said = {key: value for key, value in self.said.items() if key in rule_sets}
        self.open &= set(ports.values())
        if self.prompt:
            self.answer()

    def answer(self) -> None:
        """Take over what was published, listen, and say so."""
        for rule_set, port in self.ports.items():
            self.said[rule_set] = self.refuse.get(port, Acceptance.ACCEPTED)
            if self.said[rule_set] is Acceptance.ACCEPTED:
                self.open.add(port)

    def die(self) -> None:
        """End, with all sockets."""
        self.open.clear()
        self.said = dict.fromkeys(self.ports, Acceptance.WAITING)

    async def listening(self) -> frozenset[int]:
        return frozenset(self.open)

    def acceptance(self, rule_set: int) -> Acceptance:
        return self.said.get(rule_set, Acceptance.WAITING)


class MemoryDatapath:
    """Holds what would be in the kernel. Checks invariant 3: what becomes a listener listens."""

    def __init__(self, journal: list[str], proxy: MemoryProxy | None = None) -> None:
        self.journal = journal
        self.proxy = proxy
        self.endpoints: tuple[LocalEndpoint, ...] = ()
        self.table: PolicyTable | None = None
        self.listeners: dict[int, int] = {}
        self.services: dict[Frontend, FrontendState] = {}
        self.service_addresses: dict[IPAddress, bool] = {}
        self.generation = 0
        self.room = dict.fromkeys(("endpoints", "ipcache", "classes", "rows", "listeners", "pairs"), 65_536)
        self.splice: SpliceClasses | None = None
        self.disabled = False
        self.unread = 0
        self.is_pressed = False
        self.fail: dict[str, str] = {}
        self.fails = 0
        self.flows: asyncio.Queue[KernelFlow] = asyncio.Queue()
        self.taken_over = False
        self.closed = False
        self.removed = False

    @property
    def limits(self) -> dict[str, int]:
        return self.room

    @property
    def proxy_map(self) -> int:
        return 77

    async def endpoints_moved(self) -> bool:
        return False

    def knows_endpoints(self) -> bool:
        return False

    async def set_served(self, addresses: frozenset[IPAddress]) -> None:
        self.served = addresses

    async def set_service_addresses(self, changes: Mapping[IPAddress, bool]) -> None:
        self.service_addresses.update(changes)

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        return endpoint if endpoint in self.endpoints else None

    async def set_endpoints(self, endpoints: Sequence[LocalEndpoint], *, rows: bool = True) -> None:
        self.journal.append(f"endpoints {[one.name for one in endpoints]}")
        self._maybe_fail("set_endpoints")
        self.endpoints = tuple(endpoints)

    async def swept(self, seconds: float) -> None:
        assert seconds > 0
        self.journal.append("swept")

    async def apply(self, table: PolicyTable, live: Callable[[], None] = lambda: None) -> int:
        self.journal.append(f"apply {table.revision}")
        self._maybe_fail("apply")
        self.table = table
        self.generation += 1
        live()
        return self.generation

    async def set_listeners(self, ports: Mapping[int, int]) -> None:
        self.journal.append(f"listeners {sorted(ports)}")
        self._maybe_fail("set_listeners")
        if self.proxy is not None:
            assert set(ports.values()) <= self.proxy.open
        self.listeners = dict(ports)

    async def set_services(self, changes: Mapping[Frontend, FrontendState | None]) -> Applied:
        told = sorted(
            f"{key}={', '.join(map(str, state.backends)) if state else None}" for key, state in changes.items()
        )
        self.journal.append(f"services {told}")
        self._maybe_fail("set_services")
        for key, state in changes.items():
            self.services.pop(key, None)
            if state is not None:
                self.services[key] = state
        return Applied(len(changes), 0, 0, 0, False)

    async def held_services(self) -> list[FrontendRow]:
        return [
            FrontendRow(
                str(key.address),
                key.port,
                key.protocol.name,
                1,
                state.affinity_seconds,
                tuple(BackendRow(place, str(one.address), one.port) for place, one in enumerate(state.backends)),
                state.service,
                state.port_name,
                state.kind,
            )
            for key, state in self.services.items()
        ]

    async def set_disabled(self, disabled: bool) -> None:
        self.journal.append(f"disabled {disabled}")
        self._maybe_fail("set_disabled")
        self.disabled = disabled

    def is_disabled(self) -> bool:
        return self.disabled

    async def set_splice(self, classes: SpliceClasses) -> None:
        self._maybe_fail("set_splice")
        self.splice = classes

    async def measure(self) -> int:
        self._maybe_fail("measure")
        return self.unread

    def pressed(self) -> bool:
        self._maybe_fail("pressed")
        return self.is_pressed

    async def events(self) -> AsyncIterator[KernelFlow]:
        while True:
            yield await self.flows.get()

    def conntrack(self) -> list[CtEntry]:
        return []

    def socks(self) -> list[SockEntry]:
        client, server = ip_address("10.240.1.10"), ip_address("10.240.1.11")
        return [SockEntry(client, 40000, server, 80, Leg.DOWNSTREAM, SpliceState.SPLICED, "", 1, 10, 1, 20, 2)]

    def reasons(self) -> list[ReasonCount]:
        return [ReasonCount(Hook.FROM_POD, Verdict.DENY, Reason.DEFAULT_DENY, 7, 420)]

    def splice_counters(self) -> SpliceCounters:
        return SpliceCounters(1000, 10, 50, 5, 3, 2, 1, by_why={"sent-first": 2, "off": 0})

    def dump_policy(self) -> list[dict[str, object]]:
        return [{"policy": 1, "verdict": "allow"}]

    def dump_ipcache(self) -> list[dict[str, object]]:
        return [{"prefix": "0.0.0.0/0", "identity": 9}]

    def status(self) -> DatapathStatus:
        return DatapathStatus(1, self.generation, self.taken_over, {}, (), 4, ())

    async def close(self) -> None:
        self.closed = True

    async def remove(self) -> None:
        self.removed = True

    def _maybe_fail(self, what: str) -> None:
        if reason := self.fail.get(what):
            self.fails += 1
            raise DatapathError(reason)


def report(*, clients: bool = True, servers: bool = True, why: str = "", error: str = "") -> SelfTestReport:
    """What a self-test said that allows these classes."""
    side = None if clients and servers else Side.CLIENTS if servers else Side.SERVERS
    bad = (Check("order", 1, Result.BAD, "bytes overtook others", (side,)),) if side else ()
    return SelfTestReport(
        kernel="6.18.0",
        version="#1",
        boot="b",
        programs="p",
        source="s",
        time=0.0,
        seconds=1.5,
        checks=() if error else (Check("fin", 5, Result.OK, "every byte came"), *bad),
        clients=clients,
        servers=servers,
        why=why,
        error=error,
    )


class MemoryEvidence:
    """What is known of a kernel; the self-test ends when `answer` has its report."""

    def __init__(self, kept: SelfTestReport | None = None, *, gate: Proof = PROVED, unmeasured: str = "") -> None:
        self._kept, self._gate, self._unmeasured = kept, gate, unmeasured
        self.runs = 0
        self.answer: asyncio.Future[SelfTestReport] | None = None

    def gate(self, _fixed: Collection[str]) -> Proof:
        return self._gate

    def unmeasured(self) -> str:
        return self._unmeasured

    def kept(self, _directory: Path) -> SelfTestReport | None:
        return self._kept

    async def self_test(self, _settings: DatapathSettings, _directory: Path) -> SelfTestReport:
        self.runs += 1
        assert self.answer is not None
        return await self.answer


class MemoryProxyProcess:
    """A proxy process that runs and never connects."""

    def __init__(self, on_exit: Callable[[str], None]) -> None:
        self.on_exit = on_exit
        self.started = False
        self.stopped = False

    async def start(self, socks: int = 0) -> None:
        self.started, self.socks = True, socks

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped = True

    def status(self) -> ProxyStatus:
        return ProxyStatus("embedded", self.started, 1, "0.1.0", 2, 0.0, False, 0, "", (), 3, (Draining(7, 0.0),))

    async def log_share(self, millionths: int) -> None:
        self.share = millionths

    async def logs_written(self) -> tuple[str, int]:
        return "1", 0


def run(body: Callable[[], Any], timeout: float = 2 * LIMIT) -> Any:
    """Run an async test function without arguments; it must end within `timeout` seconds."""

    async def bounded() -> Any:
        async with asyncio.timeout(timeout):
            return await body()

    return asyncio.run(bounded())
