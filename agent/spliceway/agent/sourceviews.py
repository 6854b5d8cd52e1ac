"""The source as status and metrics show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spliceway.agent.configsections import SourceConfig
from spliceway.agent.jsonable import plain
from spliceway.agent.sources.kubernetes.source import SourceStatus, silence
from spliceway.policy.rulesets import NO_VALUE
from spliceway.policy.table import PolicyTable, RuleSet

#: So many rule sets are named.
_NAMED = 5


def source_place(config: SourceConfig, status: SourceStatus | None) -> dict[str, Any]:
    """Where objects come from, and how that does."""
    if status is None:
        return {"directory": config.directory}
    return {"kubernetes": plain(status)}


def secret_warnings(table: PolicyTable | None, *, cluster: bool) -> tuple[str, ...]:
    """That header conditions match nothing since there is no such Secret. `cluster`: the source reads none at all."""
    names = sorted(one.name for one in table.rule_sets.values() if _lacks_secret(one)) if table is not None else []
    if not names:
        return ()
    why = "Secrets are not read from an API server" if cluster else "they are not there, or have no value for a header"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (f"header conditions by Secrets match nothing ({why}): {', '.join(names[:_NAMED])}{more}",)


def _lacks_secret(rule_set: RuleSet | None) -> bool:
    if rule_set is None:
        return False
    rules = (*(rule_set.rules or ()), *(rule_set.audit or ()))
    missing = any(header.secret and header.value == NO_VALUE for rule in rules for header in rule.headers)
    return missing or _lacks_secret(rule_set.also)


class SourceCollector(Collector):
    """Metrics of a source that follows an API server."""

    def __init__(self, status: Callable[[], SourceStatus | None]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none with other sources."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, as they are now."""
        status = self._status()
        if status is None:
            return
        yield GaugeMetricFamily("spliceway_source_up", "Whether the source can be read.", value=float(not status.lost))
        yield GaugeMetricFamily(
            "spliceway_source_whole", "Whether all that is essential was seen once.", value=float(status.whole)
        )
        objects = GaugeMetricFamily("spliceway_source_objects", "Objects that the source has.", labels=["kind"])
        lag = GaugeMetricFamily(
            "spliceway_source_lag_seconds", "Since the server said anything of a kind, bookmarks too.", labels=["kind"]
        )
        lists = CounterMetricFamily("spliceway_source_lists", "Looks at all objects of a kind.", labels=["kind"])
        watches = CounterMetricFamily("spliceway_source_watches", "Watches that began.", labels=["kind"])
        failures = CounterMetricFamily("spliceway_source_failures", "Requests that came to nothing.", labels=["kind"])
        for one in status.resources:
            objects.add_metric([one.kind], one.objects)
            lag.add_metric([one.kind], silence(one))
            lists.add_metric([one.kind], one.lists)
            watches.add_metric([one.kind], one.watches)
            failures.add_metric([one.kind], one.failures)
        yield from (objects, lag, lists, watches, failures)
