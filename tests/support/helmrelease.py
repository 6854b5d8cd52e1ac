"""Releases by Helm's own code against an API server, in a process of its own (see `helm`), and what runs hooks' Jobs.

One JSON value in each line, question and answer: {"do": "install", "chart": path, "values": …}.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.helm import CHART, NAME, NAMESPACE, Asked, answer_all
from support.kubeapi import KubeApi

Json = dict[str, Any]
#: Seconds that Helm waits for a hook; nothing takes as long here.
_HOOK_SECONDS = 60
_LOOK_SECONDS = 0.05


class Release(Asked):
    """The chart's release in one cluster; a context manager."""

    def __init__(self, kubeconfig: Path, chart: Path = CHART) -> None:
        super().__init__(__file__, str(kubeconfig))
        self._chart = chart

    def install(self, values: Json | None = None) -> Json:
        """`helm install --create-namespace`. Raises HelmError."""
        found: Json = self._ask("install", values=values or {})
        return found

    def upgrade(self, values: Json | None = None, *, reuse: bool = False) -> Json:
        """`helm upgrade`; `reuse`: --reuse-values. Raises HelmError."""
        found: Json = self._ask("upgrade", values=values or {}, reuse=reuse)
        return found

    def rollback(self, revision: int) -> None:
        """`helm rollback`. Raises HelmError."""
        self._ask("rollback", revision=revision)

    def uninstall(self) -> Json:
        """`helm uninstall`. Raises HelmError."""
        found: Json = self._ask("uninstall")
        return found

    def history(self) -> list[str]:
        """States of the revisions, the oldest first."""
        return [str(one["status"]) for one in self._ask("history")]

    def _ask(self, action: str, **question: Any) -> Any:
        return self.ask(do=action, chart=str(self._chart), **question)


class Jobs:
    """A stand-in for the Job controller and the kubelet: Jobs end as their command would. A context manager.

    `ran` has the names of those that came, in order.
    """

    def __init__(self, api: KubeApi) -> None:
        self.ran: list[str] = []
        self._api = api
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            for job in self._api.all("batch/v1", "Job"):
                if "conditions" not in job.get("status", {}):
                    self.ran.append(job["metadata"]["name"])
                    self._api.put({**job, "status": _status(job)})


def _status(job: Json) -> Json:
    """As the controller writes it (batch/v1 JobStatus): of a command that ends with 1, without further tries, or 0."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    failed = container.get("command", [""])[-1].rstrip().endswith("exit 1")
    reason = "BackoffLimitExceeded" if failed else "CompletionsReached"
    kinds = ("FailureTarget", "Failed") if failed else ("SuccessCriteriaMet", "Complete")
    time = job["metadata"]["creationTimestamp"]
    conditions = [
        {"type": kind, "status": "True", "reason": reason, "lastProbeTime": time, "lastTransitionTime": time}
        for kind in kinds
    ]
    ended = {"failed": 1} if failed else {"succeeded": 1, "completionTime": time}
    return {"conditions": conditions, "startTime": time, "uncountedTerminatedPods": {}, **ended}


def _answers() -> None:
    import helm_python

    # Its own limit of requests is for clusters that others use, too.
    config = helm_python.Config(kubeconfig_path=sys.argv[1], namespace=NAMESPACE, qps=1000, burst_limit=1000)
    waiting: Json = {"timeout": _HOOK_SECONDS, "wait": "hookOnly"}

    def answer(asked: Json) -> Any:
        match asked["do"]:
            case "install":
                where: Json = {"namespace": NAMESPACE, "create_namespace": True}
                return config.install(asked["chart"], NAME, asked["values"], **where, **waiting)
            case "upgrade":
                return config.upgrade(asked["chart"], NAME, asked["values"], reuse_values=asked["reuse"], **waiting)
            case "rollback":
                config.rollback(NAME, version=asked["revision"], **waiting)
            case "uninstall":
                return config.uninstall(NAME, **waiting)
            case "history":
                return config.history(NAME)
        return None

    answer_all(answer)


if __name__ == "__main__":
    _answers()
