"""Paths, medians, spreads, ratios, counters and the JSON made of them."""

from __future__ import annotations

from contextlib import nullcontext
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from spliceway.agent.bench import figures, nginx, report
from spliceway.agent.bench.commands import app
from spliceway.agent.bench.counters import Counters, veth_bytes
from spliceway.agent.bench.errors import BenchError, UnknownPathError
from spliceway.agent.bench.figures import Spread
from spliceway.agent.bench.latency import Latency, LatencyResult
from spliceway.agent.bench.load import FILES, LOADS
from spliceway.agent.bench.measure import Sample, check_took
from spliceway.agent.bench.paths import PATHS, comparisons, default_paths, kinds_of, parse_paths, rotations
from spliceway.agent.bench.site import http_policy
from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Protocol

MACHINE = {
    "kernel": "6.18", "architecture": "x86_64", "model": "CPU", "cpus": 2, "memory": 1 << 30,
    "proxies": {"embedded": {"version": "0.1.0", "workers": 1}, "envoy": {"version": "1.40.0", "workers": 2}},
    "nginx": "1.22.1", "wrk": "4.1.0",
}  # fmt: skip


def sample(path: str, number: int, rps: float, load: str = "c1", **counted: int) -> Sample:
    return Sample(path, load, number, {"rps": rps, "p50_us": 1e6 / rps}, Counters(**counted))


SAMPLES = [
    sample("envoy", 1, 1000, tcp_bytes=500),
    sample("envoy+splice", 1, 2000, redirected_bytes=990, tcp_bytes=10, spliced=2),
    sample("envoy+splice", 2, 600, redirected_bytes=990, tcp_bytes=10, spliced=2),
    sample("envoy", 2, 500, tcp_bytes=500),
    sample("envoy", 3, 800),
    sample("envoy+splice", 3, 1200),
]


def test_paths() -> None:
    both = default_paths("embedded", "envoy")
    assert both == "direct,embedded,embedded+splice,envoy,envoy+splice"
    assert [path.name for path in parse_paths(both)] == both.split(",")
    assert kinds_of(parse_paths(both)) == ("embedded", "envoy")
    assert kinds_of(parse_paths("bare,envoy+splice,envoy")) == ("envoy",)
    assert kinds_of(parse_paths("direct")) == ("embedded",)
    assert [path.name for path in parse_paths(" envoy ,direct,envoy")] == ["envoy", "direct"]
    spliced, plain = PATHS["envoy+splice"], PATHS["envoy"]
    # Only the switch differs.
    assert msgspec.structs.replace(spliced, name="", text="", splice="") == msgspec.structs.replace(
        plain, name="", text="", splice=""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("envoy,istio,direct,x", "no data path istio, x; there are bare, "), ("", "no data path is named")],
)
def test_unknown_paths_are_told_with_those_that_there_are(text: str, message: str) -> None:
    with pytest.raises(UnknownPathError, match=message):
        parse_paths(text)


@pytest.mark.parametrize("arguments", [["--paths", "istio"], ["--rounds", "0"], ["policy-latency", "--what", "x"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_every_path_is_at_every_place_equally_often() -> None:
    paths = parse_paths(default_paths("embedded"))
    rounds = list(islice(rotations(paths), 2 * len(paths)))
    for place in range(len(paths)):
        assert sorted(order[place].name for order in rounds) == sorted(2 * [path.name for path in paths])


def test_comparisons() -> None:
    assert comparisons(["envoy", "direct", "envoy+splice"]) == [
        ("envoy+splice", "envoy"),
        ("envoy", "direct"),
        ("envoy+splice", "direct"),
    ]
    assert comparisons(["bare", "direct"]) == [("direct", "bare")]
    assert comparisons(["envoy+splice"]) == []
    assert comparisons(["envoy", "embedded"]) == [("embedded", "envoy")]


def test_medians_and_spreads() -> None:
    found = figures.spreads(SAMPLES)
    assert found["envoy"]["c1"]["rps"] == Spread(800, 500, 1000)
    assert figures.medians(found)["envoy+splice"] == {"c1": {"rps": 1200, "p50_us": 833.3}}


def test_ratios_are_those_of_one_round() -> None:
    # The second round was slow for both: the ratio does not show it, the ratio of the medians would.
    assert figures.ratios(SAMPLES)["envoy+splice/envoy"]["c1"]["rps"] == Spread(1.5, 1.2, 2.0)


def test_what_only_one_path_has_is_in_no_ratio() -> None:
    proxied = Sample("envoy", "c1", 1, {"rps": 500, "cpu_us": 80.0}, Counters())
    other = Sample("embedded", "c1", 1, {"rps": 250, "cpu_us": 160.0}, Counters())
    direct = Sample("direct", "c1", 1, {"rps": 1000}, Counters())
    found = figures.ratios([proxied, other, direct])
    assert found["envoy/direct"]["c1"].keys() == {"rps"}
    assert found["embedded/envoy"]["c1"]["cpu_us"] == Spread(2, 2, 2)


def test_a_figure_that_a_path_does_not_have_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    direct = Sample("direct", "c1", 1, {"rps": 1000}, Counters())
    report.print_tables(MACHINE, 1, [direct, Sample("envoy", "c1", 1, {"rps": 500, "cpu_us": 80.0}, Counters())])
    lines = capsys.readouterr().out.splitlines()
    assert "embedded 0.1.0 (1 worker), envoy 1.40.0 (2 workers)" in lines[0]
    (row,) = (line for line in lines if line.startswith("c1 proxy CPU"))
    assert row.split()[-2:] == ["-", "80.0"]


def test_counters() -> None:
    counted = figures.counted(SAMPLES)
    assert counted["envoy"].share == 0
    assert counted["envoy+splice"].plain()["share"] == 0.99
    assert counted["envoy+splice"].spliced == 4
    assert Counters(redirected_bytes=5, agent_seconds=1.5).since(Counters(redirected_bytes=2, agent_seconds=1.0)) == (
        Counters(redirected_bytes=3, agent_seconds=0.5)
    )
    assert Counters().share == 0


@pytest.mark.parametrize(
    ("path", "counted", "message"),
    [
        ("envoy+splice", Counters(redirected_bytes=9, spliced=33), ""),
        ("envoy+splice", Counters(redirected_bytes=9, spliced=30, tcp_only=3), ""),
        ("envoy+splice", Counters(tcp_bytes=9, tcp_only=33), "not one byte was redirected"),
        ("envoy", Counters(tcp_bytes=9, tcp_only=33), ""),
        ("envoy", Counters(redirected_bytes=9, spliced=2), "9 bytes were redirected although splicing is off"),
        ("direct", Counters(redirected_bytes=9), "9 bytes were redirected"),
        ("envoy", Counters(tcp_only=48), ""),
        ("envoy", Counters(tcp_only=50), "50 legs of connections instead of 49"),
        ("embedded", Counters(tcp_only=35), "35 legs of connections instead of 33"),
    ],
)
def test_a_run_that_took_another_path_is_void(path: str, counted: Counters, message: str) -> None:
    with pytest.raises(BenchError, match=message) if message else nullcontext():
        check_took(PATHS[path], LOADS["c16"], counted)


def test_bytes_on_the_veths() -> None:
    rows: list[dict[str, Any]] = [
        {"hook": hook, "verdict": verdict, "bytes": size}
        for hook, verdict, size in (
            ("from-pod", "allow", 1),
            ("to-pod", "allow", 2),
            ("from-pod", "redirect", 4),
            ("from-pod", "deny", 8),
            ("sk-msg", "deny", 16),
            ("from-network", "allow", 32),
        )
    ]
    assert veth_bytes(rows) == 7


def test_json() -> None:
    made = msgspec.json.decode(msgspec.json.encode(report.as_json(MACHINE, 3, SAMPLES)))
    assert list(made) == ["machine", "rounds", "paths", "spread", "ratios", "counters"]
    assert made["rounds"] == 3
    assert made["paths"]["envoy"] == {"c1": {"rps": 800, "p50_us": 1250}}
    assert made["spread"]["envoy"]["c1"]["rps"] == [500, 1000]
    assert made["ratios"]["envoy+splice/envoy"]["c1"]["rps"] == {"median": 1.5, "min": 1.2, "max": 2.0}
    assert made["counters"]["envoy+splice"]["redirected_bytes"] == 1980


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_tables(MACHINE, 3, SAMPLES)
    lines = capsys.readouterr().out.splitlines()
    (heads,) = (line for line in lines if "envoy+splice/envoy" in line)
    assert heads.split() == ["envoy+splice/envoy"]
    assert any(line.startswith("c1 req/s") and "1.50 (1.20 – 2.00)" in line for line in lines)
    assert any(line.startswith("c1 req/s") and "800 (500 – 1,000)" in line for line in lines)
    assert any("99.000%" in line for line in lines)


def test_the_policy_lets_every_load_pass_and_nothing_else() -> None:
    client = Pod("bench", "client", {"bench": "client"}, (IPv4Address("10.240.1.10"),), "node1")
    server = Pod("bench", "served", {"bench": "served"}, (IPv4Address("10.240.1.11"),), "node1")
    objects = parse_document(Document("bench.yaml", 1, 1, http_policy()))
    cluster = Cluster().with_objects([client, server, *objects])
    connection = Connection(client.addresses[0], server.addresses[0], Protocol.TCP, 80)
    passed = {
        name
        for name in (*{load.file for load in LOADS.values()}, "no-such-file", "small/", "")
        if (http := evaluate(cluster, connection, HttpRequest.of("GET", f"/{name}")).http) and http.status == 200
    }
    assert passed == FILES.keys()


def test_nginx_files_have_their_sizes(tmp_path: Path) -> None:
    nginx.prepare(tmp_path, FILES)
    assert {path.name: path.stat().st_size for path in (tmp_path / "files").iterdir()} == FILES
    argv = nginx.command(tmp_path, "served")
    config = Path(argv[-1]).read_text()
    assert f"root {tmp_path}/files;" in config
    assert "worker_processes 1;" in config
    assert "{" in config.replace("{{", "")
    assert "{{" not in config


def test_latencies_as_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    one = Latency(
        "HTTP", "envoy+splice", "TCP", "tighten", "request", Spread.of((12.0, 10.0, 30.0)), (12.0, 10.0, 30.0)
    )
    result = LatencyResult(MACHINE, [one])
    report.print_latencies(result)
    title, _, row = capsys.readouterr().out.strip().splitlines()
    assert title == "From rename() to the first packet or request judged anew, milliseconds"
    assert row.split() == ["HTTP", "envoy+splice", "TCP", "tighten", "request", "3", "12.0", "10.0", "30.0"]
    (made,) = msgspec.json.decode(msgspec.json.encode(report.latency_json(result)))["latencies"]
    assert (made["data_path"], made["milliseconds"]["median"]) == ("envoy+splice", 12.0)
