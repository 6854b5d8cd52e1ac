"""`python -m spliceway.bpf.selftest`: one run, with its report on stdout.

Exit status 0 when all may be spliced, or no check that --check asked for has switched anything off; else 1.
The process moves itself into namespaces of its own and never comes back: it is for nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from spliceway.bpf.errors import DatapathError
from spliceway.bpf.selftest.checklist import ITEMS, run_all
from spliceway.bpf.selftest.identity import identity, make_report
from spliceway.bpf.selftest.report import Check, Result, SelfTestReport
from spliceway.bpf.selftest.site import Site
from spliceway.bpf.selftest.talk import BadError

#: Seconds for the node to be built, of which a busy machine may take many for the compiler, and for the checks.
_BUILDING, _CHECKING = 120, 30


class OutOfTimeError(Exception):
    """What was to be done took too long."""


def main() -> None:
    """Entry of the child."""
    options = _options()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the report
    report = _run(options)
    asked = options.check or ()
    text = msgspec.json.encode(report).decode() if options.output == "json" else _text(report, asked)
    print(text, file=out, flush=True)
    sys.exit(0 if _is_well(report, asked) else 1)


def _is_well(report: SelfTestReport, asked: Sequence[str]) -> bool:
    """Of a part the checks alone count: it never proves that anything may be spliced."""
    if not asked:
        return report.clients and report.servers
    known = all(check.result in (Result.OK, Result.KNOWN) for check in report.checks)
    return known and {check.name for check in report.checks} == set(asked)


def _run(options: argparse.Namespace) -> SelfTestReport:
    began, now = time.monotonic(), time.time()
    defines = dict(one.split("=", 1) for one in options.test_define)
    checks: tuple[Check, ...] = ()
    error = ""
    try:
        _limit(_BUILDING, "the node for it was not built")
        site = Site(options.pods_cgroup, options.proxy_cgroup, options.bpffs, defines, options.program_cache)
        try:
            _limit(_CHECKING, "the checks were not done")
            checks = tuple(run_all(site, options.check or ()))
        finally:
            signal.alarm(0)
            site.close()
    except (OSError, DatapathError, BadError, OutOfTimeError) as failure:
        error = f"{type(failure).__name__}: {failure}" if isinstance(failure, OSError) else str(failure)
    if options.check and not error:
        error = "not all checks were asked for"
    seconds = time.monotonic() - began
    return make_report(identity(defines), time=now, seconds=seconds, checks=checks, error=error)


def _limit(seconds: int, what: str) -> None:
    """Raise OutOfTimeError in this thread after `seconds`, whatever it does then."""

    def over(_signal: int, _frame: object) -> None:
        raise OutOfTimeError(f"{what} after {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spliceway.bpf.selftest", description=__doc__)
    parser.add_argument("--pods-cgroup", type=Path, required=True, help="cgroup2 directory of the pods")
    parser.add_argument("--proxy-cgroup", type=Path, required=True, help="cgroup2 directory of the proxy")
    parser.add_argument("--bpffs", type=Path, required=True, help="a directory; mounted over for this process only")
    parser.add_argument("--program-cache", type=Path, help="where compiled programs are kept; none without")
    parser.add_argument("--test-define", action="append", default=[], metavar="NAME=VALUE", help="for tests")
    parser.add_argument("--check", action="append", choices=[item.name for item in ITEMS], help="only this one")
    parser.add_argument("-o", dest="output", choices=("text", "json"), default="text", help="how to print the report")
    return parser.parse_args()


def _text(report: SelfTestReport, asked: Sequence[str]) -> str:
    lines = [f"{check.result:8} {check.name:12} {check.seconds:6.3f} s  {check.text}" for check in report.checks]
    summary = report.summary
    if asked and report.checks:
        summary = "as they should be" if _is_well(report, asked) else "not all as they should be"
        summary = f"the checks that were asked for are {summary}; only all checks together prove anything"
    return "\n".join([*lines, f"{report.seconds:.1f} s: {summary}"])


if __name__ == "__main__":
    main()
