"""Running programs in a namespace and a cgroup.

The program is in both before its first instruction: a shell writes itself into the cgroup, becomes nsenter, and that
becomes the program, all under one pid. `ip netns exec` is no choice: it remounts /sys and hides cgroups and bpffs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError

_ENTER = 'echo 0 >"$1/cgroup.procs" || exit 125; shift; exec nsenter "$@"'
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a program in a pod.

    It has nothing of the caller's: a proxy setting would bend the pod's requests. The directory of this Python is the
    first in PATH, so that `python -m spliceway.agent.testbed.server` works in a manifest.
    """
    path = f"{Path(sys.executable).parent}:{_SYSTEM_PATH}"
    return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **(extra or {})}


def spawn(
    namespace: Path, cgroup: Path, argv: Sequence[str], env: Mapping[str, str], **options: Any
) -> subprocess.Popen[Any]:
    """Start a program inside a namespace and a cgroup; `options` are Popen's. Its pid is that of the program.

    Stdin is /dev/null unless given. The program gets a session of its own: Ctrl-C ends the caller only.
    """
    if not namespace.exists():
        raise TestbedError(f"{namespace}: no such network namespace; was the testbed taken down?")
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("start_new_session", True)
    command = ["/bin/sh", "-c", _ENTER, "spliceway-enter", str(cgroup), f"--net={namespace}", "--", *argv]
    return subprocess.Popen(command, env=dict(env), **options)


def run(
    namespace: Path, cgroup: Path, argv: Sequence[str], env: Mapping[str, str], timeout: float, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return status, stdout and stderr as text.

    Raises TestbedError when it takes longer than `timeout` seconds; it is killed then.
    """
    pipe = subprocess.PIPE
    process = spawn(
        namespace, cgroup, argv, env, stdin=pipe if stdin is not None else None, stdout=pipe, stderr=pipe, text=True
    )
    with process:
        try:
            stdout, stderr = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise TestbedError(f"{' '.join(argv)}: not done after {timeout:g} s: {stderr.strip()[-500:]}") from None
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def replace(namespace: Path, cgroup: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Become a program inside a namespace and a cgroup, with the caller's terminal. Does not return."""
    try:
        (cgroup / "cgroup.procs").write_text("0")
    except OSError as error:
        raise TestbedError(f"{cgroup}: can't join the cgroup: {error.strerror}") from error
    netns.enter(namespace)
    try:
        os.execvpe(argv[0], list(argv), dict(env))
    except OSError as error:
        raise TestbedError(f"{argv[0]}: {error.strerror}") from error
