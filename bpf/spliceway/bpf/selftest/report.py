"""What the self-test says: checks, their verdicts, and which classes of connections may be spliced on this kernel."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Side(StrEnum):
    """A class of connections by what the pod's end is: the client of the proxy, or a server that the proxy asks."""

    CLIENTS = "clients"
    SERVERS = "servers"


class Result(StrEnum):
    """Outcome of a check.

    `known`: not as over TCP, lost nothing, and documented (docs/splicing.md); applications that need it opt out.
    """

    OK = "ok"
    KNOWN = "known"
    BAD = "bad"
    NOT_RUN = "not-run"


class Check(msgspec.Struct, frozen=True):
    """One check. `row`: of the list of sockmap's pitfalls in docs/splicing.md; `text`: one sentence of what was seen.

    `switches_off`: the classes for which it was bad, and which are not spliced therefore. `broken`: it did not come to
    its end, because it was late or has a fault of its own; a busy machine can be why.
    """

    name: str
    row: int
    result: Result
    text: str
    switches_off: tuple[Side, ...] = ()
    seconds: float = 0.0
    broken: bool = False


class SelfTestReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `clients` and `servers` tell what may be spliced, `why` is empty when that is all.

    `time` is in seconds since the epoch; `programs` is the digest of the kernel programs, `source` that of the
    self-test itself; `error` says why the run did not come to its end (then nothing may be spliced), or is empty.
    """

    kernel: str
    version: str
    boot: str
    programs: str
    source: str
    time: float
    seconds: float
    checks: tuple[Check, ...] = ()
    clients: bool = False
    servers: bool = False
    why: str = ""
    error: str = ""

    @property
    def lasts(self) -> bool:
        """Whether another run would say the same: it, and each of its checks, came to an end."""
        return not self.error and not any(check.broken for check in self.checks)

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.error:
            return f"did not come to its end: {self.error}"
        counts = [f"{n} {result}" for result in Result if (n := sum(c.result is result for c in self.checks))]
        return ", ".join(counts) + (f"; {self.why}" if self.why else "")


#: Without these nothing is proved: a class is spliced only if they have run.
_NEEDED = frozenset({"order"})


def conclude(checks: Iterable[Check]) -> tuple[bool, bool, str]:
    """(clients, servers, why not): a class is allowed when no check has switched it off and the needed ones were ok."""
    checks = tuple(checks)
    missing = _NEEDED - {c.name for c in checks if c.result in (Result.OK, Result.BAD)}
    bad = [c for c in checks if c.switches_off]
    off = {side for c in bad for side in c.switches_off}
    reasons = [f"{bad[0].name} is bad: {bad[0].text}"] if bad else []
    if bad[1:]:
        reasons.append(f"also bad: {', '.join(c.name for c in bad[1:])}")
    if missing:
        reasons.append(f"not proved: {', '.join(sorted(missing))}")
    clients, servers = (not missing and side not in off for side in Side)
    return clients, servers, "; ".join(reasons)
