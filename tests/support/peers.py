"""Other proxies in Python for the benchmark: their environments, and how each is started for the same work.

mitmproxy pins an old h11, so that each has a virtual environment of its own, below the user's cache directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_BENCH = Path(__file__).parent.parent / "bench"
#: The newest that Python 3.11 can have.
REQUIREMENTS = {"mitmproxy": "mitmproxy==11.0.2", "proxy.py": "proxy.py==2.4.10"}


class PeerError(Exception):
    """An environment can't be made, or a proxy does not start."""


class Command(NamedTuple):
    """A command line, and what it needs in its environment."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def environment(peer: str, cache: Path | None = None) -> Path:
    """The virtual environment of a peer, made if it is not there. Raises PeerError."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spliceway" / "peers"
    place = cache / REQUIREMENTS[peer].replace("==", "-")
    complete = place / ".complete"
    if not complete.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _run(peer, [sys.executable, "-m", "venv", "--clear", str(place)])
        _run(peer, [str(place / "bin/python"), "-m", "pip", "install", "--quiet", REQUIREMENTS[peer]])
        complete.touch()
    return place


def command(
    peer: str, place: Path, listen: tuple[str, int], upstream: str, rules: Sequence[str], scratch: Path
) -> Command:
    """How to start a peer as a filtering reverse proxy on one address.

    `upstream` is `host:port`; `rules` are «METHOD PATH»; `scratch` takes the files that it writes for itself.
    """
    host, port = listen
    given = {"RULES": ";".join(rules), "UPSTREAM": upstream, "HOME": str(scratch)}
    if peer == "mitmproxy":
        options = ("flow_detail=0", "keep_host_header=true", "connection_strategy=lazy", "http2=false", "rawtcp=false")
        argv = (
            *(str(place / "bin/mitmdump"), "--quiet", "--mode", f"reverse:http://{upstream}"),
            *("--listen-host", host, "--listen-port", str(port)),
            *("--set", f"confdir={scratch}", *(part for option in options for part in ("--set", option))),
            *("--scripts", str(_BENCH / "bench_proxy_mitmproxy.py")),
        )
        return Command(argv, given)
    argv = (
        *(str(place / "bin/proxy"), "--hostname", host, "--port", str(port), "--log-level", "ERROR"),
        *("--num-workers", "1", "--num-acceptors", "1", "--backlog", "4096", "--open-file-limit", "4096"),
        *("--disable-http-proxy", "--enable-reverse-proxy", "--plugins", "bench_proxy_proxypy.Filter"),
        *("--data-dir", str(scratch), "--timeout", "3600"),
    )
    return Command(argv, given | {"PYTHONPATH": str(_BENCH)})


def cpu_seconds(session: int) -> float:
    """CPU time of the processes of a session that live, user and system."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _session_of(entry) == session:
            # The kernel's clock of another process, in nanoseconds: linux/posix-timers.h, CPUCLOCK_SCHED.
            total += time.clock_gettime(~int(entry.name) << 3 | 2)
    return total


def resident_mib(session: int) -> dict[int, float]:
    """Resident memory of each process of a session, in MiB, by its id."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    return {
        int(entry.name): int((entry / "statm").read_text().split()[1]) * page
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _session_of(entry) == session
    }


def _session_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:  # it has ended since
        return -1


def _run(peer: str, argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(
            f"{peer}: no environment for it: {' '.join(argv)} failed. Is the package index reachable? "
            f"Without it, leave {peer} out (--paths).\n{done.stderr.strip()[-1000:]}"
        )
