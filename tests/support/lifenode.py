"""A node of a cluster through its whole life: it boots, loses power, and boots again with what was on its disk.

On disk are the agent's state and the CNI directories. All else goes with the power: namespaces, devices, bpffs,
cgroups, processes, sockets, and which addresses the base CNI has given. The API server's objects stay: they are another
machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.testbed import cgroups, netns
from spliceway.agent.testbed.testbed import Testbed
from support.clusternode import ClusterNode
from support.cninode import CniPod
from support.kubeapi import KubeApi
from support.libcni import PluginError
from support.lifeprober import NONE, Talk, Way
from support.node import pod_manifest
from support.waiting import until

#: A machine outside the node, whose addresses are those of pods elsewhere.
FAR = {4: "10.10.1.5", 6: "fd00:10:1::5"}
#: The bridge's, and where a process of the node listens.
GATEWAYS, NODE_PORT = {4: "10.240.1.129", 6: "fd00:240:1::1:1"}, 8080
ARTICLE, PRIVATE = "/articles/1", "/private"
VERSIONS = (4, 6)
TRY_AGAIN = 11
#: Programs of another version are compiled first; on a busy machine that alone takes minutes.
START_SECONDS = 600.0
#: The source tries again after 10 seconds at most.
LIMIT = 40.0


def lets_in(name: str, peer: str, namespace: str = "default") -> str:
    """A policy of the pods whose `app` is that name: only those of `peer` get in."""
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{app: {name}}}}}
  policyTypes: [Ingress]
  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}], ports: [{{port: 80}}]}}]
"""


def dials_nobody(name: str, namespace: str = "default") -> str:
    """A policy of the pods whose `app` is that name."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  endpointSelector: {{matchLabels: {{app: {name}}}}}
  egress: [{{toEndpoints: [{{matchLabels: {{app: nobody}}}}]}}]
"""


#: `api` lets in `good` alone, and that for articles alone, `db` lets in `good`; `bad` may dial nobody.
_API = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: good}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/articles/.*"}]}}]
"""
POLICIES = "---".join((_API, lets_in("db", "good"), dials_nobody("bad")))
#: Directories of the packages.
PACKAGES = ("agent", "policy", "bpf", "xds", "proxy")
_TESTS = Path(__file__).resolve().parents[1]


class LifeNode:
    """See the module. `site` is the node of this boot, `pods` those that are there all the time, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._disk, self._volatile = directory / "disk", directory / "run"
        self.state, self.ipam = self._disk / "state", self._disk / "ipam"
        self.logs = directory / "logs"
        for each in (self._disk, self.logs):
            each.mkdir()
        self.boots = 0
        self.site: ClusterNode
        self.testbed: Testbed
        self.pods: dict[str, CniPod] = {}
        self.source: Path | None = None
        self.first: set[str] = set()  # what the node had before there was an agent
        self._api: KubeApi | None = None
        self._on = contextlib.ExitStack()

    def boot(self) -> None:
        """Power on; no agent, and no pods."""
        self.boots += 1
        for each in (self._volatile, self.ipam):
            shutil.rmtree(each, ignore_errors=True)
        self._volatile.mkdir()
        far = pod_manifest("far", outside=True, addresses=tuple(FAR.values()))
        self.testbed = self._on.enter_context(Testbed.up([pod_manifest("idle"), far]))
        place = self.testbed.node.info.netns
        before = self._api
        self._api = self._on.enter_context(
            KubeApi(
                enter=lambda: netns.enter(place), port=before.port if before else 0, stored=before, bookmark_seconds=2.0
            )
        )
        old = self.site if before else None
        cni = {"socket": str(self._volatile / "cni.sock"), "timeout": 3}
        self.site = ClusterNode(self.testbed, self._disk, self._api, **cni)
        if old is not None:
            self.site._born = old._born  # who is younger is still told by it
        self.site.overrides = {
            "stateDir": str(self.state),
            "admin": {"socket": str(self._volatile / "agent.sock")},
            "splice": {"mode": "force"},  # without the self-test, which is another test's
            "flows": {"bufferSize": 256},  # full at once: what grows then is none of its
        }
        self.boot_id = str(uuid.uuid4())
        self._on.callback(self._keep_log, self.boots)
        self._on.callback(self.site.close)

    def listen(self) -> None:
        """A process of the node serves at all of its addresses."""
        options: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 4096}
        place = self.testbed.node.info.netns
        self._on.enter_context(netns.call(place, lambda: socket.create_server(("::", NODE_PORT), **options)))

    def power_off(self) -> None:
        """At once, as by pulling the plug."""
        if (agent := self.site.agent) is not None and agent.process.poll() is None:
            agent.kill()
        self._on.close()
        self.pods.clear()

    def close(self) -> None:
        """End everything."""
        self._on.close()

    def _keep_log(self, boot: int) -> None:
        file = self.testbed.node.info.logs / "agent.log"
        if file.exists():
            shutil.copy(file, self.logs / f"agent-{boot}.log")

    def start_agent(self) -> None:
        """Of the package at `source`, or this one; returns when all is in force."""
        wrap, module = ("env", f"PYTHONPATH={self._path()}"), ("support.lifeagent", self.boot_id)
        self.site.how = {"wrap": wrap, "module": module, "timeout": START_SECONDS}
        self.site.start()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`spliceway` on the node."""
        argv = [sys.executable, "-m", "support.lifeagent", self.boot_id, *arguments]
        argv = ["env", f"PYTHONPATH={self._path()}", *argv]
        return self.testbed.node.run_on_node(argv, timeout=60)

    def _path(self) -> str:
        search = [str(self.source / name) for name in PACKAGES] if self.source else []
        here = [str(Path(each).resolve()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
        return os.pathsep.join([*search, str(_TESTS), *here])

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """An agent starts meanwhile; it answers when this begins, and all is in force when it has ended."""
        failed: list[BaseException] = []

        def start() -> None:
            try:
                self.start_agent()
            except BaseException as error:
                failed.append(error)

        admin = self._volatile / "agent.sock"
        admin.unlink(missing_ok=True)
        thread = threading.Thread(target=start)
        thread.start()
        try:
            until(lambda: admin.exists() or failed, START_SECONDS)  # it may have to compile its programs first
            yield
        finally:
            thread.join()
        if failed:
            raise failed[0]

    def proxied(self) -> None:
        """Return when the proxy has taken over all HTTP rules: until then there is `no-listener` for them."""
        assert self.site.agent is not None
        self.site.agent.wait_in_force(LIMIT)

    @property
    def pid(self) -> int:
        """The agent's."""
        assert self.site.agent is not None
        return self.site.agent.process.pid

    # ---- pods ----

    def add(self, name: str, labels: Mapping[str, str], *, uid: str = "", **options: Any) -> CniPod:
        """A pod that stays: object (unless `uid` says that there is one), sandbox, address reported."""
        site = self.site
        pod = site.sandbox(name, uid=uid, **options) if uid else site.pod(name, labels, **options)
        if uid:
            added_at_last(pod)
        self.pods[name] = pod
        site.report(pod)
        return pod

    def ways(
        self, names: Sequence[str] = ("good", "other", "bad"), pods: Mapping[str, CniPod] | None = None
    ) -> list[list[Way]]:
        """What the policies say, by pod and IP version. `pods`: those that ask in place of the usual ones."""
        found = []
        for version in VERSIONS:
            api, db = (self.pods[name].address(version) for name in ("api", "db"))
            for name in names:
                rights: list[Any] = [("db", db, "/", 200), ("api", api, ARTICLE, 200), ("private", api, PRIVATE, 403)]
                if name != "good":
                    rights = [(*one[:3], NONE) for one in rights[:2]]
                asks = (pods or self.pods)[name]
                ways = [self.way(asks, f"{name}→{what} v{version}", *rest) for what, *rest in rights]
                if name == "bad":
                    gateway = (GATEWAYS[version], "/", NONE, NODE_PORT)
                    ways.append(self.way(asks, f"bad→node v{version}", *gateway))
                found.append(ways)
        return found

    def way(self, pod: str | CniPod, name: str, address: str, path: str, right: int, port: int = 80) -> Way:
        """From a pod, or from `far`."""
        if isinstance(pod, CniPod):
            place = pod.netns
        else:
            place = self.testbed.hosts["default/far"].netns if pod == "far" else self.pods[pod].netns
        return Way(name, place, address, path, right, port)

    def talk(self, pod: str, name: str, address: str, path: str = ARTICLE) -> Talk:
        """A connection for long, from one of `pods` or from `far`."""
        site = self.site
        if pod == "far":
            cgroup = self.testbed.hosts["default/far"].cgroup
        else:
            cgroup = cgroups.create(site.node.info.cgroups.pods / f"pod{self.pods[pod].uid}")
        return Talk(self.way(pod, name, address, path, 200), cgroup)

    def far(self, name: str, labels: Mapping[str, str], namespace: str = "default") -> dict[str, Any]:
        """The object of a pod elsewhere that has the addresses of `far`; it is in the double already."""
        metadata = {"name": name, "namespace": namespace, "labels": dict(labels), "uid": str(uuid.uuid4())}
        born = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(next(self.site._born)))
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**metadata, "creationTimestamp": born},
            "spec": {"nodeName": "elsewhere"},
            "status": {"phase": "Running", "podIPs": [{"ip": one} for one in FAR.values()]},
        }
        self.site.api.put(document)
        return document


def added_at_last(pod: CniPod) -> int:
    """As a kubelet does: it tries again until it works; how often it was told to."""
    deadline, tries = time.monotonic() + LIMIT, 0
    while True:
        try:
            pod.add()
        except PluginError as error:
            if error.code != TRY_AGAIN or time.monotonic() > deadline:
                raise
            tries += 1
            pod.delete()
        else:
            return tries


def died(site: ClusterNode, *pods: CniPod) -> None:
    """Sandboxes and objects go."""
    for pod in pods:
        pod.delete()
        pod.gone()
        if site.api.get("v1", "Pod", f"{pod.namespace}/{pod.name}") is not None:
            site.forget(pod.name, pod.namespace)
