"""What is kept applied of AuthorizationPolicies, as status and metrics show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spliceway.agent.istioconfig import Emission
from spliceway.policy.parse_metadata import HTTP_RULES

#: So many policies are named in a sentence.
_NAMED = 5


class Figures:
    """What the writer has come to: of now, and what was written since the agent started."""

    def __init__(self) -> None:
        self.emitted = self.kept = self.going = self.refused = 0
        self.created = self.updated = self.restored = self.deleted = self.failures = 0
        self.seconds = 0.0
        self.settled = False
        self.unasked: tuple[str, ...] = ()
        self.error = ""

    @property
    def problem(self) -> str:
        """What keeps it from being applied, or else what nobody enforces meanwhile; empty: nothing."""
        if self.error or not self.unasked:
            return self.error
        more = f" and {len(self.unasked) - _NAMED} more" if len(self.unasked) > _NAMED else ""
        return (
            f"nobody asks the HTTP rules of {', '.join(self.unasked[:_NAMED])}{more}: left to Istio ({HTTP_RULES}), "
            "and not translated (condition Translated says why)"
        )


class EmissionStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What `status` says. `mode`: of the configuration. All counts of objects are 0 in an agent that does not write.

    `emitted`: as they should be; `kept`: of translations that are refused now; `going`: still to be deleted. `refused`:
    policies of which nothing new is applied. `created`, `updated` (of another version that says the same), `restored`
    (after edits), `deleted`, `failures`: since the agent started; `seconds`: that the last translation took; `settled`:
    nothing is left to be done.
    """

    mode: Emission = "off"
    emitted: int = 0
    kept: int = 0
    going: int = 0
    refused: int = 0
    created: int = 0
    updated: int = 0
    restored: int = 0
    deleted: int = 0
    failures: int = 0
    seconds: float = 0.0
    settled: bool = False


def emission_status(mode: Emission, figures: Figures, *, leads: bool) -> EmissionStatus:
    """Of an agent that writes, or of another one."""
    return EmissionStatus(
        mode,
        *((figures.emitted, figures.kept, figures.going, figures.refused) if leads else (0, 0, 0, 0)),
        figures.created,
        figures.updated,
        figures.restored,
        figures.deleted,
        figures.failures,
        figures.seconds if leads else 0.0,
        leads and figures.settled,
    )


class EmissionCollector(Collector):
    """Metrics of it."""

    def __init__(self, status: Callable[[], EmissionStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing: there is none where nothing is applied."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, as they are now."""
        now = self._status()
        if now.mode == "off":
            return
        objects = GaugeMetricFamily(
            "spliceway_authorization_policies", "AuthorizationPolicies of the writer's (others 0).", labels=["state"]
        )
        for state in ("emitted", "kept", "going"):
            objects.add_metric([state], getattr(now, state))
        yield objects
        yield GaugeMetricFamily(
            "spliceway_authorization_refused",
            "Policies of which no new AuthorizationPolicy can be applied (others 0).",
            value=float(now.refused),
        )
        writes = CounterMetricFamily(
            "spliceway_authorization_writes", "AuthorizationPolicies that were written.", labels=["kind"]
        )
        for kind in ("created", "updated", "restored", "deleted"):
            writes.add_metric([kind], getattr(now, kind))
        yield writes
        yield CounterMetricFamily(
            "spliceway_authorization_failures", "Writes that came to nothing.", value=float(now.failures)
        )
