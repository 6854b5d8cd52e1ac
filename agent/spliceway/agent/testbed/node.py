"""A virtual node that is up, its pods, and running programs on them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import msgspec

from spliceway.agent.testbed import manifests, netns, processes
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.plan import Container, IPAddress

#: How long a program of a pod may take until it listens, in seconds.
LISTEN_TIMEOUT = 20.0


class Pod(msgspec.Struct, frozen=True):
    """A pod that is up, or a host outside the cluster (then `interface` and `node` are empty).

    `interface` is the node's end of its veth; `logs` the directory that its containers' output goes to.
    """

    namespace: str
    name: str
    node: str
    ips: tuple[str, ...]
    netns: Path
    cgroup: Path
    interface: str
    logs: Path

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """`ips` as addresses."""
        return tuple(map(ip_address, self.ips))

    def address(self, version: int = 4) -> IPAddress:
        """The first address of IP version 4 or 6. Raises TestbedError when it has none."""
        for address in self.addresses:
            if address.version == version:
                return address
        raise TestbedError(f"{self.key}: has no IPv{version} address")

    def spawn(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program in the pod: its namespace and its cgroup. `options` are Popen's.

        A testbed ends all programs of its pods in `down`; waiting for them is the caller's.
        """
        return processes.spawn(self.netns, self.cgroup, argv, self.environment(env), **options)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the pod to its end, see `processes.run`."""
        return processes.run(self.netns, self.cgroup, argv, self.environment(env), timeout, stdin)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of the pod's programs: names as in the downward API's usual examples."""
        return processes.environment({"POD_NAME": self.name, "POD_NAMESPACE": self.namespace, **(extra or {})})

    def set_rps(self, cpus: int, *, loopback: bool = False) -> None:
        """Steer what the pod receives to the CPUs of a bit mask, 0: none (see `netns.set_rps`)."""
        netns.call(self.netns, lambda: netns.set_rps(cpus, loopback=loopback))

    def start(self, container: Container) -> subprocess.Popen[bytes]:
        """Start a container's program, with its output in the log, and return at once."""
        with (self.logs / f"{self.namespace}_{self.name}_{container.name}.log").open("ab") as log:
            return self.spawn(container.argv, env=dict(container.env), stdout=log, stderr=log)

    def wait_listening(self, ports: Sequence[int], process: subprocess.Popen[Any] | None = None) -> None:
        """Return once every TCP port of `ports` is listened on in the pod.

        Raises TestbedError when `process`, which should do so, ends first, or after LISTEN_TIMEOUT.
        """
        deadline = time.monotonic() + LISTEN_TIMEOUT
        while missing := set(ports) - netns.call(self.netns, netns.listening_ports):
            text = f"{self.key}: nothing listens on TCP {', '.join(map(str, sorted(missing)))}"
            if process and process.poll() is not None:
                raise TestbedError(f"{text}: the program ended with status {process.returncode}; logs: {self.logs}")
            if time.monotonic() > deadline:
                raise TestbedError(f"{text} after {LISTEN_TIMEOUT:.0f} s; logs: {self.logs}")
            time.sleep(0.01)


class Cgroups(msgspec.Struct, frozen=True):
    """The node's cgroup2 directories: the agent's, the proxy's, and the parent of the pods' own."""

    agent: Path
    proxy: Path
    pods: Path


class NodeInfo(msgspec.Struct, frozen=True):
    """What there is of a node. `directory` has logs, state and manifests; `bpffs` is a mount of its own."""

    name: str
    number: int
    ips: tuple[str, ...]
    netns: Path
    cgroups: Cgroups
    directory: Path

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """`ips`, those of the uplink, as addresses."""
        return tuple(map(ip_address, self.ips))

    @property
    def bpffs(self) -> Path:
        """Mount point of the node's BPF file system."""
        return self.directory / "bpf"

    @property
    def manifests(self) -> Path:
        """Source directory of the agent: `pods/` and `policies/`."""
        return self.directory / "manifests"

    @property
    def policies(self) -> Path:
        """Where the agent reads policies."""
        return self.manifests / "policies"

    @property
    def state(self) -> Path:
        """State directory of the agent."""
        return self.directory / "state"

    @property
    def logs(self) -> Path:
        """Output of the agent and of the pods' containers."""
        return self.directory / "logs"


class Node:
    """A virtual node: `info` says what it consists of, `pods` is keyed by «namespace/name»."""

    def __init__(self, info: NodeInfo, pods: Mapping[str, Pod]) -> None:
        self.info = info
        self.pods = dict(pods)

    def __repr__(self) -> str:
        return f"<Node {self.info.name} {self.info.netns.name} pods={sorted(self.pods)}>"

    @property
    def name(self) -> str:
        """Name of the Kubernetes node."""
        return self.info.name

    def pod(self, name: str) -> Pod:
        """A pod by «namespace/name», or by name alone when that is unambiguous. Raises TestbedError."""
        return find_pod(name, self.pods)

    def spawn(self, pod: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a pod, see `Pod.spawn`."""
        return self.pod(pod).spawn(argv, **options)

    def run(self, pod: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in a pod to its end, see `Pod.run`."""
        return self.pod(pod).run(argv, **options)

    def spawn_on_node(
        self,
        argv: Sequence[str],
        cgroup: Literal["agent", "proxy"] = "agent",
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program in the node's namespace and the agent's or proxy's cgroup, with the caller's environment."""
        place: Path = getattr(self.info.cgroups, cgroup)
        return processes.spawn(self.info.netns, place, argv, {**os.environ, **(env or {})}, **options)

    def run_on_node(
        self,
        argv: Sequence[str],
        cgroup: Literal["agent", "proxy"] = "agent",
        *,
        timeout: float = 30.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node's own namespace to its end, see `processes.run`."""
        place: Path = getattr(self.info.cgroups, cgroup)
        return processes.run(self.info.netns, place, argv, os.environ, timeout, stdin)

    def set_rps(self, cpus: int) -> None:
        """Steer what the node receives to the CPUs of a bit mask, 0: none (see `netns.set_rps`)."""
        netns.call(self.info.netns, lambda: netns.set_rps(cpus))

    def write_policy(self, name: str, text: str) -> Path:
        """Put `policies/<name>.yaml` in place in one step (a rename), as `kubectl apply` would change it."""
        path = self.info.policies / f"{name}.yaml"
        manifests.write(path, text)
        return path

    def remove_policy(self, name: str) -> None:
        """Remove `policies/<name>.yaml`."""
        (self.info.policies / f"{name}.yaml").unlink()


def find_pod(name: str, pods: Mapping[str, Pod]) -> Pod:
    """A pod by «namespace/name», or by name alone when that is unambiguous. Raises TestbedError."""
    found = [pod for pod in pods.values() if name in (pod.key, pod.name)]
    if len(found) != 1:
        why = "several namespaces have one" if found else "there are " + (", ".join(sorted(pods)) or "none")
        raise TestbedError(f"pod {name}: {why}")
    return found[0]
