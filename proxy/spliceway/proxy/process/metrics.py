"""Counters as Envoy's admin interface tells them: `/stats?format=json`, and `/stats/prometheus` in Envoy's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

#: A statistic's name, as Envoy builds its Prometheus names: what follows the pattern's groups is the metric, the groups
#: are labels. Source: Envoy, well_known_names.cc.
_SHAPES: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = (
    (
        re.compile(r"http\.([^.]+)\.downstream_rq_([1-5])xx"),
        "envoy_http_downstream_rq_xx",
        ("envoy_http_conn_manager_prefix", "envoy_response_code_class"),
    ),
    (re.compile(r"http\.([^.]+)\.(?P<rest>.+)"), "envoy_http_", ("envoy_http_conn_manager_prefix",)),
    (re.compile(r"cluster\.([^.]+)\.(?P<rest>.+)"), "envoy_cluster_", ("envoy_cluster_name",)),
    (re.compile(r"spliceway\.refused\.([^.]+)"), "spliceway_proxy_refused_total", ("reason",)),
    (re.compile(r"spliceway\.(?P<rest>.+)"), "spliceway_proxy_", ()),
    (re.compile(r"(?P<rest>.+)"), "envoy_", ()),
)
_OURS = "spliceway_proxy_"
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


class Statistics:
    """All counters and gauges, asked when somebody wants to know them."""

    def __init__(self, counters: Callable[[], Mapping[str, int]], gauges: Callable[[], Mapping[str, int]]) -> None:
        self._counters = counters
        self._gauges = gauges
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def __repr__(self) -> str:
        return f"<Statistics: {len(self._counters())} counters>"

    def named(self, pattern: str = "") -> list[dict[str, str | int]]:
        """`{"name": …, "value": …}` of those in whose names the regular expression is found, sorted.

        Raises:
            re.error: it is none.
        """
        wanted = re.compile(pattern)
        values = {**self._counters(), **self._gauges()}
        return [{"name": name, "value": values[name]} for name in sorted(values) if wanted.search(name)]

    def prometheus(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus-client."""
        found: dict[str, Metric] = {}
        for values, counts in ((self._counters(), True), (self._gauges(), False)):
            for name, value in sorted(values.items()):
                metric, labels, texts = prometheus_name(name)
                if counts and metric.startswith(_OURS) and not metric.endswith("_total"):
                    metric += "_total"
                # Not all of Envoy's counters end in _total, and only those that do may be called one.
                kind = "gauge" if not counts else "counter" if metric.endswith("_total") else "unknown"
                family = found.setdefault(metric, Metric(metric.removesuffix("_total"), name, kind))
                family.add_sample(metric, dict(zip(labels, texts, strict=True)), value)
        yield from found.values()


def prometheus_name(name: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Metric, names and values of its labels.

    `http.x.downstream_rq_total` is `envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="x"}`.
    """
    for pattern, metric, labels in _SHAPES:
        match = pattern.fullmatch(name)
        if match is not None:
            rest = _NOT_A_NAME.sub("_", match.groupdict().get("rest") or "")
            return metric + rest, labels, match.groups()[: len(labels)]
    raise AssertionError(f"no shape for {name}")  # the last pattern matches all
