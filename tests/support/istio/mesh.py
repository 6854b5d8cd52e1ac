"""Two pods of a mesh on one node: a client, and a server with nginx, each with its rules and its sidecar."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.bench import nginx
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from support.istio import rules, sidecar
from support.istio.certs import Authority
from support.node import pod_manifest

#: What istiod's webhook leaves at a pod, and the container that it adds.
STATUS = '{"initContainers":["istio-init"],"containers":["istio-proxy"],"revision":"default"}'
#: An application's user.
APPLICATION_UID = 1000
_DUAL_STACK = [{"name": "ISTIO_DUAL_STACK", "value": "true"}]


def mesh_manifest(
    name: str, *, annotations: dict[str, str] | None = None, native: bool = False, mode: str = "REDIRECT"
) -> dict[str, Any]:
    """A Pod document with a sidecar. `native`: a container that starts before the others and stays (restartPolicy)."""
    made = pod_manifest(name, {"app": name, "service.istio.io/canonical-name": name})
    made["metadata"]["annotations"] = {"sidecar.istio.io/status": STATUS, **(annotations or {})}
    made["spec"]["serviceAccountName"] = name
    proxy = {
        "name": "istio-proxy",
        "securityContext": {"runAsUser": rules.PROXY_UID, "runAsGroup": rules.PROXY_UID},
        "env": _DUAL_STACK,
    }
    arguments = ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", mode, "-i", "*", "-x", ""]
    arguments += ["-b", "*", "-d", "15090,15021,15020"]
    made["spec"]["initContainers"] = [{"name": "istio-init", "args": arguments, "env": _DUAL_STACK}]
    if native:
        made["spec"]["initContainers"].append({**proxy, "restartPolicy": "Always"})
    else:
        made["spec"]["containers"].append(proxy)
    return made


def serve(pod: Pod, directory: Path) -> subprocess.Popen[Any]:
    """Nginx on port 80 of a pod, with the files `small` (128 bytes) and `large` (1 MiB), and `answer` (128 bytes).

    Head and body of a file are two writes; those of `answer` are one, as of most applications.
    """
    nginx.prepare(directory, {"small": 128, "large": 1 << 20})
    command = nginx.command(directory, pod.name)
    config = directory / f"{pod.name}.conf"
    answer = f'location = /answer {{ return 200 "{"answer. " * 16}"; }}'
    config.write_text(config.read_text().replace("    root ", f"    {answer}\n    root ", 1))
    with (pod.logs / f"{pod.name}-nginx.log").open("wb") as log:
        process = pod.spawn(command, stdout=log, stderr=log)
    pod.wait_listening([80], process)
    return process


@contextlib.contextmanager
def mesh(
    directory: Path,
    kind: rules.Rules = "iptables",
    *,
    http: bool = True,
    dns: bool = False,
    more: Sequence[dict[str, Any]] = (),
    judging: Sequence[dict[str, Any]] = (),
    **manifest: Any,
) -> Iterator[Testbed]:
    """Build it; the datapath is the caller's. The directory must be open to all users.

    `more`: other pods; `judging`: HTTP filters of the server's sidecar, for what comes to it.
    """
    certificates = directory / "certificates"
    certificates.mkdir()
    authority = Authority(certificates)
    started = []
    if kind == "tproxy":
        manifest = {"mode": "TPROXY", **manifest}
    documents = [mesh_manifest(name, **manifest) for name in ("client", "server")]
    with Testbed.up([*documents, *more]) as testbed:
        for name in ("client", "server"):
            pod = testbed.pod(name)
            authority.issue(name)
            rules.write(pod, kind, dns=dns)
            own = judging if name == "server" else ()
            started.append(sidecar.start(pod, directory, certificates, http=http, tproxy=kind == "tproxy", judging=own))
        started.append(serve(testbed.pod("server"), directory))
        yield testbed
    for process in started:  # ended with their pods
        process.wait(10)
