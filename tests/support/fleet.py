"""Agents without kernels, for what they tell the API server: real sources, inventories, engines and writers.

What is left out is the node: a table is in force as soon as it is made (or when the test says so), and pods are wired
as soon as they have an address (or when the test says so).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import yaml

from spliceway.agent.cni.side import CniStatus
from spliceway.agent.compiler import Compiler
from spliceway.agent.config import parse_config
from spliceway.agent.configsections import DEFAULT_KINDS
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import POLICY_KINDS
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.resources import RIGHTS, TAINT_RIGHTS, lease_rights
from spliceway.agent.policystatus.side import PolicyStatusSide
from spliceway.agent.provenance import PolicyState
from spliceway.agent.sources.events import Batch
from spliceway.agent.sources.kubernetes.resources import RESOURCES, rights
from spliceway.agent.sources.kubernetes.source import KubernetesSource
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.budget import Limits
from spliceway.policy.engine import Options
from spliceway.policy.model import Pod
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from support.agent import run
from support.helm import CHART
from support.kubeapi import KubeApi, Rule
from support.kubesource import CRDS, QUICK, ask, pod
from support.waiting import LIMIT

Json = dict[str, Any]
#: Times of a cluster, a hundredth or so of them.
FAST = Pacing(
    lease=2.0, deadline=1.5, retry=0.1, report=0.05, refresh=60.0, again=0.3, gather=0.05, stale=0.5, pause=(0.05, 0.5)
)
LEASE = ("kube-system", "spliceway-policy-status")
NAMES = ("n1", "n2", "n3")
#: One pod of `web` on n1 and n2, and another one on n3.
PODS = (
    pod("a", "10.0.0.1", node="n1", labels={"app": "web"}),
    pod("b", "10.0.0.2", node="n2", labels={"app": "web"}),
    pod("c", "10.0.0.3", node="n3", labels={"app": "db"}),
)
DEFINITIONS = [yaml.safe_load(file.read_text()) for file in sorted((CHART / "files").glob("crd-*.yaml"))]


class _Force:
    """In place of the reconciler: `held` keeps tables back."""

    def __init__(self) -> None:
        self.table: PolicyTable | None = None
        self.reached = self.submitted = 0
        self.held = False


class _Node:
    """In place of CNI, datapath and kill switch: all pods with addresses are wired but `unwired`, and attached."""

    def __init__(self, inventory: Inventory, name: str) -> None:
        self._inventory = inventory
        self._name = name
        self.unwired: set[str] = set()
        self.unattached: set[str] = set()
        self.on = False

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        found: list[LocalEndpoint] = []
        for name in self._inventory.names("Pod"):
            entry = self._inventory.entry(("Pod", name))
            assert entry is not None
            pod = entry.item
            if isinstance(pod, Pod) and pod.node == self._name and pod.addresses and name not in self.unwired:
                found.append(LocalEndpoint(name, f"v{len(found)}", Path("/"), pod.addresses))
        return tuple(found)

    def status(self) -> CniStatus:
        return CniStatus()

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        return endpoint if endpoint.name not in self.unattached else None


class FleetAgent:
    """One agent. `feed` it, or have it `follow` the double."""

    def __init__(
        self,
        node: str,
        kubeconfig: Path,
        *,
        pacing: Pacing = FAST,
        limits: Limits | None = None,
        enforcement: str = "enforce",
        taint: str = "",
        write: bool = True,
        rate: float = 500.0,
        kinds: Sequence[str] = DEFAULT_KINDS,
        istio: Json | None = None,
    ) -> None:
        document = {
            "istio": istio or {},
            "source": {"kubernetes": {"kubeconfig": str(kubeconfig)}},
            "node": {"name": node, "notReadyTaint": taint},
            "enforcement": enforcement,
            "policies": {"kinds": list(kinds)},
            "status": {"write": write, "namespace": LEASE[0], "lease": LEASE[1], "writesPerSecond": rate},
        }
        self.node = node
        self.config = parse_config(yaml.safe_dump(document), "agent.yaml")
        self.inventory = Inventory(node, kinds=kinds)
        self.compiler = Compiler(Options(node=node, limits=limits or Limits()), Numbering())
        self.side = PolicyStatusSide(self.config, self.inventory, pacing=pacing, timing=QUICK)
        self.force = _Force()
        self.kernel = _Node(self.inventory, node)
        self.missing: list[PolicyState] = []
        self._begun = False
        self._tasks: list[asyncio.Task[None]] = []
        self.side.use(self.force, self.compiler, self.kernel, self.kernel, self.kernel, lambda: self.missing)  # type: ignore[arg-type]

    def feed(self, batch: Batch) -> None:
        """As the composition root does."""
        changed = self.inventory.feed(batch)
        self.side.saw(batch)
        if self.inventory.synced and (changed or not self._begun):
            self._begun = True
            self.force.submitted += 1
            table = self.compiler.apply(self.inventory.changes(), self.force.submitted)
            if not self.force.held:
                self.force.table, self.force.reached = table, self.force.submitted
        if self._begun:
            self.side.asked(self.force.submitted)
            self.look()

    def look(self) -> None:
        """A pass has ended."""
        if not self.force.held and self.force.submitted:
            table = self.compiler.apply({}, self.force.submitted)
            self.force.table, self.force.reached = table, self.force.submitted
        self.side.passed(lambda: None)

    async def follow(self) -> None:
        """A source of its own."""
        kubernetes = self.config.source.kubernetes
        assert kubernetes is not None
        left_out = POLICY_KINDS - set(self.config.policies.kinds)
        kinds = {one.kind for one in RESOURCES} - left_out
        with KubernetesSource(
            self.node, kubeconfig=kubernetes.kubeconfig, kinds=kinds, timing=QUICK, wired=True
        ) as source:
            try:
                async for batch in source.batches():
                    self.feed(batch)
            finally:
                source.__exit__(None, None, None)
                await source.ended()

    def start(self, *, follow: bool = True) -> None:
        """Run it."""
        coroutines = [*self.side.tasks().values(), *([self.follow()] if follow else [])]
        self._tasks = [asyncio.create_task(one) for one in coroutines]

    async def stop(self) -> None:
        """As at SIGTERM."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    @property
    def leads(self) -> bool:
        """Whether it writes."""
        return self.side.status().leads


@contextlib.asynccontextmanager
async def fleet(agents: Sequence[FleetAgent]) -> AsyncIterator[None]:
    """These agents while they run."""
    for one in agents:
        one.start()
    try:
        yield
    finally:
        for one in agents:
            await one.stop()
        await asyncio.sleep(0.01)


def node(name: str, *, uid: str = "", taints: list[Json] | None = None) -> Json:
    """A Node object."""
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}, **({"uid": uid} if uid else {})}
    spec = {"taints": taints} if taints is not None else {}
    status = {"addresses": [{"type": "InternalIP", "address": f"192.0.2.{sum(name.encode()) % 250}"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status}


def cnp(name: str, app: str, *, namespace: str = "default", port: int | str = 80, **annotations: str) -> Json:
    """A CiliumNetworkPolicy about pods with that label."""
    rule = {"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}]}
    metadata: Json = {"name": name, "namespace": namespace, "annotations": annotations}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": metadata,
        "spec": {"endpointSelector": {"matchLabels": {"app": app}}, "ingress": [rule]},
    }


def status_in(api: KubeApi, name: str, kind: str = "PolicyStatus") -> Json:
    """The status of a status object; empty: there is none."""
    found = api.get("spliceway.io/v1alpha1", kind, name)
    return (found or {}).get("status") or {}


def brief(api: KubeApi, name: str, kind: str = "PolicyStatus") -> tuple[str, ...]:
    """Statuses of Valid, Applied, Refused with the reason of Applied, and applied/desired nodes."""
    status = status_in(api, name, kind)
    if not status:
        return ()
    found = {one["type"]: one for one in status["conditions"]}
    nodes = f"{status['nodes']['applied']}/{status['nodes']['desired']}"
    return (*(found[one]["status"] for one in ("Valid", "Applied", "Refused")), found["Applied"]["reason"], nodes)


def events(api: KubeApi) -> list[tuple[str, str, str]]:
    """(type, reason, name of what it is about)."""
    return [(one["type"], one["reason"], one["involvedObject"]["name"]) for one in api.all("v1", "Event")]


def written(api: KubeApi, what: str = "") -> list[tuple[str, str]]:
    """Method and path of every request that writes, but for the Lease's."""
    return [
        (method, path)
        for method, path, _query in api.requests
        if method != "GET" and "/leases" not in path and what in path
    ]


def all_rights(*more: Any) -> list[Rule]:
    """What the chart gives an agent that writes, and more."""
    lease = [{**one, "namespace": LEASE[0]} for one in lease_rights(LEASE[1])]
    return msgspec.convert([*rights(), *RIGHTS, *TAINT_RIGHTS, *lease, *more], list[Rule])


def kubeconfig_of(api: KubeApi, directory: Path, *more: Any) -> Path:
    """With a token of agents that have these rights."""
    api.rights(lambda one: one.token("secret", "agent"))
    api.rights(lambda one: one.allow("agent", all_rights(*more)))
    return api.kubeconfig(directory / "kubeconfig", token="secret")


async def told(
    api: KubeApi, name: str, wanted: tuple[str, ...], kind: str = "PolicyStatus", seconds: float = LIMIT
) -> None:
    """Wait for `brief` to be this."""
    found: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(seconds):
            while (found := await ask(brief, api, name, kind)) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        detail = await ask(status_in, api, name, kind)
        raise AssertionError(f"{name}: {found}, not {wanted}: {detail}") from None


def address(number: int) -> str:
    """Of a pod."""
    return str(ip_address(int(ip_address("10.1.0.0")) + number))


def with_fleet(
    tmp_path: Path,
    body: Callable[[KubeApi, Sequence[FleetAgent]], Awaitable[None]],
    *before: Any,
    nodes: Sequence[str] = NAMES,
    definitions: bool = True,
    more_rights: Sequence[Any] = (),
    **options: Any,
) -> None:
    """Run a test with an agent on each node, and their pods."""

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *(DEFINITIONS if definitions else ()), *map(node, nodes), *PODS, *before)
            kubeconfig = kubeconfig_of(api, tmp_path, *more_rights)
            agents = [FleetAgent(name, kubeconfig, **options) for name in nodes]
            async with fleet(agents):
                await body(api, agents)
                if definitions:
                    assert await ask(api.rights, lambda one: one.refused) == []

    run(main)
