"""docs/metrics.md against a real agent: every metric that it exports is there, and no other; few series."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.switched import switched

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
#: Beside `spliceway_verdicts…`, whose labels are bounded by the enumerations of the code.
MOST_SERIES = 260
#: With an API server as the source only (test_kubernetes_source.py, test_policystatus_writer.py), with CNI only
#: (test_cni_metrics.py), with Istio only (test_authorization_writer.py).
ELSEWHERE = ("spliceway_source_", "spliceway_status_", "spliceway_cni_", "spliceway_authorization_")


def section(title: str) -> str:
    return DOCUMENT.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_what_is_documented_is_what_is_exported() -> None:
    rows = [line.split("|")[1:4] for line in section("The agent's metrics").splitlines() if line.startswith("| `")]
    documented = {name: row[1] for row in rows for name in re.findall(r"`(spliceway_\w+)`", row[0])}
    with switched() as site:
        site.start()
        for version in (4, 6):
            site.ask("frontend", "api", "/private", version=version)
            site.ask("intruder", "backend", version=version)
        families = list(text_string_to_metric_families(site.metrics()))
    exported = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    assert exported.keys() == {name for name in documented if not name.startswith(ELSEWHERE)}
    for name, family in exported.items():
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert labels <= set(re.findall(r"\w+", documented[name])), f"{name}: {sorted(labels)}"
    series = {name: len(family.samples) for name, family in exported.items() if "verdict" not in name}
    assert sum(series.values()) <= MOST_SERIES, series


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rows = [line.split("|") for line in section("Alerts").splitlines() if line.startswith("| `Spliceway")]
    assert len(rows) > 10
    documented = set(re.findall(r"spliceway_\w+", section("The agent's metrics")))
    for row in rows:
        assert set(re.findall(r"spliceway_\w+", row[2])) <= documented, row[1]
        assert re.fullmatch(r" \d+[mh] ", row[3]), row[1]
        assert row[4].strip() in {"critical", "warning", "info"}, row[1]
