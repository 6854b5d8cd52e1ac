"""A virtual node of a cluster: an API server's double says what there is, and its pods come by a CNI chain.

Pods are made as in a cluster: the object first, with a uid and without an address; then the sandbox and ADD; then the
kubelet reports the address. Nothing of ours is written at an object.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.testbed import Testbed
from support.cninode import CniNode, CniPod
from support.kubeapi import KubeApi
from support.kubesource import CRDS
from support.node import pod_manifest
from support.waiting import until

#: The kubelet's, at the object that stands for a static pod.
STATIC, MIRROR = "kubernetes.io/config.hash", "kubernetes.io/config.mirror"
#: When the first pod was made, seconds since 1970; each further one is a second younger.
_BORN = 1_780_000_000


class ClusterNode(CniNode):
    """See the module. `api` is the double; it serves on the node's loopback."""

    def __init__(self, testbed: Testbed, directory: Path, api: KubeApi, **cni: Any) -> None:
        super().__init__(testbed, directory, **cni)
        self.api = api
        self.overrides: dict[str, Any] = {}
        self._kubeconfig = api.kubeconfig(directory / "kubeconfig")
        self._born = itertools.count(_BORN)
        api.put(*CRDS)
        for file in sorted(self.node.info.manifests.rglob("*.yaml")):
            for document in yaml.safe_load_all(file.read_text()):
                if document["kind"] != "Pod":
                    api.put(document)

    def config(self) -> dict[str, Any]:
        """With the double as the source, and `overrides`."""
        source = {"directory": None, "kubernetes": {"kubeconfig": str(self._kubeconfig)}}
        return {**super().config(), "source": source, **self.overrides}

    def status(self) -> dict[str, Any]:
        """What `status` says of CNI."""
        found: dict[str, Any] = self.told()["cni"]
        return found

    def told(self) -> dict[str, Any]:
        """All that `status` says."""
        assert self.agent is not None
        found: dict[str, Any] = self.agent.client.get("status")
        return found

    def settled(self) -> None:
        """Return when what the double has now is in force: a pod elsewhere that goes by is the mark."""
        name = f"mark-{uuid.uuid4().hex[:8]}"
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"mark": name}},
            "spec": {"nodeName": "elsewhere"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.240.9.9"}]},
        }
        self.api.put(document)
        until(lambda: any(name in label for label in self.identity("10.240.9.9")))
        self.api.drop("v1", "Pod", f"default/{name}")
        until(lambda: not self.identity("10.240.9.9"))

    def describe(
        self, name: str, labels: Mapping[str, str], *, namespace: str = "default", uid: str = "", **status: Any
    ) -> None:
        """Create or replace the Pod object, with a new uid when none is given."""
        self.create(name, labels, namespace=namespace, uid=uid, **status)

    def create(
        self,
        name: str,
        labels: Mapping[str, str],
        *,
        namespace: str = "default",
        uid: str = "",
        annotations: Mapping[str, str] | None = None,
        **status: Any,
    ) -> str:
        """A new Pod object that is scheduled to this node; its uid, which a real server chooses itself."""
        uid = uid or str(uuid.uuid4())
        born = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(next(self._born)))
        metadata = {"name": name, "namespace": namespace, "labels": dict(labels), "uid": uid, "creationTimestamp": born}
        if annotations:
            metadata["annotations"] = dict(annotations)
        spec = {"nodeName": self.node.name, "serviceAccountName": "default", "containers": [{"name": "main"}]}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.api.put({**document, "status": {"phase": "Pending", **status}})
        found = self.api.get("v1", "Pod", f"{namespace}/{name}")
        assert found is not None
        return str(found["metadata"]["uid"])

    def pod(self, name: str, labels: Mapping[str, str], **options: Any) -> CniPod:
        """Object, sandbox, ADD; no address in its status so far."""
        uid = self.create(name, labels, **options)
        pod = self.sandbox(name, namespace=options.get("namespace", "default"), uid=uid)
        pod.add()
        return pod

    def report(self, pod: CniPod, phase: str = "Running") -> None:
        """The kubelet says how the pod does, and its addresses."""
        found = self.object(pod)
        addresses = [pod.address(version) for version in (4, 6)]
        status = {"phase": phase, "podIP": addresses[0], "podIPs": [{"ip": one} for one in addresses]}
        self.api.put({**found, "status": status})

    def object(self, pod: CniPod) -> dict[str, Any]:
        """The Pod object."""
        found = self.api.get("v1", "Pod", f"{pod.namespace}/{pod.name}")
        assert found is not None
        return found

    def forget(self, name: str, namespace: str = "default") -> None:
        """The Pod object goes."""
        self.api.drop("v1", "Pod", f"{namespace}/{name}")

    def policy(self, name: str, text: str) -> None:
        """Put policies in place; they have their names already."""
        self.api.put(text)

    def annotate_node(self, annotations: Mapping[str, str]) -> None:
        """Give the Node object these annotations, and no others."""
        node = self.api.get("v1", "Node", self.node.name)
        assert node is not None
        self.api.put({**node, "metadata": {**node["metadata"], "annotations": dict(annotations)}})


@contextlib.contextmanager
def cluster_node(directory: Path, **cni: Any) -> Iterator[ClusterNode]:
    """A node without an agent yet, and an API server."""
    with Testbed.up([pod_manifest("idle")]) as testbed:
        place = testbed.node.info.netns
        with KubeApi(enter=lambda: netns.enter(place), bookmark_seconds=2.0) as api:
            site = ClusterNode(testbed, directory, api, **cni)
            try:
                yield site
            finally:
                site.close()


def ask(pod: CniPod, address: str, path: str = "/", *, port: int = 80, seconds: float = 2.0) -> int:
    """Status of one GET on a new connection from a pod, begun at once; 0: none came in time."""

    def get() -> int:
        connection = http.client.HTTPConnection(address, port, timeout=seconds)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    return netns.call(pod.netns, get)


class Asking:
    """Requests without end from a pod, each on a new connection; what became of them."""

    def __init__(self, pod: CniPod, address: str, path: str = "/", *, seconds: float = 2.0) -> None:
        self.told: list[int] = []
        self._end = threading.Event()
        self._asks = (pod, address, path, seconds)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        pod, address, path, seconds = self._asks
        while not self._end.is_set():
            self.told.append(ask(pod, address, path, seconds=seconds))
            time.sleep(0.01)
