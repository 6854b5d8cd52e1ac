"""The self-test in this kernel: all is well here, what is broken on purpose is found, and nothing of a run stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.selftest import leftovers
from spliceway.bpf.selftest.checklist import ITEMS
from spliceway.bpf.selftest.report import Result, SelfTestReport
from spliceway.bpf.selftest.run import load_or_run, run
from spliceway.bpf.types import DatapathSettings
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

#: Not as over TCP on any kernel so far; they switch nothing off.
_KNOWN = {"blocked-reader", "waitall", "splice"}


@pytest.fixture(scope="module")
def settings() -> Iterator[DatapathSettings]:
    with Testbed.up([pod_manifest("client", {})]) as testbed:
        info = testbed.node.info
        yield DatapathSettings(
            bpffs=info.bpffs, state_dir=info.state, pods_cgroup=info.cgroups.pods, proxy_cgroup=info.cgroups.proxy
        )


def left(settings: DatapathSettings) -> list[Path]:
    return [p for parent in (settings.pods_cgroup, settings.proxy_cgroup) for p in parent.glob(f"{leftovers.PREFIX}*")]


def command(settings: DatapathSettings, *more: str) -> list[str]:
    places = ["--pods-cgroup", settings.pods_cgroup, "--proxy-cgroup", settings.proxy_cgroup, "--bpffs", settings.bpffs]
    return [sys.executable, "-P", "-m", "spliceway.bpf.selftest", *map(str, places), *more]


def test_this_kernel_splices_as_it_should(settings: DatapathSettings, tmp_path: Path) -> None:
    report = asyncio.run(load_or_run(settings, tmp_path / "kept"))
    print("\n".join(f"{c.name} {c.result} {c.seconds} {c.text}" for c in report.checks), report.seconds)
    assert report.error == ""
    assert [c.name for c in report.checks] == [item.name for item in ITEMS]
    assert {c.name: c.text for c in report.checks if c.result in (Result.BAD, Result.NOT_RUN)} == {}
    assert {c.name for c in report.checks if c.result is Result.KNOWN} <= _KNOWN
    assert (report.clients, report.servers, report.why) == (True, True, "")
    assert asyncio.run(load_or_run(settings, tmp_path / "kept")) == report, "it was run again"
    assert left(settings) == []
    assert not {"bpf", "state", "spliceway"} & {path.name for path in settings.bpffs.iterdir()}


@pytest.mark.parametrize(
    ("defines", "finds"),
    [
        (["TEST_DECIDE_EVERY_TIME=1"], {"order": "is not the one that was sent"}),
        (
            ["TEST_NEVER_LEAVE=1"],
            {"half-close": "returned EAGAIN", "fionread": "FIONREAD says 0 where 1000 bytes by TCP wait"},
        ),
        (["TEST_LEAVE_EARLY=1"], {"slow-reader": "nothing moves after"}),
        (  # the measure is of another field of the socket
            ["TEST_NO_LIMIT=1", "SOCK_UNREAD=4"],
            {"slow-reader": "not tcp-only (unread-limit)", "measure": "unread bytes where there are 60000"},
        ),
    ],
)
def test_what_is_broken_is_found(settings: DatapathSettings, defines: list[str], finds: dict[str, str]) -> None:
    asked = [word for define in defines for word in ("--test-define", define)]
    asked += [word for name in finds for word in ("--check", name)]
    done = subprocess.run(command(settings, *asked, "-o", "json"), capture_output=True, timeout=100, check=False)
    report = msgspec.json.decode(done.stdout, type=SelfTestReport)
    assert (done.returncode, report.clients, report.servers) == (1, False, False)
    assert {c.name: c.result for c in report.checks} == dict.fromkeys(finds, Result.BAD), report
    assert [c for c in report.checks if finds[c.name] not in c.text or not c.switches_off] == []


def test_some_checks_by_hand(settings: DatapathSettings) -> None:
    asked = ("--check", "order", "--check", "peek")
    done = subprocess.run(command(settings, *asked), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done
    assert [line.split()[:2] for line in done.stdout.splitlines()[:-1]] == [["ok", "order"], ["ok", "peek"]]
    assert "the checks that were asked for are as they should be" in done.stdout.splitlines()[-1]


def test_what_a_killed_run_leaves_is_swept(settings: DatapathSettings) -> None:
    with subprocess.Popen(command(settings), start_new_session=True) as child:
        deadline = time.monotonic() + 30
        while len(left(settings)) < 2 or not all((p / "cgroup.procs").read_text() for p in left(settings)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert leftovers.sweep(settings.pods_cgroup, settings.proxy_cgroup) == [], "a run that lives was swept"
        os.kill(child.pid, signal.SIGKILL)
    assert len(left(settings)) == 2
    assert len(leftovers.sweep(settings.pods_cgroup, settings.proxy_cgroup)) == 2
    assert left(settings) == []
    assert not {"bpf", "state", "spliceway"} & {path.name for path in settings.bpffs.iterdir()}


def test_a_run_that_takes_too_long_is_ended(settings: DatapathSettings) -> None:
    report = asyncio.run(run(settings, patience=0.5))
    assert report.error == "not done after 0.5 s"
    assert (report.clients, report.servers) == (False, False)
    assert left(settings) == []


def test_a_run_that_can_not_begin_says_why(settings: DatapathSettings) -> None:
    report = asyncio.run(run(msgspec.structs.replace(settings, bpffs=settings.bpffs / "nowhere")))
    assert "No such file or directory" in report.error
    assert (report.clients, report.servers) == (False, False)
    assert left(settings) == []
