"""A virtual node whose pods come by a CNI chain: bridge, portmap and ours, driven as a runtime drives them."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from spliceway.agent.testbed import cgroups, manifests, netns, processes
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.linkparts import quiet_ipv6
from spliceway.agent.testbed.testbed import Testbed
from support.libcni import Runtime, arguments
from support.node import SERVER, pod_manifest
from support.waiting import until

#: Debian's containernetworking-plugins.
DEBIAN = Path("/usr/lib/cni")
#: In the node's prefixes, apart from what the testbed gives.
SUBNETS = ("10.240.1.128/25", "fd00:240:1::1:0/112")
NAME = "spliceway-cni"


def bridge(state: Path, *, ranges: Any = None, version: str = "1.0.0") -> dict[str, Any]:
    """The base CNI's list."""
    ipam = {
        "type": "host-local",
        "dataDir": str(state),
        "ranges": ranges or [[{"subnet": subnet}] for subnet in SUBNETS],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    first = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "ipam": ipam}
    second = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": version, "name": "pods", "plugins": [first, second]}


class CniPod:
    """A pod's sandbox: its namespace, and what the runtime knows it by."""

    def __init__(self, site: CniNode, namespace: str, name: str, container: str, uid: str) -> None:
        self.site, self.namespace, self.name, self.container, self.uid = site, namespace, name, container, uid
        node = site.node.info
        self.netns = node.netns.with_name(f"{node.netns.name}-{container}")
        netns.create(self.netns, quiet_ipv6)
        self.result: dict[str, Any] = {}

    @property
    def args(self) -> str:
        """CNI_ARGS."""
        return arguments(self.namespace, self.name, self.uid, self.container)

    def add(self) -> dict[str, Any]:
        """As `Runtime.add`."""
        self.result = self.site.runtime.add(self.container, self.netns, self.args)
        return self.result

    def check(self) -> None:
        """As `Runtime.check`."""
        self.site.runtime.check(self.container, self.netns, self.args)

    def delete(self) -> None:
        """As `Runtime.delete`."""
        self.site.runtime.delete(self.container, self.netns, self.args)

    def address(self, version: int = 4) -> str:
        """One that the runtime was told."""
        found = (ip_interface(one["address"]).ip for one in self.result["ips"])
        return str(next(one for one in found if one.version == version))

    def dials(self, address: str, port: int = 80, seconds: float = 0.5) -> bool:
        """Whether a connection comes about, begun at once."""

        def dial() -> bool:
            try:
                socket.create_connection((address, port), seconds).close()
            except OSError:
                return False
            return True

        return netns.call(self.netns, dial)

    def gone(self) -> None:
        """The sandbox ends."""
        netns.delete(self.netns)


class CniNode:
    """The node, the runtime, and an agent when it is started."""

    def __init__(self, testbed: Testbed, directory: Path, **cni: Any) -> None:
        self.testbed, self.node = testbed, testbed.node
        self.conf_dir, self.bin_dir = directory / "net.d", directory / "bin"
        for each in (self.conf_dir, self.bin_dir):
            each.mkdir(exist_ok=True)
        self.socket = self.node.info.state / "cni.sock"
        self.cni = {
            "enabled": True,
            "socket": str(self.socket),
            "confDir": str(self.conf_dir),
            "binDir": str(self.bin_dir),
            "timeout": 10,
            **cni,
        }
        self.runtime = Runtime(self.node.info.netns, self.conf_dir, (self.bin_dir, DEBIAN))
        self.agent: AgentProcess | None = None
        self.how: dict[str, Any] = {}  # for `start_agent`
        self._state = directory / "ipam"
        self._containers = itertools.count(1)
        self._pods: list[CniPod] = []
        self._servers: list[subprocess.Popen[Any]] = []
        if not any(self.conf_dir.iterdir()):  # a node that has booted again has it
            self.write_conf(bridge(self._state))

    def write_conf(self, conf: Mapping[str, Any], name: str = "10-pods.conflist") -> None:
        """As the base CNI's installer does."""
        manifests.write(self.conf_dir / name, json.dumps(conf))

    def start(self, **overrides: Any) -> AgentProcess:
        """An agent; returns when its policy is in force and the plugin is in the chain."""
        self.agent = start_agent(self.node, {**self.config(), "cni": {**self.cni, **overrides}}, **self.how)
        self.wait_chained()
        return self.agent

    def config(self) -> dict[str, Any]:
        """What else the agent's configuration has."""
        return {"splice": {"mode": "off"}}

    def wait_chained(self) -> None:
        """Return when the plugin is in the chain."""
        until(lambda: NAME in [each["type"] for each in self.runtime.conf()["plugins"]])

    def status(self) -> dict[str, Any]:
        """What `status` says of CNI."""
        assert self.agent is not None
        found: dict[str, Any] = self.agent.client.get("status")["cni"]
        return found

    def describe(
        self, name: str, labels: Mapping[str, str], *, namespace: str = "default", uid: str = "", **status: Any
    ) -> None:
        """The Pod object, as the API server has it when the runtime begins: without an address."""
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": dict(labels), **({"uid": uid} if uid else {})},
            "spec": {"nodeName": self.node.name, "containers": [{"name": "main"}]},
            "status": status,
        }
        manifests.write(self._file(namespace, name), manifests.dump([document]))

    def serve(self, name: str, labels: Mapping[str, str]) -> CniPod:
        """A pod that serves HTTP on TCP 80, both families."""
        self.describe(name, labels)
        pod = self.sandbox(name)
        pod.add()
        self.listen(pod)
        return pod

    def listen(self, pod: CniPod) -> None:
        """Serve HTTP on TCP 80 in a pod, in a cgroup as the kubelet names it."""
        cgroup = cgroups.create(self.node.info.cgroups.pods / f"pod{pod.uid or pod.name}")
        argv = [sys.executable, *SERVER[1:], "--name", pod.name]
        self._servers.append(processes.spawn(pod.netns, cgroup, argv, processes.environment()))
        until(lambda: 80 in netns.call(pod.netns, netns.listening_ports))

    def describe_far(self, name: str, labels: Mapping[str, str], address: str) -> None:
        """A Pod object of another node."""
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": dict(labels)},
            "spec": {"nodeName": "elsewhere"},
            "status": {"podIPs": [{"ip": address}]},
        }
        manifests.write(self._file("default", name), manifests.dump([document]))

    def forget(self, name: str, namespace: str = "default") -> None:
        """The Pod object goes."""
        self._file(namespace, name).unlink(missing_ok=True)

    def sandbox(self, name: str, *, namespace: str = "default", uid: str = "") -> CniPod:
        """A new sandbox of that pod, not wired yet."""
        pod = CniPod(self, namespace, name, f"c{next(self._containers)}", uid)
        self._pods.append(pod)
        return pod

    def policy(self, name: str, text: str) -> None:
        """Put a policy in place."""
        self.node.write_policy(name, text)

    def identity(self, address: str) -> list[str]:
        """Labels of whom the kernel takes the packets of an address for; empty: of nobody it knows."""
        assert self.agent is not None
        labels: list[str] = []
        for one in self.agent.client.get("identities"):
            if any(prefix.split("/")[0] == address for prefix in one["prefixes"]):
                labels += one["labels"]
        return labels

    def close(self) -> None:
        """End everything."""
        if self.agent is not None and self.agent.process.poll() is None:
            self.agent.stop()
        for server in self._servers:
            server.kill()
            server.wait(10)
        for pod in self._pods:
            netns.delete(pod.netns)

    def _file(self, namespace: str, name: str) -> Path:
        return self.node.info.manifests / "pods" / f"pod-{namespace}_{name}.yaml"


@contextlib.contextmanager
def cni_node(directory: Path, **cni: Any) -> Iterator[CniNode]:
    """A node without an agent yet; the pod `idle` is none of the chain's."""
    with Testbed.up([pod_manifest("idle")]) as testbed:
        site = CniNode(testbed, directory, **cni)
        try:
            yield site
        finally:
            site.close()
