"""The kernel gate: which connections may be spliced on a kernel, by what is known of its version.

Pure, but for `KernelRelease.running()`. It says what is known; that splicing works is for the self-test to prove.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from spliceway.bpf.gatetable import FEATURES, ROWS, Feature, Row, Scope

#: Upstream's version and patch levels. -1 as the last: a candidate (`-rc`), which counts as older than its release.
Version = tuple[int, int, int]

_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_DEBIAN = re.compile(r"\bDebian (\d+\.\d+(?:\.\d+)?)[-+~]")
_MIN_DIGITS = 12


def version(text: str) -> Version:
    """`6.12.60` -> (6, 12, 60); a patch level that is missing is 0. ValueError for a text that does not start so."""
    found = _NUMBERS.match(text)
    if not found:
        raise ValueError(f"{text!r} is no version of a kernel")
    major, minor, patch = found.groups(default="0")
    return int(major), int(minor), int(patch)


class KernelRelease(msgspec.Struct, frozen=True):
    """A kernel: upstream's version behind a distribution's name for it."""

    name: str  # as `uname -r` says it
    version: Version

    @classmethod
    def parse(cls, release: str, version_text: str = "", signature: str = "") -> KernelRelease:
        """From `uname -r`, `uname -v` and /proc/version_signature (Ubuntu's; else "").

        Debian's `uname -r` may hide the patch level (6.1.0-40-amd64): then it stands in `uname -v`. Ubuntu's is the
        last word of the signature. Either is taken only if it is of the same series. Kernels that keep one version and
        take changes of later ones (5.14.0-570.el9) are what their version says: such changes are declared.
        ValueError for a text without a version.
        """
        found = version(release)
        if re.match(r"[\d.]+-rc\d", release):
            return cls(release, (*found[:2], -1))
        debian = _DEBIAN.search(version_text)
        for hint in (debian[1] if debian else "", signature.rpartition(" ")[2]):
            if _NUMBERS.match(hint) and version(hint)[:2] == found[:2]:
                found = version(hint)
        return cls(release, found)

    @classmethod
    def running(cls) -> KernelRelease:
        """The kernel that runs now."""
        uname = os.uname()
        signature = Path("/proc/version_signature")
        return cls.parse(
            uname.release,
            uname.version,
            signature.read_text().strip() if signature.exists() else "",
        )

    def __str__(self) -> str:
        major, minor, patch = self.version
        number = f"{major}.{minor}" + ("-rc" if patch < 0 else f".{patch}")
        return self.name if self.name.startswith(number) else f"{self.name} (Linux {number})"


class State(StrEnum):
    """What a row means for a kernel."""

    AFFECTED = "affected"
    FIXED = "fixed"
    DECLARED_FIXED = "declared-fixed"
    NOT_AFFECTED = "not-affected"


class Finding(msgspec.Struct, frozen=True):
    """A row, judged for one kernel."""

    row: Row
    state: State

    @property
    def off(self) -> Scope:
        """What it switches off."""
        return self.row.scope if self.state is State.AFFECTED else Scope.TOLD

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        row = self.row
        name = row.cve or row.commit
        if self.state is State.DECLARED_FIXED:
            return f"{name}: {row.what}; declared fixed by splice.kernelFixes."
        if self.state is not State.AFFECTED:
            return f"{name}: {row.what}; not on this kernel."
        mended = " or ".join(filter(None, (", ".join(row.stable), row.fixed)))
        unsure = "" if row.verified else " (or earlier: the range is not confirmed)"
        return f"{name}: {row.what}; {_CONSEQUENCES[row.scope]}. Fixed in Linux {mended}{unsure}."


_CONSEQUENCES = {
    Scope.EVERYTHING: "nothing is spliced",
    Scope.SERVERS: "sockets that pods accept are not spliced",
    Scope.TOLD: "nothing is switched off for it",
}


class Allowed(NamedTuple):
    """Which connections may be spliced: sockets that pods connected, sockets that pods accepted."""

    clients: bool
    servers: bool


def judge(release: KernelRelease, fixed: Collection[str] = ()) -> tuple[Finding, ...]:
    """Every row of the table for this kernel, in the table's order.

    `fixed`: commits (12 digits or more) and CVE names that the kernel has in spite of its version. ValueError for one
    that is not in the table.
    """
    declared = declared_rows(fixed)
    return tuple(Finding(row, _state(row, release, row in declared)) for row in ROWS)


def declared_rows(fixed: Iterable[str]) -> frozenset[Row]:
    """The rows that commits and CVE names stand for. ValueError for an unknown one; it names those that are known."""
    return frozenset(_row(name) for name in fixed)


def allowed(findings: Iterable[Finding]) -> Allowed:
    """What the findings leave on."""
    off = {finding.off for finding in findings}
    return Allowed(clients=Scope.EVERYTHING not in off, servers=not off & {Scope.EVERYTHING, Scope.SERVERS})


def missing(release: KernelRelease) -> tuple[Feature, ...]:
    """Features that came after this version. A distribution may have them all the same: loading the programs tells."""
    return tuple(feature for feature in FEATURES if release.version < version(feature.since))


def _state(row: Row, release: KernelRelease, declared: bool) -> State:
    at = release.version
    if at >= version(row.fixed) or _reached(at, row.stable):
        return State.FIXED
    begun = (*at[:2], max(at[2], 0))  # a candidate may have the fault, and not yet its fix
    if begun < version(row.bad[0]) and not _reached(begun, row.bad[1:]):
        return State.NOT_AFFECTED
    return State.DECLARED_FIXED if declared else State.AFFECTED


def _reached(at: Version, levels: Iterable[str]) -> bool:
    """Whether the version is of one of these series, and not before its patch level."""
    return any(level[:2] == at[:2] and level <= at for level in map(version, levels))


def _row(name: str) -> Row:
    wanted = name.strip()
    for row in ROWS:
        if row.cve and wanted.upper() == row.cve:
            return row
        if len(wanted) >= _MIN_DIGITS and wanted.lower().startswith(row.commit):
            return row
    known = ", ".join(f"{row.commit} ({row.cve})" if row.cve else row.commit for row in ROWS)
    raise ValueError(f"{name!r} is no fix that the kernel gate knows; it knows {known}")
