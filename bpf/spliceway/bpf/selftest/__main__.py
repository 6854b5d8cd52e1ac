"""`python -m spliceway.bpf.selftest`: one run, with its report on stdout.

Exit status 0 when all may be spliced, or no check that --check asked for has switched anything off; else 1.
The process moves itself into namespaces of its own and never comes back: it is for nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from spliceway.bpf.errors import DatapathError
from spliceway.bpf.parent import end_with
from spliceway.bpf.selftest.checklist import ITEMS, Run
from spliceway.bpf.selftest.identity import identity, make_report
from spliceway.bpf.selftest.limits import BUILDING, CLOSING, OutOfTimeError, limit
from spliceway.bpf.selftest.report import Check, Result, SelfTestReport
from spliceway.bpf.selftest.site import Site
from spliceway.bpf.selftest.talk import BadError


def main() -> None:
    """Entry of the child."""
    options = _options()
    if options.parent:  # an agent, whose successor has a self-test of its own
        end_with(options.parent)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the report

    def step(name: str) -> None:
        if options.steps:
            print(name, file=out, flush=True)

    report = _run(options, step)
    asked = options.check or ()
    text = msgspec.json.encode(report).decode() if options.output == "json" else _text(report, asked)
    print(text, file=out, flush=True)
    sys.stderr.flush()
    # A thread that hangs in a check would keep the interpreter from its orderly end.
    os._exit(0 if _is_well(report, asked) else 1)


def _is_well(report: SelfTestReport, asked: Sequence[str]) -> bool:
    """Of a part the checks alone count: it never proves that anything may be spliced."""
    if not asked:
        return report.clients and report.servers
    known = all(check.result in (Result.OK, Result.KNOWN) for check in report.checks)
    return known and {check.name for check in report.checks} == set(asked)


def _run(options: argparse.Namespace, step: Callable[[str], None]) -> SelfTestReport:
    began, now = time.monotonic(), time.time()
    defines = dict(one.split("=", 1) for one in options.test_define)
    checks: list[Check] = []
    error = ""
    try:
        with limit(BUILDING):
            site = Site(options.pods_cgroup, options.proxy_cgroup, options.bpffs, defines, options.program_cache)
        try:
            checks.extend(Run(site, step).all(options.check or ()))
            step("the end")
        finally:
            with contextlib.suppress(OutOfTimeError), limit(CLOSING):  # the next run sweeps what is left
                site.close()
    except OutOfTimeError as late:
        error = str(late) if checks else f"the node for it: {late}"
    except (OSError, DatapathError, BadError) as failure:
        error = f"{type(failure).__name__}: {failure}" if isinstance(failure, OSError) else str(failure)
    if options.check and not error:
        error = "not all checks were asked for"
    seconds = time.monotonic() - began
    return make_report(identity(defines), time=now, seconds=seconds, checks=checks, error=error)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spliceway.bpf.selftest", description=__doc__)
    parser.add_argument("--pods-cgroup", type=Path, required=True, help="cgroup2 directory of the pods")
    parser.add_argument("--proxy-cgroup", type=Path, required=True, help="cgroup2 directory of the proxy")
    parser.add_argument("--bpffs", type=Path, required=True, help="a directory; mounted over for this process only")
    parser.add_argument("--program-cache", type=Path, help="where compiled programs are kept; none without")
    parser.add_argument("--test-define", action="append", default=[], metavar="NAME=VALUE", help="for tests")
    parser.add_argument("--check", action="append", choices=[item.name for item in ITEMS], help="only this one")
    parser.add_argument("--parent", type=int, default=0, metavar="PID", help="who made this process: it ends with it")
    parser.add_argument("--steps", action="store_true", help="a line with the name of each step before it begins")
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
