"""The benchmark of the control plane in small: what it counts must be so, how long it takes is its own business."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_BENCH = Path(__file__).parent.parent / "bench" / "bench_xds.py"
CLIENTS, RESOURCES = 20, 20


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    options = {"clients": CLIENTS, "resources": RESOURCES, "changes": 8, "rounds": 1, "seconds": 2, "envoy": 0}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    run = subprocess.run(
        [sys.executable, str(_BENCH), *arguments, "-o", "json"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("session", ["delta", "delta_tenth", "delta_own", "sotw"])
def test_a_change_goes_to_every_client_once_and_is_serialized_once(found: dict[str, Any], session: str) -> None:
    by_type = found["fanout"][session]["by_type"]
    assert found["fanout"][session]["clients"] == (CLIENTS // 10 if session == "delta_tenth" else CLIENTS)
    assert {kind: figures["encoded"] for kind, figures in by_type.items()} == dict.fromkeys(by_type, 1)
    # A changed cluster of type EDS brings its endpoints again (rule 15).
    assert {kind: figures["messages"] for kind, figures in by_type.items()} == {"CDS": 2, "EDS": 1, "LDS": 1, "RDS": 1}


def test_delta_sends_what_changed_and_the_state_of_the_world_whole_sets(found: dict[str, Any]) -> None:
    ratios = {kind: found["ratios"][f"sotw_bytes_{kind}"]["median"] for kind in ("CDS", "EDS", "LDS", "RDS")}
    assert ratios["LDS"] > 4  # five listeners instead of one
    assert ratios["CDS"] > 2
    assert ratios["EDS"] < 1.1
    assert ratios["RDS"] < 1.1
    assert found["fanout"]["delta"]["by_type"]["EDS"]["bytes_change"] < 600


def test_under_constant_change_every_client_gets_to_the_end(found: dict[str, Any]) -> None:
    churn = found["churn"]
    assert churn["changes"] > 100
    # One response is outstanding for each type: a client that is slower than the changes gets fewer of them.
    assert CLIENTS * 4 <= churn["pushes"] <= CLIENTS * churn["changes"] * 1.3
    assert churn["nacks"] == 0
    assert churn["rss_peak_mib"] < churn["rss_before_mib"] + 30


@pytest.mark.envoy
def test_many_clusters_and_routes_on_one_envoy() -> None:
    from bench.xds_envoy import bulk

    result = asyncio.run(asyncio.wait_for(bulk(200, 2), 60))
    assert result["protocol"] == "delta"
    assert result["states"] == ["CDS SYNCED", "LDS SYNCED", "RDS SYNCED"]
