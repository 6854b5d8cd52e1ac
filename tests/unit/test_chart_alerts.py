"""The chart's alerts, by Prometheus' own tool: they are rules, each fires when it should, and says which node it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import CHART

ALERTS = CHART / "files/alerts.yaml"
#: Alert → series that make it fire, and one value of them that doesn't; labels besides `node`.
_FIRES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "SplicewayEnforcementDisabled": (
        {"spliceway_enforcement_disabled": "1x120"},
        {"spliceway_enforcement_disabled": "0x120"},
        {},
    ),
    "SplicewayAgentDown": (
        {"up{job='spliceway-system/spliceway'}": "0x120", "spliceway_policy_revision": "1x120"},
        {"up{job='spliceway-system/spliceway'}": "1x120", "spliceway_policy_revision": "1x120"},
        {"job": "spliceway-system/spliceway"},
    ),
    "SplicewayPolicyNotInForce": (
        {"spliceway_policy_revision": "6x120", "spliceway_policy_wanted_revision": "7x120"},
        {"spliceway_policy_revision": "7x120", "spliceway_policy_wanted_revision": "7x120"},
        {},
    ),
    "SplicewayReconcileFailing": (
        {"spliceway_reconcile_failures_total": "0+1x120"},
        {"spliceway_reconcile_failures_total": "3x120"},
        {},
    ),
    "SplicewayDocumentsRefused": (
        {"spliceway_refused_documents": "2x120"},
        {"spliceway_refused_documents": "0x120"},
        {},
    ),
    "SplicewayPoliciesNotApplied": (
        {"spliceway_policies_not_applied{state='refused'}": "1x120"},
        {"spliceway_policies_not_applied{state='refused'}": "0x120"},
        {"state": "refused"},
    ),
    "SplicewayAuthorizationsRefused": (
        {"spliceway_authorization_refused": "2x120"},
        {"spliceway_authorization_refused": "0x120"},
        {},
    ),
    "SplicewayProxyDown": ({"spliceway_proxy_running": "0x120"}, {"spliceway_proxy_running": "1x120"}, {}),
    "SplicewayProxyRestarts": (
        {"spliceway_proxy_worker_restarts_total": "0+1x120"},
        {"spliceway_proxy_worker_restarts_total": "2x120", "spliceway_proxy_restarts_total": "9x120"},
        {},
    ),
    "SplicewayDatapathProblems": (
        {"spliceway_datapath_problems": "1x120"},
        {"spliceway_datapath_problems": "0x120"},
        {},
    ),
    "SplicewayHooksUnattached": (
        {"spliceway_devices{state='failed'}": "1x120", "spliceway_hook_problems{problem='behind'}": "0x120"},
        {"spliceway_devices{state='attached'}": "1x120", "spliceway_hook_problems{problem='behind'}": "0x120"},
        {"state": "failed"},
    ),
    "SplicewayUncoveredPods": ({"spliceway_uncovered_pods": "1x120"}, {"spliceway_uncovered_pods": "0x120"}, {}),
    "SplicewayCniNotInChain": ({"spliceway_cni_in_chain": "0x120"}, {"spliceway_cni_in_chain": "1x120"}, {}),
    "SplicewayRecordsLost": (
        {"spliceway_lost_events_total{where='kernel'}": "0+1x120"},
        {"spliceway_lost_events_total{where='kernel'}": "7x120"},
        {"where": "kernel"},
    ),
    "SplicewayUpstreamPortsUsed": (
        {"spliceway_upstream_ports_used": "90x120", "spliceway_upstream_ports": "100x120"},
        {"spliceway_upstream_ports_used": "80x120", "spliceway_upstream_ports": "100x120"},
        {},
    ),
    "SplicewaySelfTestIncomplete": (
        {"spliceway_splice_self_test_complete": "0x120"},
        {"spliceway_splice_self_test_complete": "1x120"},
        {},
    ),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None and os.environ.get("SPLICEWAY_REQUIRE_KERNEL") == "1":
        pytest.fail("no promtool, though `make setup` installs Debian's prometheus")
    if found is None:
        pytest.skip("no promtool (Debian's prometheus)")
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def asked(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def series(values: dict[str, str]) -> list[dict[str, str]]:
    """With the label `node`, which the chart's PodMonitor adds."""
    found = []
    for name, samples in values.items():
        labelled = name.replace("{", "{node='n1', ") if "{" in name else name + "{node='n1'}"
        found.append({"series": labelled, "values": samples})
    return found


def test_every_alert_is_tried() -> None:
    assert [each["alert"] for each in rules()] == list(_FIRES)


def test_the_page_has_the_same_ones() -> None:
    page = (CHART.parents[1] / "docs/metrics.md").read_text().partition("## Alerts\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")]
    told = {row[1].strip("`"): (row[3], row[4], _metrics(row[2])) for row in rows}
    # It is what one waits for in audit, and no fault.
    assert told.pop("SplicewayAuditWouldDeny")
    assert told == {
        each["alert"]: (each.get("for", "0m"), each["labels"]["severity"], _metrics(each["expr"])) for each in rules()
    }
    first = (CHART.parents[1] / "docs/operations.md").read_text().partition("## Metrics and alerts\n")[2]
    assert {each["alert"] for each in rules()} == set(re.findall(r"Spliceway\w+", first.partition("\n## ")[0]))


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"spliceway_\w+", expression))


def test_they_are_rules(promtool: str) -> None:
    done = asked([promtool, "check", "rules", str(ALERTS)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(_FIRES)} rules found" in done.stdout


def test_each_fires_when_it_should_and_else_not(promtool: str, tmp_path: Path) -> None:
    tests = []
    for rule in rules():
        name = rule["alert"]
        bad, good, labels = _FIRES[name]
        own = {**rule["labels"], "node": "n1", **labels}
        for values, fires in ((bad, True), (good, False)):
            one = {"eval_time": "65m", "alertname": name}
            if fires:
                notes = {key: filled(text) for key, text in rule["annotations"].items()}
                one["exp_alerts"] = [{"exp_labels": own, "exp_annotations": notes}]
            tests.append({"interval": "1m", "input_series": series(values), "alert_rule_test": [one]})
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = asked([promtool, "test", "rules", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr


def filled(text: str) -> str:
    """An annotation as the cases above make it."""
    cases = {"$labels.node": "n1", "$labels.state": "refused", "$labels.where": "kernel"}
    for what, value in cases.items():
        text = text.replace(f"{{{{ {what} }}}}", value)
    return text.replace("{{ $value }}", "90" if "towards one server" in text else "2")


def test_an_agent_that_was_never_there_is_missing(promtool: str, tmp_path: Path) -> None:
    (rule,) = [each for each in rules() if each["alert"] == "SplicewayAgentDown"]
    alert = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
    case = {"eval_time": "65m", "alertname": rule["alert"], "exp_alerts": [alert]}
    test = {"interval": "1m", "input_series": series({"up{job='other'}": "1x120"}), "alert_rule_test": [case]}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
    done = asked([promtool, "test", "rules", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
