"""Pods of the proxy's DaemonSet on a virtual node: PID, mount and cgroup namespaces of their own, and few capabilities.

What a pod sees of the node's files is the directory that it shares with the agent; the rest of the state directory is
hidden from it. Its keeper is the first process there, so that its end is the proxy's end, as the kubelet does it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.proxypod import place
from spliceway.agent.testbed import processes
from spliceway.agent.testbed.agentprocess import agent_config, config_text, start_agent
from spliceway.agent.testbed.node import Node
from support.attack import Site, attacked_site
from support.node import http_status
from support.waiting import LIMIT, until

#: What the chart gives the proxy's container.
CAPABILITIES = ("NET_ADMIN",)
#: Hides the state directory but for what is shared, as a pod that mounts only that does; then becomes the program.
_HIDE = (
    'mount --bind "$2" "$3" && mount -t tmpfs none "$1" && mkdir "$2" && mount --move "$3" "$2" && shift 3 && exec "$@"'
)


class ProxyPod:
    """One pod. It begins at once; `ready` is what its probe would say."""

    def __init__(
        self,
        node: Node,
        name: str,
        overrides: dict[str, Any],
        *,
        drain: float = 3.0,
        capabilities: Sequence[str] = CAPABILITIES,
        env: dict[str, str] | None = None,
    ) -> None:
        """`overrides`: of the agent's configuration, `proxy.managed` among them; `drain`: of an Envoy, in seconds."""
        self.name = name
        self.own = node.info.directory / f"pod-{name}"
        self.own.mkdir()
        shared = place.shared(node.info.state)
        shared.mkdir(mode=0o755, parents=True, exist_ok=True)  # DirectoryOrCreate
        file, aside = self.own / "agent.yaml", self.own / "aside"
        aside.mkdir()
        file.write_text(config_text(agent_config(node, overrides)))
        self.cgroup = node.info.cgroups.pods / f"proxy-{name}"
        self.cgroup.mkdir()
        self._log = self.own / "log"
        kept = ",".join(f"+{each.lower()}" for each in capabilities)
        rights = ["setpriv", f"--bounding-set=-all{',' * bool(kept)}{kept}", "--inh-caps=-all", "--no-new-privs", "--"]
        with self._log.open("ab") as output:
            self._outside = processes.spawn(
                node.info.netns,
                self.cgroup,
                [
                    *(
                        "unshare",
                        "--pid",
                        "--fork",
                        "--kill-child=SIGKILL",
                        "--mount-proc",
                        "--mount",
                        "--cgroup",
                        "--",
                    ),
                    *("/bin/sh", "-c", _HIDE, "sh", str(node.info.state), str(shared), str(aside)),
                    *rights,
                    *(sys.executable, "-m", "spliceway.agent", "proxy-pod", "--config", str(file)),
                    *("--own", str(self.own), "--drain", str(drain)),
                ],
                {**os.environ, **(env or {})},
                stdout=output,
                stderr=output,
            )

    def __repr__(self) -> str:
        return f"<ProxyPod {self.name} ready={self.ready} ended={self._outside.poll()}>"

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    @property
    def ready(self) -> bool:
        """What the readiness probe says."""
        return (self.own / "ready").exists()

    @property
    def waits(self) -> bool:
        """Whether the keeper has said why the proxy is not started."""
        return '"event":"waiting"' in self.log

    @property
    def keeper(self) -> int:
        """Its process id outside; 0 when it has ended."""
        return _child(self._outside.pid)

    @property
    def proxy(self) -> int:
        """The proxy's process id outside; 0 while there is none."""
        return _child(self.keeper) if self.keeper else 0

    def until_ready(self, seconds: float = LIMIT) -> None:
        """Wait for it."""
        until(lambda: self.ready, seconds, lambda: self.log)

    def until_serving(self, seconds: float = LIMIT) -> int:
        """Wait until it is ready and has a proxy, whose process id is returned."""
        until(lambda: self.ready and self.proxy != 0, seconds, lambda: self.log)
        return self.proxy

    def terminate(self) -> None:
        """SIGTERM to the first process, as the kubelet does."""
        if keeper := self.keeper:
            os.kill(keeper, signal.SIGTERM)

    def wait(self, seconds: float = LIMIT) -> float:
        """Until it has ended; how long that took, in seconds."""
        began = time.monotonic()
        self._outside.wait(seconds)
        return time.monotonic() - began

    def end(self) -> float:
        """Both."""
        self.terminate()
        return self.wait()

    def close(self) -> None:
        """End it at once, if it is there."""
        if self._outside.poll() is None:
            self._outside.kill()  # and its child, and so all of that PID namespace
        self._outside.wait(20)
        until(self._gone, told=lambda: self.log)

    def _gone(self) -> bool:
        try:
            self.cgroup.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class PodSite:
    """A site whose proxy is a pod's."""

    def __init__(self, site: Site, kind: str, **proxy: Any) -> None:
        self.site, self.kind = site, kind
        self.overrides: dict[str, Any] = {
            "proxy": {"kind": kind, "managed": False, **proxy},
            "splice": {"mode": "force"},  # without the self-test, which is another test's
        }
        self.pods: list[ProxyPod] = []

    def pod(self, **options: Any) -> ProxyPod:
        """Another pod."""
        made = ProxyPod(self.site.node, f"{len(self.pods)}", self.overrides, **options)
        self.pods.append(made)
        return made

    def start_agent(self, **proxy: Any) -> None:
        """Until all is in force."""
        own = {**self.overrides["proxy"], **proxy}
        self.site.agent = start_agent(self.site.node, {**self.overrides, "proxy": own})

    def status(self) -> dict[str, Any]:
        """Of the proxy's process, as the agent has it."""
        found: dict[str, Any] = self.site.control.client.get("status")["proxy"]["process"]
        return found

    def answers(self, path: str) -> list[int]:
        """Statuses of a request by IPv4 and by IPv6; 0: no connection was made in time."""
        asked = partial(http_status, self.site.testbed, "frontend", "api", path, timeout=2.0)
        return [asked(version=version) for version in (4, 6)]

    def until_answered(self) -> None:
        """Wait until what is allowed is answered."""
        until(lambda: self.answers("/articles/1") == [200, 200])

    def assert_judges(self) -> None:
        """What is allowed is answered soon, and nothing else."""
        self.until_answered()
        assert self.answers("/private") == [403, 403]


@contextmanager
def pod_node(kind: ProxyKind, **proxy: Any) -> Iterator[PodSite]:
    """With a node of its own, which has no agent yet."""
    with attacked_site(kind, agent=False) as site, pod_site(site, kind, **proxy) as made:
        yield made


@contextmanager
def pod_site(site: Site, kind: str, **proxy: Any) -> Iterator[PodSite]:
    """Its pods are ended with it."""
    made = PodSite(site, kind, **proxy)
    try:
        yield made
    finally:
        for pod in made.pods:
            pod.close()


def _child(pid: int) -> int:
    """The one child of a process that a test has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if children else 0
