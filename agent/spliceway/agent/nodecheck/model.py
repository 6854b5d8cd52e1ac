"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

from spliceway.agent.configsections import CniConfig, KillSwitchConfig, PoliciesConfig
from spliceway.bpf.types import DatapathSettings


class Status(StrEnum):
    """How a check ended. `fail`: an agent can't do its work like this; `warn`: something of it suffers."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    INFO = "info"
    SKIPPED = "skipped"


class Check(msgspec.Struct, frozen=True):
    """One result. `name` is stable, in kebab case; `to_do` is one line, empty when there is nothing to do."""

    name: str
    status: Status
    found: str
    to_do: str = ""


class Report(msgspec.Struct, frozen=True):
    """All results, in the order of docs/preflight.md. `failed`, `warned`: names of checks."""

    kernel: str
    checks: tuple[Check, ...]
    failed: tuple[str, ...]
    warned: tuple[str, ...]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at: the numbers and places of a configuration, or the defaults.

    `settings`: with the cgroups only where there is a configuration (`configured`); `fixes`: what `splice.kernelFixes`
    declares; `source`: where policies come from; `kill_switch`: the file that turns enforcement off; `kinds`: which
    kinds of policies are enforced here; `cni`: how pods are wired, None without a configuration.
    """

    settings: DatapathSettings
    configured: bool
    source: Path | None = None
    fixes: tuple[str, ...] = ()
    self_test: bool = True
    kill_switch: Path | None = KillSwitchConfig().file
    kinds: tuple[str, ...] = PoliciesConfig().kinds
    cni: CniConfig | None = None

    @property
    def cgroups(self) -> dict[str, Path]:
        """Field of the configuration → directory; empty without a configuration."""
        if not self.configured:
            return {}
        return {"cgroups.pods": self.settings.pods_cgroup, "cgroups.proxy": self.settings.proxy_cgroup}


def report(kernel: str, checks: Iterable[Check]) -> Report:
    """Sum up."""
    found = tuple(checks)
    by_status = {
        status: tuple(dict.fromkeys(check.name for check in found if check.status is status)) for status in Status
    }
    return Report(kernel, found, by_status[Status.FAIL], by_status[Status.WARN])


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, Status.OK, found)


def info(name: str, found: str, to_do: str = "") -> Check:
    """Good to know."""
    return Check(name, Status.INFO, found, to_do)


def warn(name: str, found: str, to_do: str) -> Check:
    """Something suffers."""
    return Check(name, Status.WARN, found, to_do)


def fail(name: str, found: str, to_do: str) -> Check:
    """An agent can't do its work like this."""
    return Check(name, Status.FAIL, found, to_do)


def skipped(name: str, why: str, to_do: str = "") -> Check:
    """Could not be looked at."""
    return Check(name, Status.SKIPPED, why, to_do)
