"""`scripts/kernels`: tests and self-test on Debian's kernels in software emulation.

Without choice of tests it runs what plan.py lists, and when every kernel has run, docs/kernels.md gets the results.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from support.vm import debian, plan, results
from support.vm.initramfs import SHARE, initramfs
from support.vm.machine import Machine, MachineError, complaints

ROOT = Path(__file__).resolve().parents[3]
_CACHE = ROOT / ".cache" / "kernels"
_DOCUMENT = ROOT / "docs" / "kernels.md"
_PACKAGES = ("agent", "policy", "bpf", "xds", "proxy", "tests/support")

_SELF_TEST = """
d=/sys/fs/cgroup/self-test; mkdir -p $d/pods $d/proxy /run/self-test
options="--pods-cgroup $d/pods --proxy-cgroup $d/proxy --bpffs /run/self-test -o json"
timeout {limit} $python -P -m spliceway.bpf.selftest $options >{share}/self-test.json.unfinished 2>{share}/self-test.log
mv {share}/self-test.json.unfinished {share}/self-test.json
"""
_PYTEST = """
exec >{share}/{number}.log 2>&1
timeout {limit} $python -m pytest -q -p no:cacheprovider {choice} --junitxml {share}/{number}.xml {arguments}
touch {share}/{number}.done
"""


def main() -> None:
    """Entry. Exit status 1 if anything failed on any kernel."""
    options = _options()
    files = [] if options.pytest else results.test_files(ROOT / "tests")
    chosen = options.kernel or plan.SERIES
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # so that it takes its machines along
    with ThreadPoolExecutor(len(chosen)) as machines:  # a machine keeps one processor busy
        try:
            debian.busybox(_CACHE)  # once, for all of them
            made = list(machines.map(lambda series: _on_kernel(series, options, files, stop), chosen))
        except (debian.PackageError, MachineError) as error:
            stop.set()
            sys.exit(f"kernels: {error}")
        except KeyboardInterrupt:
            stop.set()
            raise
    for result in made:
        print("\n".join(["", *results.lines(result)]))
    if files and [result.series for result in made] == list(plan.SERIES):
        section = results.section(made, results.test_files(ROOT / "tests"))
        _DOCUMENT.write_text(results.replaced(_DOCUMENT.read_text(), section))
        print(f"\nwritten to {_DOCUMENT.relative_to(ROOT)}")
    sys.exit(0 if all(result.good for result in made) else 1)


def _on_kernel(series: str, options: argparse.Namespace, files: list[str], stop: Event) -> results.KernelResult:
    kernel, busybox = debian.kernel(series, _CACHE), debian.busybox(_CACHE)
    run = _CACHE / f"run-{series}"
    shutil.rmtree(run, ignore_errors=True)
    tree, share, first = run / "tree", run / "share", run / "initramfs"
    for directory in (tree, share):
        directory.mkdir(parents=True)
    commit = _snapshot(options.commit, tree)
    first.write_bytes(initramfs(busybox, kernel.modules(), ROOT))
    # A commit may have other ones than the checkout.
    there = plan.chosen(results.test_files(tree / "tests")) if files else []
    parts = [[plan.SELF_TEST], *([f"tests/{file}"] for file in there)] if files else [options.pytest]
    # What was chosen by hand is no part of the record that `--resume` goes on from.
    record = results.Record((_CACHE if files else run) / f"{series}.json", series, commit, tree)
    if files and options.resume:
        parts = record.missing(parts)
    machine = Machine(kernel.image, first, ROOT, tree, share)
    print(f"kernels: {series}: {kernel.release}, commit {commit}; files of this run are in {run}", flush=True)
    told = 0

    def tell() -> None:
        nonlocal told
        while told < len(parts) and (outcome := _outcome(share, told, results.name_of(parts[told]))):
            told += 1
            record.add(outcome)
            print("\n".join(f"kernels: {series}: {line}" for line in results.outcome_lines(outcome)), flush=True)

    try:
        ended = machine.run(guest_command(parts, plan.CHOICE if files else ()), plan.KERNEL_LIMIT, tell, stop)
    except MachineError as error:
        raise MachineError(f"{series}: {error}") from error
    for part in parts[told:]:  # the command was ended before its end
        record.add(results.from_junit(results.name_of(part), None))
    return record.end(ended.uname, ended.seconds, complaints(ended.kernel_log))


def guest_command(parts: list[list[str]], choice: Sequence[str]) -> str:
    """The guest's shell command for these parts: the self-test, or arguments for pytest. `choice`: more of these."""
    python = shlex.quote(str(ROOT / ".venv/bin/python"))
    lines = [f"export SPLICEWAY_REQUIRE_KERNEL=1 python={python}"]
    for number, part in enumerate(parts):
        text = _SELF_TEST if part == [plan.SELF_TEST] else _PYTEST
        words = {"choice": shlex.join(choice), "arguments": shlex.join(part)}
        lines.append(text.format(limit=plan.FILE_LIMIT, share=SHARE, number=number, **words))
    return "\n".join(lines)


def _outcome(share: Path, number: int, name: str) -> results.Outcome | None:
    """What came of a part, or None while it runs."""
    if name == plan.SELF_TEST:
        report = share / "self-test.json"
        return results.from_self_test(report.read_text()) if report.exists() else None
    if not (share / f"{number}.done").exists():
        return None
    junit = share / f"{number}.xml"
    return results.from_junit(name, junit.read_text() if junit.exists() else None)


def _snapshot(commit: str, tree: Path) -> str:
    """Copy the working tree, or a commit, and compile its modules. Returns the commit's short name."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout

    name = git("rev-parse", "--short", commit or "HEAD").decode().strip()
    if commit:
        archive = git("archive", commit)
    else:
        if git("status", "--porcelain"):
            name += " with changes"
        listed = [file for file in git("ls-files", "-co", "--exclude-standard", "-z").split(b"\0") if file]
        present = b"\0".join(file for file in listed if (ROOT / file.decode()).exists())
        tar = ["tar", "--create", "--null", "--files-from=-"]
        archive = subprocess.run(tar, cwd=ROOT, input=present, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "--directory", str(tree)], input=archive, check=True)
    # By digest, not by time: the guest must not compile them again.
    compiler = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", *_PACKAGES]
    subprocess.run(compiler, cwd=tree, check=True)
    return name


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/kernels", description=__doc__)
    parser.add_argument("--kernel", action="append", choices=plan.SERIES, help="this one only; can be given again")
    parser.add_argument("--commit", default="", help="what to test; without it, the working tree as it is")
    parser.add_argument(
        "--resume", action="store_true", help="keep results of the same programs (bpf/) and test files, run the others"
    )
    parser.add_argument(
        "pytest", nargs="*", help=f"arguments for one pytest (after --), or «{plan.SELF_TEST}»; without, all of plan.py"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
