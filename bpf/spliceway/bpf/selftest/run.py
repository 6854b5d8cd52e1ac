"""Running the self-test from an agent: in a child process, once for each boot, kernel and set of programs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from spliceway.bpf import ownfiles
from spliceway.bpf.selftest import cache, leftovers
from spliceway.bpf.selftest.identity import identity, make_report
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import DatapathSettings

#: Seconds after which the child is ended, should it not keep to its own limits.
TIMEOUT = 170.0
#: Seconds between two looks at a lock that another agent holds.
_LOOK = 0.1
_LAST_WORDS = 300

_log = structlog.get_logger(__name__)


async def load_or_run(
    settings: DatapathSettings, directory: Path, *, test_defines: Mapping[str, str] | None = None
) -> SelfTestReport:
    """The report that is kept in `directory`, or that of a run which is made now. One at a time.

    A run that didn't come to its end says so in `error`, allows nothing, and is not kept. Without a directory that is
    safe to keep anything in, every call makes a run.
    """
    about = identity(test_defines)
    try:
        ownfiles.prepare(directory)
    except OSError as error:
        _log.warning("reports of the self-test can't be kept", directory=str(directory), error=str(error))
        return await run(settings, test_defines=test_defines)
    async with _locked(directory):
        found = cache.load(directory, about)
        if found is None:
            found = await run(settings, test_defines=test_defines)
            if not found.error:
                with contextlib.suppress(OSError):  # no room: the next one runs it again
                    cache.store(directory, found)
    return found


async def run(
    settings: DatapathSettings, *, test_defines: Mapping[str, str] | None = None, patience: float = TIMEOUT
) -> SelfTestReport:
    """Run it. Never raises: what keeps it from its end is the report's `error`. `patience` in seconds."""
    began, now = time.monotonic(), time.time()
    argv = [sys.executable, "-P", "-m", "spliceway.bpf.selftest", "-o", "json"]
    argv += ["--pods-cgroup", str(settings.pods_cgroup), "--proxy-cgroup", str(settings.proxy_cgroup)]
    argv += ["--bpffs", str(settings.bpffs)]
    if settings.program_cache is not None:
        argv += ["--program-cache", str(settings.program_cache)]
    for name, value in (test_defines or {}).items():
        argv += ["--test-define", f"{name}={value}"]
    try:
        return await _child(argv, patience)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # what is left now, the next run sweeps
            await asyncio.to_thread(leftovers.sweep, settings.pods_cgroup, settings.proxy_cgroup)
        seconds = time.monotonic() - began
        return make_report(identity(test_defines), time=now, seconds=seconds, error=str(error))


async def _child(argv: list[str], patience: float) -> SelfTestReport:
    """Run the child to its end. Raises OSError, or RuntimeError when it has no report."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        async with asyncio.timeout(patience):
            out, err = await child.communicate()
    except TimeoutError:
        raise RuntimeError(f"not done after {patience:g} s") from None
    finally:
        if child.returncode is None:
            # With all that it has started, the compiler for one: they are in its session.
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    try:
        return msgspec.json.decode(out, type=SelfTestReport)
    except msgspec.MsgspecError:
        words = err.decode(errors="replace").strip()[-_LAST_WORDS:]
        raise RuntimeError(f"the process ended with status {child.returncode}: {words}") from None


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[None]:
    """Alone in this directory. What holds the lock ends soon, however it ends: the lock goes with its process."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOOK)
        yield
    finally:
        os.close(descriptor)
