"""Children that end with who made them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

CHILD = """
import os, time
from spliceway.bpf.parent import end_with
end_with(os.getppid())
print("on", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([handle], [], [], 0.2)[0], "while the parent lives it stays"
            parent.kill()
            assert select.select([handle], [], [], 30)[0]
        finally:
            os.close(handle)


def test_a_loader_whose_parent_has_ended_before_loads_nothing() -> None:
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    done = subprocess.run(
        [sys.executable, "-m", "spliceway.bpf.loader", str(nobody.pid)], input=b"{}", capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
