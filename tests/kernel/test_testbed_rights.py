"""Without rights: kernel tests skip with one clear line, fail when CI demands them, and the testbed says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spliceway.agent.testbed.rights import missing_rights

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
#: Root without a single capability, as in an ordinary container.
POWERLESS = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


def powerless(*arguments: str, require_kernel: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SPLICEWAY_REQUIRE_KERNEL": require_kernel, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*POWERLESS, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env=env)


def pytest_powerless(require_kernel: str = "") -> subprocess.CompletedProcess[str]:
    selected = "tests/kernel/test_testbed.py::test_up_takes_less_than_two_seconds_without_servers"
    return powerless("-m", "pytest", "-q", "-p", "no:cacheprovider", selected, require_kernel=require_kernel)


def test_here_nothing_is_missing() -> None:
    assert missing_rights() is None


def test_kernel_tests_skip_with_one_clear_line() -> None:
    done = pytest_powerless()
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(lines) == 1
    assert "kernel tests need root, BPF rights and network namespaces: no network namespaces: " in lines[0]


def test_kernel_tests_fail_where_they_are_required() -> None:
    done = pytest_powerless(require_kernel="1")
    assert done.returncode == 1
    assert "SPLICEWAY_REQUIRE_KERNEL=1, but kernel tests need root" in done.stdout
    assert "skipped" not in done.stdout


def test_bringing_a_testbed_up_says_what_is_missing() -> None:
    code = (
        "from spliceway.agent.testbed.errors import TestbedError\n"
        "from spliceway.agent.testbed.testbed import Testbed\n"
        "try:\n"
        "    Testbed.up([])\n"
        "except TestbedError as error:\n"
        "    print(error)\n"
    )
    done = powerless("-c", code)
    assert done.stdout.startswith("virtual nodes can't be built here: no network namespaces: ")
    assert done.stdout.endswith("Operation not permitted\n")
    assert done.stderr == ""
