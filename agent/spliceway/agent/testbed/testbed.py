"""A testbed: a fabric, the nodes on it with their pods, and the hosts outside the cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from spliceway.agent.testbed import build, cgroups, fabric, manifests, netns, resolve, runs, wiring
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.manifests import Manifest, Object
from spliceway.agent.testbed.node import Cgroups, Node, NodeInfo, Pod, find_pod
from spliceway.agent.testbed.plan import IPAddress, NodePlan, Plan, PodPlan, make_plan, plan_pod
from spliceway.agent.testbed.profiles import Profile, check
from spliceway.agent.testbed.rights import missing_rights
from spliceway.agent.testbed.services import Service, ports_on, services_of
from spliceway.agent.testbed.slices import slices_of
from spliceway.agent.testbed.syscalls import mount


class Record(msgspec.Struct, frozen=True):
    """What other processes need to know of a running testbed: `testbed.json` in its directory."""

    nodes: tuple[NodeInfo, ...]
    pods: tuple[Pod, ...]
    hosts: tuple[Pod, ...]


class Testbed:
    """All of one run. `nodes` in the order of their numbers; `hosts` are those outside the cluster."""

    __test__ = False  # pytest: not a test class

    def __init__(self, run: runs.Run, plan: Plan, profile: Profile) -> None:
        self.run_id = run.id
        self.profile = profile
        self.nodes: list[Node] = []
        self.hosts: dict[str, Pod] = {}
        self._run = run
        self._plans = {node.name: node for node in plan.nodes}
        self._pod_plans = {pod.key: pod for pod in (*plan.pods, *plan.hosts)}
        self._processes: list[subprocess.Popen[Any]] = []
        self._cgroup = Path()
        self._described: tuple[Manifest, ...] = ()

    def __repr__(self) -> str:
        return f"<Testbed {self.run_id} nodes={[node.name for node in self.nodes]} hosts={sorted(self.hosts)}>"

    @classmethod
    def up(
        cls,
        sources: Iterable[Path | Object],
        *,
        policies: Iterable[Path] = (),
        keep: bool = False,
        profile: Profile | None = None,
    ) -> Testbed:
        """Build a testbed from manifests: YAML files, directories of them, or ready documents.

        `policies` are YAML files or directories that the agents will read; they are copied. `keep`: leave it up when
        this process ends; `profile`: how its nodes are built. What dead runs left is swept first. Returns when every
        container's ports are listened on.
        Raises TestbedError, and then nothing is left behind.
        """
        profile = profile or Profile()
        check(profile)
        plan = make_plan(manifests.load(sources))
        files = _policy_files(policies)
        if missing := missing_rights():
            raise TestbedError(f"virtual nodes can't be built here: {missing}")
        runs.sweep()
        testbed = cls(runs.begin(), plan, profile)
        try:
            testbed._build(plan, files, manifests.described(files))
        except BaseException:
            testbed.down()
            raise
        if keep:
            testbed.keep()
        return testbed

    @property
    def node(self) -> Node:
        """The first node."""
        return self.nodes[0]

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self._run.path

    def pod(self, name: str) -> Pod:
        """A pod of any node, or a host outside, by «namespace/name» or an unambiguous name. Raises TestbedError."""
        return find_pod(name, {**{key: pod for node in self.nodes for key, pod in node.pods.items()}, **self.hosts})

    def spawn(self, pod: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a pod or host, see `Pod.spawn`."""
        return self.pod(pod).spawn(argv, **options)

    def run(self, pod: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod or host to its end, see `Pod.run`."""
        return self.pod(pod).run(argv, **options)

    def add_pod(self, document: Object) -> Pod:
        """Bring up one more pod: its manifest is there before its first program starts. Raises TestbedError."""
        manifest = manifests.load([document])[0]
        plan = plan_pod(manifest, self._plans, self._pod_plans.values())
        if plan.outside:
            raise TestbedError(f"{plan.key}: hosts outside can't be added later")
        self._pod_plans[plan.key] = plan
        pod = self._create_pod(plan)
        self._start([(plan, pod)])
        self._write_slices()
        self._save()
        return pod

    def remove_pod(self, name: str) -> None:
        """Take a pod down as a cluster does: programs, then interface, then the object. Raises TestbedError."""
        pod = self.pod(name)
        node = self._node(pod.node)
        cgroups.remove(pod.cgroup)
        wiring.delete_pod(pod.interface, node.info.netns)
        netns.delete(pod.netns)
        plan = self._pod_plans.pop(pod.key)
        self._write_slices()
        build.forget_pod(
            self.profile, plan, node.info.netns, [one.interface for one in node.pods.values() if one is not pod]
        )
        for each in self.nodes:
            _pod_file(each, plan).unlink()
        del node.pods[pod.key]
        self._save()

    def set_services(self, services: Iterable[Service]) -> None:
        """Have these Services, and no others, translated by every node's kube-proxy rules. Raises TestbedError."""
        found = tuple(services)
        pods = [self._pod_plans[key] for node in self.nodes for key in node.pods]
        for node in self.nodes:
            build.translate(self.profile, node.info.netns, ports_on(node.name, found, pods))

    def check_sources(self, registered: Literal["nodes", "pods", "any"]) -> None:
        """Have the fabric drop what a node sends with a source address that is not registered for that interface.

        `nodes`: these are the nodes' own addresses; `pods`: their pods', too; `any`: nothing is checked any more.
        Raises TestbedError.
        """
        homes = [self._pod_plans[key] for node in self.nodes for key in node.pods] if registered == "pods" else []
        ports: dict[str, list[IPAddress]] = {}
        for plan in self._plans.values() if registered != "any" else ():
            ports |= build.fabric_ports(self.profile, plan, [pod for pod in homes if pod.node == plan.name])
        fabric.check_sources(self._run.netns("fabric"), ports)

    def narrow(self, mtu: int) -> None:
        """Route pods' packets between nodes by the fabric, which takes so many bytes at once. Raises TestbedError."""
        plans = [(self._plans[node.name], node.info.netns) for node in self.nodes]
        fabric.narrow(self._run.netns("fabric"), plans, mtu)

    def set_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Give a pod other labels, in its manifest on every node. Raises TestbedError."""
        self._set_metadata(name, "labels", labels)

    def set_annotations(self, name: str, annotations: Mapping[str, str]) -> None:
        """Give a pod other annotations, beside those of its wiring, on every node. Raises TestbedError."""
        self._set_metadata(name, "annotations", annotations)

    def _set_metadata(self, name: str, field: str, values: Mapping[str, str]) -> None:
        pod = self.pod(name)
        plan = self._pod_plans[pod.key]
        metadata = {**plan.document["metadata"], field: dict(values)}
        plan = msgspec.structs.replace(plan, document={**plan.document, "metadata": metadata})
        self._pod_plans[pod.key] = plan
        self._write_pod(plan, pod)
        self._write_slices()

    def keep(self) -> None:
        """Leave the testbed up when this process ends; `testbed down` ends it."""
        self._run.keep()

    def detach(self) -> None:
        """Let go of a kept testbed: its processes go on without this one."""
        self._run.release()

    def down(self) -> None:
        """Take everything down, whatever there is of it. Can be called again.

        Raises TestbedError when something can't be removed or a program of a pod does not end.
        """
        if self._run.path.is_dir():
            runs.tear_down(self.run_id)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                raise TestbedError(f"{self.run_id}: process {process.pid} of a pod has left its cgroup") from None
        self._processes.clear()
        self._run.release()

    def __enter__(self) -> Testbed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run.kept:
            self._run.release()
        else:
            self.down()

    def _build(self, plan: Plan, policies: Sequence[Path], described: Sequence[Manifest]) -> None:
        self._cgroup = cgroups.create(self._run.cgroup())
        place = self._run.netns("fabric")
        wiring.create_fabric(place)
        for node in plan.nodes:
            self.nodes.append(self._create_node(node, place))
        for node in plan.nodes:
            others = [other for other in plan.nodes if other is not node]
            build.join_nodes(self.profile, self._run.netns(node.name), node, others)
        for namespace in plan.namespaces:
            self._write(f"namespace-{namespace['metadata']['name']}", resolve.namespace(namespace))
        for node in plan.nodes:
            self._write(f"node-{node.name}", resolve.node(node))
        for host in plan.hosts:
            self.hosts[host.key] = self._create_host(host, plan.nodes, place)
        pods = [(pod, self._create_pod(pod)) for pod in plan.pods]
        if self.profile.kube_proxy != "none":
            self.set_services(services_of(plan, described))
        self._described = (*plan.policies, *described)
        self._write_slices()
        for each in self.nodes:
            for manifest in plan.policies:
                each.write_policy(
                    f"{manifest.kind}-{manifest.namespace}-{manifest.name}".lower(), manifests.dump([manifest.document])
                )
            for file in policies:
                shutil.copyfile(file, each.info.policies / file.name)
        self._start([*((host, self.hosts[host.key]) for host in plan.hosts), *pods])
        self._save()

    def _write_slices(self) -> None:
        """As a cluster's controller: what Services with selectors lead to, on every node."""
        for slug, documents in slices_of(self._described, list(self._pod_plans.values())).items():
            for node in self.nodes:
                manifests.write(node.info.manifests / "pods" / f"slices-{slug}.yaml", manifests.dump(documents))

    def _create_node(self, plan: NodePlan, fabric: Path) -> Node:
        root = self._cgroup / plan.name
        info = NodeInfo(
            name=plan.name,
            number=plan.number,
            ips=tuple(map(str, plan.addresses)),
            netns=self._run.netns(plan.name),
            cgroups=Cgroups(agent=root / "agent", proxy=root / "proxy", pods=root / "pods"),
            directory=self.directory / plan.name,
        )
        for directory in (info.bpffs, info.manifests / "pods", info.policies, info.state, info.logs):
            directory.mkdir(parents=True)
        for cgroup in (info.cgroups.agent, info.cgroups.proxy, info.cgroups.pods):
            cgroups.create(cgroup)
        try:
            mount("bpf", info.bpffs, "bpf")
        except OSError as error:
            raise TestbedError(
                f"{info.bpffs}: can't mount a BPF file system: {error.strerror}; "
                "the kernel needs CONFIG_BPF_SYSCALL and the user CAP_SYS_ADMIN"
            ) from error
        build.create_node(self.profile, info.netns, plan, fabric)
        return Node(info, {})

    def _create_host(self, plan: PodPlan, nodes: Sequence[NodePlan], fabric: Path) -> Pod:
        host = self._pod(plan, interface="", cgroup=self._cgroup / "outside" / plan.slug, logs=self.directory / "logs")
        host.logs.mkdir(exist_ok=True)
        wiring.create_host(host.netns, plan, fabric)
        wiring.route_to_nodes(host.netns, list(nodes))
        for node in self.nodes:
            wiring.route_to_host(node.info.netns, plan)
        return host

    def _create_pod(self, plan: PodPlan) -> Pod:
        node = self._node(plan.node)
        cgroup = node.info.cgroups.pods / plan.slug
        pod = self._pod(plan, interface=self.profile.interface_name(plan), cgroup=cgroup, logs=node.info.logs)
        others = [one.interface for one in node.pods.values()]
        home = self._plans[plan.node]
        build.create_pod(self.profile, pod.netns, plan, home, node.info.netns, pod.interface, others)
        node.pods[pod.key] = pod
        self._write_pod(plan, pod)
        return pod

    def _write_pod(self, plan: PodPlan, pod: Pod) -> None:
        for node in self.nodes:
            local = node.name == plan.node
            document = resolve.pod(plan, self._plans[plan.node], pod.interface, pod.netns, local=local)
            manifests.write(_pod_file(node, plan), manifests.dump([document]))

    def _pod(self, plan: PodPlan, *, interface: str, cgroup: Path, logs: Path) -> Pod:
        return Pod(
            namespace=plan.namespace,
            name=plan.name,
            node=plan.node,
            ips=tuple(map(str, plan.addresses)),
            netns=self._run.netns(plan.slug),
            cgroup=cgroups.create(cgroup),
            interface=interface,
            logs=logs,
        )

    def _start(self, pods: Sequence[tuple[PodPlan, Pod]]) -> None:
        """Start all containers, then wait for all: they start side by side."""
        started = [
            (pod, container, pod.start(container))
            for plan, pod in pods
            for container in plan.containers
            if container.argv
        ]
        self._processes += [process for _, _, process in started]
        for pod, container, process in started:
            pod.wait_listening(container.ports, process)

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def _write(self, name: str, document: Object) -> None:
        for node in self.nodes:
            manifests.write(node.info.manifests / "pods" / f"{name}.yaml", manifests.dump([document]))

    def _save(self) -> None:
        record = Record(
            nodes=tuple(node.info for node in self.nodes),
            pods=tuple(pod for node in self.nodes for pod in node.pods.values()),
            hosts=tuple(self.hosts.values()),
        )
        manifests.write(self.directory / "testbed.json", msgspec.json.encode(record, enc_hook=str).decode())


def load_record(run_id: str) -> Record:
    """What a running testbed consists of, for other processes. Raises TestbedError when there is no such run."""
    path = runs.DIRECTORY / run_id / "testbed.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record, dec_hook=_decode)
    except FileNotFoundError:
        raise TestbedError(f"{run_id}: no such testbed; `spliceway testbed status` lists them") from None
    except msgspec.DecodeError as error:
        raise TestbedError(f"{path}: {error}") from error


def _decode(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value


def _pod_file(node: Node, plan: PodPlan) -> Path:
    return node.info.manifests / "pods" / f"pod-{plan.slug}.yaml"


def _policy_files(sources: Iterable[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for source in sources:
        for file in manifests.files(source):
            if not file.is_file():
                raise TestbedError(f"{file}: no such policy file")
            if file.name in found:
                raise TestbedError(f"{file}: {found[file.name]} has the same name")
            found[file.name] = file
    return list(found.values())
