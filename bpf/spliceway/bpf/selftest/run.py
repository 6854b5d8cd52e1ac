"""Running the self-test from an agent: in a child process, once for each boot, kernel and set of programs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import msgspec
import structlog

from spliceway.bpf import ownfiles
from spliceway.bpf.selftest import cache, leftovers
from spliceway.bpf.selftest.identity import identity, make_report
from spliceway.bpf.selftest.limits import BUILDING, CHECK, CHECKS, CLOSING
from spliceway.bpf.selftest.report import SelfTestReport
from spliceway.bpf.types import DatapathSettings

#: Seconds beyond its own limits that the child is given for each step, and for all of them.
_GRACE = 10.0
#: Seconds after which the child is ended, should it not keep to its own limits.
TIMEOUT = BUILDING + CHECKS + CLOSING + _GRACE
#: Seconds for what was killed to be gone: the kernel may hold on to it for ever.
_BURIED = 5.0
#: Seconds between two looks at a lock that another agent holds.
_LOOK = 0.1
_LAST_WORDS = 300
#: Bytes of the longest line, which is the report.
_LONGEST = 1 << 20

_log = structlog.get_logger(__name__)


async def load_or_run(
    settings: DatapathSettings, directory: Path, *, test_defines: Mapping[str, str] | None = None
) -> SelfTestReport:
    """The report that is kept in `directory`, or that of a run which is made now. One at a time.

    A run that didn't come to its end says so in `error`, and allows nothing; it is not kept, nor is one with a check
    that didn't. Without a directory that is safe to keep anything in, every call makes a run. It never takes longer
    than a run of somebody else and its own.
    """
    about = identity(test_defines)
    await _sweep(settings)  # also where none is to be run: an agent that was killed has left its own
    try:
        ownfiles.prepare(directory)
    except OSError as error:
        _log.warning("reports of the self-test can't be kept", directory=str(directory), error=str(error))
        return await run(settings, test_defines=test_defines)
    async with _locked(directory):
        found = cache.load(directory, about)
        if found is None:
            found = await run(settings, test_defines=test_defines)
            if found.lasts:
                with contextlib.suppress(OSError):  # no room: the next one runs it again
                    cache.store(directory, found)
    return found


async def run(
    settings: DatapathSettings, *, test_defines: Mapping[str, str] | None = None, patience: float = TIMEOUT
) -> SelfTestReport:
    """Run it. Never raises: what keeps it from its end is the report's `error`. `patience` in seconds."""
    began, now = time.monotonic(), time.time()
    argv = [sys.executable, "-P", "-m", "spliceway.bpf.selftest", "-o", "json", "--steps", "--parent", str(os.getpid())]
    argv += ["--pods-cgroup", str(settings.pods_cgroup), "--proxy-cgroup", str(settings.proxy_cgroup)]
    argv += ["--bpffs", str(settings.bpffs)]
    if settings.program_cache is not None:
        argv += ["--program-cache", str(settings.program_cache)]
    for name, value in (test_defines or {}).items():
        argv += ["--test-define", f"{name}={value}"]
    try:
        return await _child(argv, patience)
    except asyncio.CancelledError:  # the agent ends, and maybe for good
        await _sweep(settings)
        raise
    except (OSError, RuntimeError) as error:
        await _sweep(settings)
        seconds = time.monotonic() - began
        return make_report(identity(test_defines), time=now, seconds=seconds, error=str(error))


async def _sweep(settings: DatapathSettings) -> None:
    """Remove what runs have left that are over; what can't go now goes the next time."""
    with contextlib.suppress(OSError):
        await asyncio.to_thread(leftovers.sweep, settings.pods_cgroup, settings.proxy_cgroup)


async def _child(argv: list[str], patience: float) -> SelfTestReport:
    """Run the child to its end. Raises OSError, or RuntimeError when it has no report."""
    with os.fdopen(os.memfd_create("self-test's words"), "w+b") as err:  # no pipe, which others could hold open
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=PIPE, stderr=err, start_new_session=True, limit=_LONGEST
        )
        try:
            async with asyncio.timeout(patience):
                step, last = await _follow(child)
                status = await _ended(child)
        except TimeoutError:
            raise RuntimeError(f"not done after {patience:g} s") from None
        finally:
            if child.returncode is None:
                await _kill(child)
        if status < 0 or not last:
            how = f"by {_signal(-status)}" if status < 0 else f"with status {status}"
            raise RuntimeError(f"the process ended {how}{_in(step)}: {_last_words(err)}")
        try:
            return msgspec.json.decode(last, type=SelfTestReport)
        except msgspec.MsgspecError as error:
            raise RuntimeError(f"its report is damaged: {error}: {_last_words(err)}") from None


async def _follow(child: Process) -> tuple[str, bytes]:
    """The step that it began last, and its report; nothing in its place when there is none.

    Raises RuntimeError for a step that does not end.
    """
    assert child.stdout is not None
    step, patience = "", BUILDING + _GRACE
    while True:
        try:
            async with asyncio.timeout(patience):
                line = await child.stdout.readline()
        except TimeoutError:
            raise RuntimeError(f"nothing moves any more{_in(step)}") from None
        if not line or line.startswith(b"{"):
            return step, line
        step, patience = line.decode(errors="replace").strip(), CHECK + CLOSING + _GRACE


async def _ended(child: Process) -> int:
    """Its exit status. Raises RuntimeError when it has said all and stays."""
    try:
        async with asyncio.timeout(_GRACE):
            return await child.wait()
    except TimeoutError:
        raise RuntimeError("the process does not end") from None


async def _kill(child: Process) -> None:
    """With all that it has started, the compiler for one: they are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_BURIED):
            await child.wait()
    except TimeoutError:
        _log.error("the self-test's process can't be ended: the kernel holds it", pid=child.pid)


def _in(step: str) -> str:
    return f" in {step}" if step else ", before any check"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(err: IO[bytes]) -> str:
    err.seek(0)
    return err.read().decode(errors="replace").strip()[-_LAST_WORDS:] or "it said nothing"


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[None]:
    """Alone in this directory. What holds the lock ends soon, however it ends: the lock goes with its process.

    One that was stopped with the lock is waited for no longer than for a run.
    """
    deadline = time.monotonic() + TIMEOUT
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    _log.warning("another agent's self-test does not end", lock=str(directory / "lock"))
                    break
                await asyncio.sleep(_LOOK)
        yield
    finally:
        os.close(descriptor)
