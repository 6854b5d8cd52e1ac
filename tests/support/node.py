"""Manifests and small helpers for tests that run on a virtual node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.plan import OUTSIDE
from spliceway.agent.testbed.testbed import Testbed
from support.waiting import LIMIT

#: How long the answer on a connection may take: its proxy and its server are processes that wait for a CPU.
ANSWER_SECONDS = 15.0
#: Command of a pod that serves HTTP on TCP 80, both families (see `spliceway.agent.testbed.server`).
SERVER = ("python", "-m", "spliceway.agent.testbed.server", "--port", "80")

#: `role: frontend` may ask `role: api` for articles, and for nothing else.
API_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api-http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: /articles/.*}]}
"""


def pod_manifest(
    name: str,
    labels: Mapping[str, str] | None = None,
    *,
    namespace: str = "default",
    addresses: Sequence[str] = (),
    command: Sequence[str] = (),
    ports: Sequence[int] = (),
    outside: bool = False,
) -> dict[str, Any]:
    """A Pod document. Without `addresses` the testbed chooses them; `ports` are waited for when there is a command."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    if outside:
        metadata["annotations"] = {OUTSIDE: "true"}
    container = {"name": "main", "command": list(command), "ports": [{"containerPort": port} for port in ports]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container]},
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


def server_manifest(name: str, labels: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """A Pod document that serves HTTP on TCP 80."""
    return pod_manifest(name, labels, command=SERVER, ports=(80,), **options)


def demo_manifests() -> list[dict[str, Any]]:
    """The pods of the walking skeleton, all with an HTTP server, and a host in each of two subnets outside."""
    return [
        server_manifest("frontend", {"role": "frontend"}),
        server_manifest("backend", {"role": "backend"}),
        server_manifest("api", {"role": "api"}),
        server_manifest("intruder", {"role": "intruder"}),
        server_manifest("inside", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
        server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5")),
    ]


def url(target: Pod, path: str = "/", *, version: int = 4, port: int = 80) -> str:
    """URL of a pod's server."""
    address = target.address(version)
    return f"http://{f'[{address}]' if version == 6 else address}:{port}{path}"


def python_in(pod: Pod, code: str, *arguments: str, timeout: float = 2 * LIMIT) -> subprocess.CompletedProcess[str]:
    """Run Python code inside a pod."""
    return pod.run([sys.executable, "-c", code, *arguments], timeout=timeout)


def http_status(
    testbed: Testbed, client: str, target: str, path: str = "/", *, version: int = 4, timeout: float = 5
) -> int:
    """Status of one GET from pod to pod over a fresh connection; 0 when there was none within `timeout` seconds.

    Kernels make connections, quickly on a busy machine, too. Where one was made, the answer may take ANSWER_SECONDS.
    """
    code = (
        "import http.client, sys\n"
        "connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=float(sys.argv[3]))\n"
        "try:\n"
        "    connection.connect()\n"
        "    connection.sock.settimeout(float(sys.argv[4]))\n"
        "    connection.request('GET', sys.argv[2])\n"
        "    print(connection.getresponse().status)\n"
        "except OSError:\n"
        "    print(0)\n"
    )
    address = str(testbed.pod(target).address(version))
    done = python_in(testbed.pod(client), code, address, path, str(timeout), str(ANSWER_SECONDS))
    if done.returncode != 0:
        raise AssertionError(f"{client}: {done.stderr}")
    return int(done.stdout)
