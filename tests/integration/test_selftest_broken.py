"""Checks of the self-test that are broken themselves: each ends in time, by its name, and its class is not spliced."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed.agentprocess import agent_config, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.selftest import leftovers
from spliceway.bpf.selftest.report import Check, Result, SelfTestReport, Side
from spliceway.bpf.selftest.run import load_or_run
from spliceway.bpf.types import DatapathSettings
from support.node import pod_manifest, server_manifest
from support.talk import Talk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(200)]

#: Python loads it at its start where PYTHONPATH says so. In the self-test it puts something else in a check's place.
_AT_START = """
import ctypes, os, signal, sys, time
if "spliceway.bpf.selftest" in sys.orig_argv:
    from spliceway.bpf.errors import DatapathError
    from spliceway.bpf.selftest import checklist, talk

    def swallow():
        while True:
            try:
                time.sleep(1)
            except Exception:
                pass

    def meanwhile():
        with talk.meanwhile(lambda: time.sleep(1000)):
            pass

    def thread():
        import threading
        threading.Thread(target=time.sleep, args=(1000,)).start()

    def executor(site):
        import asyncio
        site._runner.run(asyncio.to_thread(time.sleep, 1000))

    ways = {
        "raise": lambda site: {}["a key"],
        "assert": lambda site: exec("assert not site"),
        "exit": lambda site: sys.exit(0),
        "interrupt": lambda site: exec("raise KeyboardInterrupt"),
        "sleep": lambda site: time.sleep(1000),
        "spin": lambda site: exec("while True: pass"),
        "swallow": lambda site: swallow(),
        "meanwhile": lambda site: meanwhile(),
        "thread": lambda site: thread(),
        "executor": executor,
        "leave": lambda site: os._exit(0),
        "crash": lambda site: os.kill(os.getpid(), signal.SIGSEGV),
        "killed": lambda site: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda site: os.kill(os.getpid(), signal.SIGSTOP),
        "hold": lambda site: [ctypes.PyDLL(None).usleep(1_000_000) for _ in range(1000)] and None,
        "factory": lambda site: [os.kill(each._pid, signal.SIGKILL) for each in site._factories] and None,
    }
    name, side, way = os.environ["SELF_TEST_BREAK"].split()

    def broken(site, of, version, was):
        if of != side:
            return was(site, of, version)
        ways[way](site)
        return "done"

    checklist.ITEMS = tuple(
        item._replace(function=lambda *a, was=item.function: broken(*a, was)) if item.name == name else item
        for item in checklist.ITEMS
    )
"""
Break = Callable[[str], None]


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as made:
        yield made


@pytest.fixture
def settings(testbed: Testbed) -> DatapathSettings:
    info = testbed.node.info
    cache = Path(str(agent_config(testbed.node)["datapath"]["programCache"]))
    return DatapathSettings(
        bpffs=info.bpffs,
        state_dir=info.state,
        pods_cgroup=info.cgroups.pods,
        proxy_cgroup=info.cgroups.proxy,
        program_cache=cache,
    )


@pytest.fixture
def breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Break:
    """«NAME SIDE WAY»: from now on that check does that for one class."""

    def use(what: str) -> None:
        place = tmp_path / "start"
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(_AT_START)
        monkeypatch.setenv("PYTHONPATH", ":".join([str(place), *(each for each in sys.path if each)]))
        monkeypatch.setenv("SELF_TEST_BREAK", what)

    return use


def made(settings: DatapathSettings, directory: Path) -> tuple[SelfTestReport, float]:
    """The report, and how long it took."""
    begin = time.monotonic()
    report = asyncio.run(load_or_run(settings, directory))
    print([f"{c.name} {c.result} {c.seconds} {c.text}" for c in report.checks if c.result is Result.BAD], report.error)
    left = [p for each in (settings.pods_cgroup, settings.proxy_cgroup) for p in each.glob(f"{leftovers.PREFIX}*")]
    assert left == []
    return report, time.monotonic() - begin


def the_bad_one(report: SelfTestReport) -> Check:
    (found,) = (check for check in report.checks if check.result is Result.BAD)
    return found


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("raise", "internal error: KeyError('a key') (servers IPv4, servers IPv6)"),
        ("assert", "internal error: AssertionError() (servers IPv4, servers IPv6)"),
        ("exit", "internal error: SystemExit(0) (servers IPv4, servers IPv6)"),
        ("meanwhile", "what is done meanwhile hangs after 5 s (servers IPv4, servers IPv6)"),
    ],
)
def test_a_check_that_fails_oddly_is_bad_for_its_class(
    settings: DatapathSettings, breaks: Break, tmp_path: Path, way: str, told: str
) -> None:
    breaks(f"fin servers {way}")
    report, _ = made(settings, tmp_path / "kept")
    assert (report.clients, report.servers, report.error) == (True, False, "")
    bad = the_bad_one(report)
    assert (bad.name, bad.text, bad.switches_off) == ("fin", told, (Side.SERVERS,))
    assert report.why == f"fin is bad: {told}"
    assert bad.broken == (way != "meanwhile")
    assert bool(list((tmp_path / "kept").glob("*.json"))) == (way == "meanwhile"), "what is broken is tried again"


@pytest.mark.parametrize("way", ["sleep", "spin", "swallow", "executor"])
def test_a_check_that_hangs_is_bad_for_its_class(
    settings: DatapathSettings, breaks: Break, tmp_path: Path, way: str
) -> None:
    breaks(f"fin clients {way}")
    report, took = made(settings, tmp_path / "kept")
    assert took < 60
    assert (report.clients, report.servers, report.error) == (False, True, "")
    bad = the_bad_one(report)
    assert (bad.name, bad.switches_off, bad.broken) == ("fin", (Side.CLIENTS,), True)
    assert bad.text == "not done after 8 s (clients IPv4)"
    rest = [check for check in report.checks if check.result is Result.NOT_RUN]
    assert {check.text.partition(" (")[0] for check in rest} == {"fin was not done in time"}
    assert [check.name for check in report.checks if check.result is Result.OK] == ["order"]
    assert not list((tmp_path / "kept").glob("*.json"))


def test_a_thread_that_stays_keeps_nobody(settings: DatapathSettings, breaks: Break, tmp_path: Path) -> None:
    breaks("fin clients thread")
    report, took = made(settings, tmp_path / "kept")
    assert took < 60
    assert (report.clients, report.servers, report.error) == (True, True, "")


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("interrupt", "the process ended by SIGINT in fin (clients IPv4): "),
        ("leave", "the process ended with status 0 in fin (clients IPv4): "),
        ("crash", "the process ended by SIGSEGV in fin (clients IPv4): "),
        ("killed", "the process ended by SIGKILL in fin (clients IPv4): "),
        ("stop", "nothing moves any more in fin (clients IPv4)"),
    ],
)
def test_a_process_that_ends_or_stops_in_a_check_allows_nothing_and_says_where(
    settings: DatapathSettings, breaks: Break, tmp_path: Path, way: str, told: str
) -> None:
    breaks(f"fin clients {way}")
    report, took = made(settings, tmp_path / "kept")
    assert took < 60
    assert (report.clients, report.servers) == (False, False)
    assert report.error.startswith(told), report.error
    assert not list((tmp_path / "kept").glob("*.json"))


def test_a_check_that_lets_no_other_thread_run_is_ended(
    settings: DatapathSettings, breaks: Break, tmp_path: Path
) -> None:
    breaks("fin clients hold")
    report, took = made(settings, tmp_path / "kept")
    assert took < 60
    assert not report.clients


def test_who_makes_its_sockets_is_gone(settings: DatapathSettings, breaks: Break, tmp_path: Path) -> None:
    """A child of its own that crashes: that check is well, and none after it."""
    breaks("order clients factory")
    report, took = made(settings, tmp_path / "kept")
    assert took < 60
    assert (report.clients, report.servers, report.error) == (False, False, "")
    assert {check.result for check in report.checks} == {Result.BAD}
    assert "BrokenPipeError" in report.why or "no socket" in report.why


@pytest.mark.parametrize(
    ("what", "spliced", "told"),
    [
        ("fin servers raise", ["clients"], "self-test: fin is bad: internal error: KeyError('a key')"),
        ("fin clients sleep", ["servers"], "self-test: fin is bad: not done after 8 s"),
        ("fin clients crash", [], "self-test: the process ended by SIGSEGV in fin (clients IPv4): "),
        ("fin servers stop", [], "self-test: nothing moves any more in fin (servers IPv4)"),
    ],
)
def test_an_agent_decides_and_says_why(
    testbed: Testbed, breaks: Break, tmp_path: Path, what: str, spliced: list[str], told: str
) -> None:
    breaks(what)
    testbed.node.write_policy("http", _POLICY)
    agent = start_agent(testbed.node, {"splice": {"selfTestDir": str(tmp_path / "kept")}}, timeout=90)
    try:
        status = agent.client.get("status")["splice"]
        assert (status["decided"], status["spliced"]) == (True, spliced)
        assert any(why.startswith(told) for why in status["why"]), status["why"]
        with Talk(testbed, "client", "server") as talk:
            assert talk.ask() == "200"
            assert talk.ask("/y") == "403"
            assert talk.ask() == "200"
            legs = {sock["leg"]: (sock["state"], sock["why"]) for sock in agent.client.get("socks")}
        on, off = ("spliced", ""), ("tcp-only", "kernel")
        assert legs == {
            "downstream": on if "clients" in spliced else off,
            "upstream": on if "servers" in spliced else off,
        }
    finally:
        agent.stop()


_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /x}]}}]
"""
