"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def describe(proxies: dict[str, Any]) -> dict[str, Any]:
    """Kernel, CPUs, memory in bytes and versions of the programs; `proxies`: by kind what the agent says of it."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "model": _model(Path("/proc/cpuinfo").read_text()),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "proxies": {
            kind: {"version": process["version"], "workers": process["workers"]} for kind, process in proxies.items()
        },
        "nginx": _version(["nginx", "-v"]),
        "wrk": _version(["wrk", "-v"]),
    }


def _model(cpuinfo: str) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else "unknown"


def _version(argv: list[str]) -> str:
    """The first thing with a dot in it that a program says of itself."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": "/usr/sbin:/usr/bin:/bin"})
    found = re.search(r"\d+\.[\w.]+", done.stdout + done.stderr)
    return found[0] if found else "unknown"
