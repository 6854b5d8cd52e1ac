"""Prometheus metrics, read from the datapath and the components when they are asked for: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spliceway.agent.portwatch import port_metrics
from spliceway.agent.splicemetrics import splice_metrics
from spliceway.agent.spliceproof import SpliceStatus
from spliceway.agent.verdicts import verdict_label
from spliceway.bpf.portuse import PortUse
from spliceway.bpf.types import DatapathStatus, HookStatus, ReasonCount, SocketLbStatus, SpliceCounters
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.server.events import EventKind, XdsEvent

#: Seconds from a change of the source to its rows being in force. The promise is under 0.2 in the median.
DURATION_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Seconds from a change of a resource to its ACK: a few milliseconds on this machine.
ACK_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ANSWERS = {
    "pushes": "Responses sent to xDS clients.",
    "acks": "Responses that a client acknowledged.",
    "nacks": "Responses that a client refused.",
}


class DatapathCounters(Protocol):
    """What metrics read from the datapath."""

    def reasons(self) -> list[ReasonCount]:
        """Verdicts by hook, verdict and reason."""

    def splice_counters(self) -> SpliceCounters:
        """Splices since load."""

    def status(self) -> DatapathStatus:
        """What is loaded."""


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the agent itself, each as it is now.

    `not_applied`: `refused` and `waiting` → policies that the proxy has refused or not acknowledged as they are.
    `xds_clients`: protocol variant → streams; `xds_not_in_sync`: short type → resources that the node's proxy was not
    sent, has not acknowledged, or refused.
    """

    revision: int
    wanted_revision: int
    generation: int
    reconcile_failures: int
    service_changes: int
    service_failures: int
    refused_documents: int
    endpoints: int
    rule_sets: int
    waiting_rule_sets: int
    xds_clients: Mapping[str, int]
    xds_not_in_sync: Mapping[str, int]
    lost_log_entries: int
    log_share: float
    lost_flows: int
    proxy_restarts: int
    proxy_running: bool
    worker_restarts: int
    policies: int
    policies_in_audit: int
    not_applied: Mapping[str, int]
    audit_records: int
    port_use: PortUse
    disabled: bool = False


class Metrics:
    """The agent's registry (its own, not the global one) and what the agent itself observes."""

    def __init__(
        self, datapath: DatapathCounters, gauges: Callable[[], Gauges], splicing: Callable[[], SpliceStatus]
    ) -> None:
        # Else each counter has a gauge that says when it was made, of which Prometheus makes series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.reconcile_duration = Histogram(
            "spliceway_reconcile_duration_seconds",
            "From a change of the policy source to its rows being in force.",
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        answers = {EventKind.PUSH: "pushes", EventKind.ACK: "acks", EventKind.NACK: "nacks"}
        self._answers = {
            kind: Counter(f"spliceway_xds_{name}", _ANSWERS[name], ["type"], registry=self.registry)
            for kind, name in answers.items()
        }
        self._rejected = Counter("spliceway_xds_rejected", "Streams that were not served.", registry=self.registry)
        self._ack_duration = Histogram(
            "spliceway_xds_ack_duration_seconds",
            "From a change of a resource to its acknowledgement by a client.",
            ["type"],
            buckets=ACK_BUCKETS,
            registry=self.registry,
        )
        for info in TYPES.values():  # a series that is there from the start can be summed and compared
            for counter in self._answers.values():
                counter.labels(info.short)
        self.registry.register(_Collector(datapath, gauges, splicing))

    def xds_event(self, event: XdsEvent) -> None:
        """Count what happened on an xDS stream."""
        if (counter := self._answers.get(event.kind)) is not None:
            counter.labels(event.type).inc()
        elif event.kind is EventKind.REJECTED:
            self._rejected.inc()
        if event.kind is EventKind.ACK and event.seconds is not None:
            self._ack_duration.labels(event.type).observe(event.seconds)


class _Collector(Collector):
    def __init__(
        self, datapath: DatapathCounters, gauges: Callable[[], Gauges], splicing: Callable[[], SpliceStatus]
    ) -> None:
        self._datapath = datapath
        self._splicing = splicing
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read kernel maps."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, read now."""
        yield from self._verdicts()
        yield from splice_metrics(self._datapath.splice_counters(), self._splicing())
        yield from self._agent()

    def _verdicts(self) -> Iterator[Metric]:
        packets = CounterMetricFamily(
            "spliceway_verdicts", "Packets or messages judged.", labels=["hook", "verdict", "reason"]
        )
        size = CounterMetricFamily("spliceway_verdict_bytes", "Bytes judged.", labels=["hook", "verdict", "reason"])
        sums: dict[tuple[str, str, str], tuple[int, int]] = {}
        for count in self._datapath.reasons():
            # An audit may be an allow or a redirect in the kernel: one series for both.
            labels = (count.hook.label, verdict_label(count.verdict, count.reason), count.reason.label)
            before = sums.get(labels, (0, 0))
            sums[labels] = (before[0] + count.packets, before[1] + count.bytes)
        for labels, (number, octets) in sums.items():
            packets.add_metric(labels, number)
            size.add_metric(labels, octets)
        yield from (packets, size)

    def _agent(self) -> Iterator[Metric]:
        now = self._gauges()
        status = self._datapath.status()
        for name, text, value in (
            ("spliceway_policy_revision", "Revision of the policy in force.", now.revision),
            ("spliceway_policy_wanted_revision", "Revision of the policy as the source says it.", now.wanted_revision),
            ("spliceway_kernel_generation", "Generation of the rows in the kernel.", now.generation),
            ("spliceway_refused_documents", "Documents that are not in force as written.", now.refused_documents),
            ("spliceway_enforcement_disabled", "Whether the kill switch is on.", int(now.disabled)),
            ("spliceway_policies", "Policies as the source says them.", now.policies),
            ("spliceway_policies_in_audit", "Policies that are not enforced.", now.policies_in_audit),
            ("spliceway_endpoints", "Local endpoints.", now.endpoints),
            ("spliceway_rule_sets", "Rule sets in force.", now.rule_sets),
            ("spliceway_rule_sets_waiting", "Rule sets the proxy has not taken over.", now.waiting_rule_sets),
            ("spliceway_proxy_running", "Whether the proxy process runs.", int(now.proxy_running)),
            ("spliceway_access_log_share", "Share of allowed requests in the access log.", now.log_share),
            ("spliceway_datapath_problems", "Problems that the datapath reports.", len(status.problems)),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, label, values in (
            ("spliceway_policies_not_applied", "Policies the proxy hasn't taken over.", "state", now.not_applied),
            ("spliceway_xds_clients", "Open xDS streams.", "protocol", now.xds_clients),
            ("spliceway_xds_not_in_sync", "Resources that the proxy lacks or refused.", "type", now.xds_not_in_sync),
        ):
            family = GaugeMetricFamily(name, text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            yield family
        for name, text, count in (
            ("spliceway_reconcile_failures", "Attempts that left the old policy in force.", now.reconcile_failures),
            ("spliceway_audit_records", "Records of what audit mode let pass.", now.audit_records),
            ("spliceway_proxy_restarts", "Restarts of the proxy process.", now.proxy_restarts),
            ("spliceway_proxy_worker_restarts", "Workers that the proxy had to replace.", now.worker_restarts),
        ):
            yield CounterMetricFamily(name, text, value=count)
        lost = CounterMetricFamily("spliceway_lost_events", "Records lost on their way up.", labels=["where"])
        lost.add_metric(["kernel"], status.lost_events)
        lost.add_metric(["access-log"], now.lost_log_entries)
        lost.add_metric(["follower"], now.lost_flows)
        yield lost
        yield from _hooks(status.hooks)
        yield from _devices(status)
        yield from _socket_lb(status.socket_lb, now)
        yield from port_metrics(now.port_use)


def _hooks(status: HookStatus) -> Iterator[Metric]:
    problems = GaugeMetricFamily(
        "spliceway_hook_problems", "Hooks of interfaces where our program is not as it should be.", labels=["problem"]
    )
    repairs = CounterMetricFamily("spliceway_hook_repairs", "What was put right at hooks.", labels=["problem"])
    for problem, now, mended in (
        ("missing", status.missing, status.put_back),
        ("behind", status.behind, status.moved),
    ):
        problems.add_metric([problem], now)
        repairs.add_metric([problem], mended)
    yield from (problems, repairs)


def _devices(status: DatapathStatus) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "spliceway_devices", "Interfaces by which packets come from outside, with our program or not.", labels=["state"]
    )
    wanted = [one for one in status.devices if one.program]
    family.add_metric(["attached"], sum(one.attached for one in wanted))
    family.add_metric(["failed"], sum(not one.attached for one in wanted))
    yield family
    text = "Local pods with further interfaces, which no policy covers."
    yield GaugeMetricFamily("spliceway_uncovered_pods", text, value=len(status.uncovered))


def _socket_lb(status: SocketLbStatus, now: Gauges) -> Iterator[Metric]:
    for name, text, value in (
        ("active", "Whether pods' sockets get Services from this agent.", int(status.active)),
        ("frontends", "Frontends of Services in the kernel.", status.frontends),
        ("backends", "Backends of all frontends in the kernel.", status.backends),
    ):
        yield GaugeMetricFamily(f"spliceway_socket_lb_{name}", text, value=value)
    for name, text, count in (
        ("changes", "Frontends that were written or taken out of the kernel.", now.service_changes),
        ("failures", "Changes of Services that could not be made.", now.service_failures),
    ):
        yield CounterMetricFamily(f"spliceway_socket_lb_{name}", text, value=count)
