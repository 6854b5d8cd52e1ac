"""wrk's command line and result."""

from __future__ import annotations

import pytest

from spliceway.agent.bench import wrk
from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.load import FILES, LOADS

REPORT = (
    'spliceway-result {"duration_us":2000000,"requests":3000,"bytes":900000,"p50_us":310.0,"p99_us":1250.5,'
    '"max_us":9000.0,"errors":{"connect":0,"read":0,"write":0,"timeout":0,"status":0}}\n'
)
#: What wrk prints in front of what the script does.
OUTPUT = "Running 2s test @ http://10.240.1.10/small\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n" + REPORT


def test_command() -> None:
    argv = list(wrk.command("/r.lua", "http://10.0.0.1/small", 16, 3))
    assert argv[0] == "wrk"
    assert argv[-1] == "http://10.0.0.1/small"
    for option, value in (("--threads", "1"), ("--connections", "16"), ("--duration", "3s"), ("--script", "/r.lua")):
        assert argv[argv.index(option) + 1] == value


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1s"), (1.0, "1s"), (2.6, "3s")])
def test_wrk_takes_whole_seconds(seconds: float, text: str) -> None:
    argv = list(wrk.command("s", "u", 1, seconds))
    assert argv[argv.index("--duration") + 1] == text


def test_parse() -> None:
    result = wrk.parse(OUTPUT)
    assert (result.requests, result.p50_us, result.p99_us) == (3000, 310.0, 1250.5)
    assert result.requests_per_second == 1500
    assert result.bytes_per_second == 450_000


@pytest.mark.parametrize("kind", ["connect", "read", "write", "timeout", "status"])
def test_any_error_makes_a_run_void(kind: str) -> None:
    with pytest.raises(BenchError, match=rf"of 3000 requests some failed: 7 {kind} errors"):
        wrk.parse(OUTPUT.replace(f'"{kind}":0', f'"{kind}":7'))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "it printed nothing"),
        ("unable to connect to 10.0.0.1:http Connection refused\n", "Connection refused"),
        (REPORT + REPORT, "did not report"),
        ("spliceway-result {}\n", "reported 'spliceway-result {}'"),
        (OUTPUT.replace('"requests":3000', '"requests":0'), "not one request"),
        (OUTPUT.replace('"duration_us":2000000', '"duration_us":0'), "not one request"),
    ],
)
def test_no_result_is_an_error(output: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        wrk.parse(output)


def test_loads_give_their_figures() -> None:
    result = wrk.parse(OUTPUT)
    assert LOADS["c16"].figures(result) == {"rps": 1500, "p50_us": 310.0, "p99_us": 1250.5}
    assert LOADS["1m"].figures(result) == {"gb_per_s": 0.00045}
    assert {load.file for load in LOADS.values()} == FILES.keys()
    assert {name: load.connections for name, load in LOADS.items() if load.latency} == {"c1": 1, "c16": 16, "u16": 16}
    assert [name for name, load in LOADS.items() if load.unique] == ["u16"]
