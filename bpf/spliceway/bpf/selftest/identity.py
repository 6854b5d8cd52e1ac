"""What a report is about: a report counts for this boot of this kernel, these programs and this self-test only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from spliceway.bpf.kernelstructs import offsets
from spliceway.bpf.selftest.report import Check, SelfTestReport, conclude
from spliceway.bpf.source import digest


class Identity(msgspec.Struct, frozen=True):
    """Fields as in SelfTestReport. Sizes of maps and paths are no part: they change nothing that is tested."""

    kernel: str
    version: str
    boot: str
    programs: str
    source: str

    @property
    def key(self) -> str:
        """All of it as 32 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


def identity(test_defines: Mapping[str, str] | None = None) -> Identity:
    """Of a run that would be made now."""
    uname = os.uname()
    return Identity(
        kernel=uname.release,
        version=uname.version,
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        programs=digest({**_offsets(), **(test_defines or {})}),
        source=_own_digest(),
    )


def identity_of(report: SelfTestReport) -> Identity:
    """Of a run that was made."""
    return Identity(report.kernel, report.version, report.boot, report.programs, report.source)


def make_report(
    about: Identity, *, time: float, seconds: float, checks: Iterable[Check] = (), error: str = ""
) -> SelfTestReport:
    """The report of a run: `time` is when it began, `seconds` how long it took. With an error it allows nothing."""
    checks = tuple(checks)
    clients, servers, why = (False, False, "") if error else conclude(checks)
    return SelfTestReport(
        **msgspec.structs.asdict(about),
        time=time,
        seconds=round(seconds, 3),
        checks=checks,
        clients=clients,
        servers=servers,
        why=why,
        error=error,
    )


def _offsets() -> dict[str, str]:
    try:
        return {name: str(offset) for name, offset in offsets().items()}
    except LookupError:
        return {}


def _own_digest() -> str:
    h = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        h.update(file.read_bytes())
    return h.hexdigest()[:16]
