"""Metrics of splicing: what is allowed, what came of the connections, the bytes and what of them waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from spliceway.agent.spliceproof import CLASSES, MODES, SpliceStatus
from spliceway.bpf.abi import LEFT, Why
from spliceway.bpf.selftest.report import Result
from spliceway.bpf.types import SpliceCounters


def splice_metrics(counters: SpliceCounters, status: SpliceStatus) -> Iterator[Metric]:
    """All families."""
    yield from _allowed(status)
    yield from _connections(counters)
    for name, text, redirected, by_tcp in (
        ("bytes", "Bytes sent by members of the sockmap", counters.redirected_bytes, counters.tcp_bytes),
        ("messages", "Messages sent by members of the sockmap", counters.redirected_messages, counters.tcp_messages),
    ):
        family = CounterMetricFamily(f"spliceway_splice_{name}", f"{text}, by the way they took.", labels=["path"])
        family.add_metric(["redirected"], redirected)
        family.add_metric(["tcp"], by_tcp)
        yield family
    waits = "Packets that waited for a socket to leave the sockmap."
    yield CounterMetricFamily("spliceway_splice_leave_waits", waits, value=counters.leave_waits)
    yield GaugeMetricFamily("spliceway_splice_unread_bytes", "Spliced bytes that wait unread.", value=status.unread)
    limits = GaugeMetricFamily("spliceway_splice_unread_limit_bytes", "Most bytes that may wait.", labels=["scope"])
    for scope, limit in msgspec.structs.asdict(status.limits).items():
        limits.add_metric([scope], limit)
    yield limits


def _allowed(status: SpliceStatus) -> Iterator[Metric]:
    enabled = GaugeMetricFamily("spliceway_splice_enabled", "Whether new connections are spliced.", labels=["class"])
    for name in CLASSES:
        enabled.add_metric([name], int(name in status.spliced))
    yield enabled
    mode = GaugeMetricFamily("spliceway_splice_mode", "1 for the mode of splicing.", labels=["mode"])
    for name in MODES:
        mode.add_metric([name], int(name == status.mode))
    yield mode
    ran = status.self_test is not None and not status.self_test.error
    text = "Whether the self-test came to its end."
    yield GaugeMetricFamily("spliceway_splice_self_test_complete", text, value=int(ran))
    checks = Counter(check.result for check in status.self_test.checks) if status.self_test else Counter()
    results = GaugeMetricFamily("spliceway_splice_self_test_checks", "Checks of the self-test.", labels=["result"])
    for result in Result:
        results.add_metric([result.value], checks[result])
    yield results


def _connections(counters: SpliceCounters) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "spliceway_splice_connections",
        "Connections between pods and proxy, by what came of the splice and why.",
        labels=["result", "reason"],
    )
    left = CounterMetricFamily(
        "spliceway_splice_left", "Connections that were spliced and go on by TCP.", labels=["reason"]
    )
    outcomes.add_metric(["spliced", ""], counters.spliced)
    outcomes.add_metric(["revoked", ""], counters.revoked)
    inside = CounterMetricFamily(
        "spliceway_splice_sidecar_connections",
        "Of these, connections between applications and their sidecars.",
        labels=["result"],
    )
    inside.add_metric(["spliced"], counters.sidecar_spliced)
    inside.add_metric(["tcp-only"], counters.sidecar_tcp_only)
    for why in Why:
        count = counters.by_why.get(why.label, 0)
        if why in LEFT:
            left.add_metric([why.label], count)
        elif why.label:
            outcomes.add_metric(["tcp-only", why.label], count)
    yield from (outcomes, left, inside)
