"""What an agent writes, as status and metrics show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spliceway.agent.authorization.told import EmissionCollector, EmissionStatus


class WritingStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What `status` says. `reported`: when this node did last, seconds since 1970 (0: never).

    `writer`: who writes, of those that stand for election; `leads`: this agent; `policies`, `nodes`: that it
    writes of, and whose reports it has. `taint`: what is taken off the node, `taint_removed`: how often it was.
    `authorization`: what is kept applied for Istio.
    """

    enabled: bool = False
    reported: float = 0.0
    reports: int = 0
    report_failures: int = 0
    writer: str = ""
    leads: bool = False
    terms: int = 0
    policies: int = 0
    nodes: int = 0
    statuses: int = 0
    events: int = 0
    dropped_events: int = 0
    conflicts: int = 0
    failures: int = 0
    taint: str = ""
    taint_removed: int = 0
    problems: tuple[str, ...] = ()
    authorization: EmissionStatus = EmissionStatus()


class WritingCollector(Collector):
    """Metrics of what is written."""

    def __init__(self, status: Callable[[], WritingStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none where nothing is written."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, as they are now."""
        now = self._status()
        if not now.enabled:
            return
        yield GaugeMetricFamily(
            "spliceway_status_writer", "Whether this agent writes the status of policies.", value=float(now.leads)
        )
        yield GaugeMetricFamily(
            "spliceway_status_nodes", "Nodes whose reports the writer has (of the others 0).", value=float(now.nodes)
        )
        writes = CounterMetricFamily("spliceway_status_writes", "Objects that were written.", labels=["kind"])
        for kind, count in (("report", now.reports), ("status", now.statuses), ("event", now.events)):
            writes.add_metric([kind], count)
        failures = CounterMetricFamily("spliceway_status_failures", "Writes that came to nothing.", labels=["kind"])
        for kind, count in (
            ("report", now.report_failures),
            ("status", now.failures),
            ("conflict", now.conflicts),
            ("event-dropped", now.dropped_events),
        ):
            failures.add_metric([kind], count)
        yield from (writes, failures)


def collectors(status: Callable[[], WritingStatus]) -> tuple[Collector, ...]:
    """All of what is told and applied."""
    return WritingCollector(status), EmissionCollector(lambda: status().authorization)
