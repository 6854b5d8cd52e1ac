"""Code in a process with a mount namespace of its own, in which everything is private: it can hide things."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: unshare(1) can't do it in a chroot whose root is no mount point: it would make that one private as well.
OWN_MOUNTS = """
import os
from spliceway.agent.testbed import cgroups, mounts, runs
from spliceway.agent.testbed.syscalls import mount, unmount, unshare
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
CLONE_NEWNS, MS_PRIVATE = 0x20000, 1 << 18
unshare(CLONE_NEWNS)
if os.readlink("/proc/self/ns/mnt") == os.readlink(f"/proc/{os.getppid()}/ns/mnt"):
    raise SystemExit("still in the machine's mount namespace: nothing may be unmounted here")
for each in mounts.mounts():
    mount("none", each.path, flags=MS_PRIVATE)
def no_cgroup2():
    for each in reversed(mounts.mounts()):
        if each.kind == "cgroup2":
            unmount(each.path)
"""


def in_own_mounts(code: str, *arguments: str) -> str:
    """Run code after OWN_MOUNTS and return what it prints."""
    command = [sys.executable, "-c", OWN_MOUNTS + code, *arguments]
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
