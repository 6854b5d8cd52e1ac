"""Knowing a process of the proxy's again."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from spliceway.agent.proxyprocess import identify, is_running, spawn


def test_it_is_known_from_its_first_moment(tmp_path: Path) -> None:
    """It is a shell first: an agent that comes then must not start a second one."""
    binary = Path(sys.executable).resolve()
    for _ in range(20):
        pid = spawn([sys.executable, "-c", "import time; time.sleep(30)"], tmp_path / "log", None)
        try:
            identity = identify(pid, binary, "1", "", "embedded")
            assert identity is not None
            assert is_running(identity)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not is_running(identity)
