"""The benchmark of proxies: its loads, wrk's scripts, figures, ratios and goals, and how the other proxies start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spliceway.agent.bench.figures import Spread
from spliceway.agent.bench.wrk import WrkResult
from support import peers
from support.peersfigures import (
    BODY,
    DENIED,
    LOADS,
    RULES,
    Sample,
    chosen_loads,
    figures,
    goals,
    ratios,
    rotated,
    spreads,
    wrk_script,
)

RESULT = WrkResult(2_000_000, 20_000, 5_000_000, 310.0, 1250.5, 9000.0, {})


def sample(path: str, number: int, cpu_us: float, load: str = "small-unique-16") -> Sample:
    return Sample(path, load, number, figures(RESULT, cpu_us * RESULT.requests / 1e6))


def test_the_grid_has_every_combination_once() -> None:
    assert len(LOADS) == 18
    assert {load.connections for load in LOADS.values()} == {1, 16, 64}
    assert all(load.name == name for name, load in LOADS.items())


def test_loads_are_chosen_by_patterns() -> None:
    assert [load.name for load in chosen_loads("small-*-16, post-unique-1,small-unique-16")] == [
        "small-repeated-16",
        "small-unique-16",
        "post-unique-1",
    ]
    assert len(chosen_loads("*")) == len(LOADS)
    with pytest.raises(ValueError, match="no load is called 'huge'; there are small-repeated-1,"):
        chosen_loads("small-*,huge")


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_only_unique_heads_have_the_number_in_them(load: object) -> None:
    assert isinstance(load, type(LOADS["small-unique-1"]))
    made = re.search(r"return (.*)\n", wrk_script(load, 7_000_000_000))
    assert made
    assert made[1].split(" .. ").count("number") == (2 if load.unique else 0)
    assert "local number = 7000000000\n" in wrk_script(load, 7_000_000_000)
    assert ("x" * BODY in made[1]) == (f"Content-Length: {BODY}" in made[1]) == (load.what == "post")
    method, path = ("POST", "/post") if load.what == "post" else ("GET", f"/{load.what}")
    assert made[1].startswith(f'"{method} {path}')


def test_the_rules_allow_what_is_asked_and_nothing_else() -> None:
    def passes(method: str, target: str) -> bool:
        return any(
            method == allowed and re.fullmatch(path, target) for allowed, path in (rule.split(" ") for rule in RULES)
        )

    for load in LOADS.values():
        method = "POST" if load.what == "post" else "GET"
        assert passes(method, f"/{load.what}")
        assert passes(method, f"/{load.what}?n=12")
    assert not passes("GET", DENIED)
    assert not passes("GET", "/post")


def test_figures_of_a_run() -> None:
    assert figures(RESULT, 1.5) == {
        "rps": 10_000,
        "p50_us": 310.0,
        "p99_us": 1250.5,
        "cpu_us": 75.0,
        "core_rps": pytest.approx(13_333.3, abs=0.1),
        "busy": 0.75,
    }


def test_medians_and_ratios_are_of_rounds() -> None:
    samples = [sample("embedded", 0, 50), sample("proxy.py", 0, 100), sample("proxy.py", 1, 150)]
    samples += [sample("embedded", 1, 50), sample("embedded", 2, 200), sample("proxy.py", 2, 200)]
    assert spreads(samples)["embedded"]["small-unique-16"]["cpu_us"] == Spread(50, 50, 200)
    assert ratios(samples)["embedded/proxy.py"]["small-unique-16"]["core_rps"] == Spread(2, 1, 3)
    assert list(ratios(samples)) == ["embedded/proxy.py"]


def test_goals_are_for_small_replies_and_several_connections() -> None:
    samples = [
        sample(path, 0, cpu, load)
        for load in ("small-unique-16", "small-repeated-1", "large-unique-16")
        for path, cpu in (("embedded-h11", 100.0), ("proxy.py", 150.0), ("mitmproxy", 450.0))
    ]
    found = {(goal["under"], goal["times"]): goal for goal in goals(samples)}
    assert len(found) == len(goals(samples)) == 3
    assert {goal["load"] for goal in found.values()} == {"small-unique-16"}
    assert {key: (goal["must"], goal["met"]) for key, goal in found.items()} == {
        ("mitmproxy", 5.0): (True, False),
        ("proxy.py", 1.0): (True, True),
        ("proxy.py", 2.0): (False, False),
    }


def test_every_path_is_at_every_place_equally_often() -> None:
    orders = [rotated(["a", "b", "c"], number) for number in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("peer", peers.REQUIREMENTS)
def test_peers_are_told_where_to_listen_what_to_allow_and_where_to_send_it(peer: str, tmp_path: Path) -> None:
    made = peers.command(peer, Path("/env"), ("10.0.0.1", 24001), "10.0.0.2:80", RULES, tmp_path)
    assert made.argv[0].startswith("/env/bin/")
    assert {"10.0.0.1", "24001"} <= set(made.argv)
    assert made.environment["RULES"].split(";") == list(RULES)
    assert made.environment["UPSTREAM"] == "10.0.0.2:80"


def test_an_index_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.REQUIREMENTS, "mitmproxy", "no-such-package-of-this-test==1")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(peers.PeerError, match=r"mitmproxy: no environment .* Is the package index reachable\?"):
        peers.environment("mitmproxy", tmp_path)
    assert not list(tmp_path.glob("*/.complete"))


def test_cpu_time_and_memory_are_those_of_a_session() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as busy:
        assert busy.stdout
        busy.stdout.readline()
        assert peers.cpu_seconds(busy.pid) >= 0.3
        assert peers.resident_mib(busy.pid)[busy.pid] > 1
        busy.communicate(b"\n")
    assert peers.cpu_seconds(busy.pid) == 0
