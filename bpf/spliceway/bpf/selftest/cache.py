"""Reports that are kept, so that an agent that is started again does not run the self-test again.

What is read decides what is spliced, so only root's own files count, in a directory that nobody else can write to.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import structlog

from spliceway.bpf import ownfiles
from spliceway.bpf.selftest.identity import Identity, identity_of
from spliceway.bpf.selftest.report import SelfTestReport

_SUFFIX = ".report.json"

_log = structlog.get_logger(__name__)


def path_of(directory: Path, about: Identity) -> Path:
    """Where the report of such a run is kept."""
    return directory / f"{about.key}{_SUFFIX}"


def load(directory: Path, about: Identity) -> SelfTestReport | None:
    """The report of a run like this one, or None. A file that is not root's own, or damaged, is no report."""
    path = path_of(directory, about)
    try:
        report = msgspec.json.decode(ownfiles.read(path), type=SelfTestReport)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("a report of the self-test is not used", file=str(path), error=str(error))
        return None
    return report if identity_of(report) == about else None


def store(directory: Path, report: SelfTestReport) -> None:
    """Keep a report, in one step; those of other kernels, boots and programs go. Raises OSError."""
    path = path_of(directory, identity_of(report))
    ownfiles.write(path, msgspec.json.encode(report))
    for other in directory.glob(f"*{_SUFFIX}"):
        if other != path:
            with contextlib.suppress(FileNotFoundError):
                other.unlink()
