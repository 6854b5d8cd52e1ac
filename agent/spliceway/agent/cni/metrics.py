"""What runtimes ask of the plugin, as metrics: only where there is CNI, so that alerts have no series elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spliceway.agent.cni.netconf import TRY_AGAIN, CniError

#: The values of the label; who may dial the socket may ask for anything.
_COMMANDS = frozenset(("ADD", "DEL", "CHECK", "GC", "STATUS"))
#: Seconds: a pod's start takes one or two by itself.
_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class CniMetrics(Collector):
    """Counts questions. `in_chain`: whether the plugin stands in the node's chain."""

    def __init__(self, in_chain: Callable[[], bool]) -> None:
        self._in_chain = in_chain
        self._asked: Counter[tuple[str, str]] = Counter()
        self._waiting = 0
        self._seconds = Histogram(
            "spliceway_cni_add_seconds",
            "From a runtime's ADD until the pod may start.",
            registry=None,
            buckets=_BUCKETS,
        )

    @contextlib.contextmanager
    def asked(self, command: str) -> Iterator[None]:
        """Count one question by how the block ends: CniError is a refusal."""
        label, result, began = command if command in _COMMANDS else "other", "failed", time.monotonic()
        self._waiting += label == "ADD"
        try:
            yield
            result = "done"
        except CniError as error:
            result = "try-again" if error.code == TRY_AGAIN else "refused"
            raise
        finally:
            self._waiting -= label == "ADD"
            self._asked[label, result] += 1
            if (label, result) == ("ADD", "done"):
                self._seconds.observe(time.monotonic() - began)

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none without CNI."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, as they are now."""
        asked = CounterMetricFamily("spliceway_cni_requests", "Questions of runtimes.", labels=["command", "result"])
        for labels, count in sorted(self._asked.items()):
            asked.add_metric(labels, count)
        yield asked
        yield GaugeMetricFamily("spliceway_cni_waiting_pods", "Pods whose start waits now.", value=self._waiting)
        yield GaugeMetricFamily(
            "spliceway_cni_in_chain", "Whether the plugin is in the node's chain.", value=float(self._in_chain())
        )
        yield from self._seconds.collect()
