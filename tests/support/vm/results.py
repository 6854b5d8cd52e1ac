"""What came back from a kernel, from pytest's JUnit files and the self-test's JSON, and the tables made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from support.vm import plan

BEGIN, END = "<!-- kernel matrix: generated -->", "<!-- kernel matrix: end -->"


class Outcome(msgspec.Struct, frozen=True):
    """A test file or the self-test on one kernel. `seconds` by the guest's clock; `failures`: name and first line."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: tuple[str, ...] = ()
    #: Why tests were skipped, each reason once.
    skips: tuple[str, ...] = ()
    #: Of the kernel programs and the test file that it is of.
    digest: str = ""


class KernelResult(msgspec.Struct, frozen=True):
    """All of one kernel. `complaints`: lines of its log that say something is wrong with it."""

    series: str
    uname: str
    commit: str
    seconds: float
    outcomes: tuple[Outcome, ...]
    complaints: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing failed but what fails on that kernel in any case."""
        return all(plan.expected(self.series, failure) for failure in self.failures)

    @property
    def failures(self) -> list[str]:
        """«part: failure», of all parts."""
        return [f"{outcome.name}: {failure}" for outcome in self.outcomes for failure in outcome.failures]


class Record:
    """What one kernel's file has and gets: outcomes are kept as they come, so that an interrupted run goes on later."""

    def __init__(self, path: Path, series: str, commit: str, tree: Path) -> None:
        """`tree`: the checkout that is tested."""
        self._path, self._tree, self._programs = path, tree, _digest(tree / "bpf")
        self._outcomes: list[Outcome] = []
        self._result = KernelResult(series, "", commit, 0.0, ())

    def missing(self, parts: list[list[str]]) -> list[list[str]]:
        """Take over the successes of an earlier run that still hold; what is left to run."""
        try:
            earlier = msgspec.json.decode(self._path.read_bytes(), type=KernelResult)
        except (OSError, msgspec.MsgspecError):
            return parts
        known = {one.name: one for one in earlier.outcomes}
        kept = [known[name] for part in parts if (name := name_of(part)) in known]
        self._outcomes = [one for one in kept if one.digest == self._digest_of(one.name) and self._is_good(one)]
        names = {one.name for one in self._outcomes}
        if names:
            self._result = msgspec.structs.replace(self._result, seconds=earlier.seconds, complaints=earlier.complaints)
        return [part for part in parts if name_of(part) not in names]

    def _is_good(self, outcome: Outcome) -> bool:
        return msgspec.structs.replace(self._result, outcomes=(outcome,)).good

    def add(self, outcome: Outcome) -> None:
        """One part is over."""
        self._outcomes.append(msgspec.structs.replace(outcome, digest=self._digest_of(outcome.name)))
        self._write()

    def end(self, uname: str, seconds: float, complaints: list[str]) -> KernelResult:
        """All parts are over. `seconds`: of this run; `complaints`: of its kernel's log."""
        self._result = msgspec.structs.replace(
            self._result,
            uname=uname,
            seconds=round(self._result.seconds + seconds, 1),
            complaints=(*self._result.complaints, *complaints),
        )
        return self._write()

    def _write(self) -> KernelResult:
        places = {
            name: number for number, name in enumerate([plan.SELF_TEST, *plan.chosen(test_files(self._tree / "tests"))])
        }
        ordered = sorted(self._outcomes, key=lambda one: places.get(one.name, len(places)))
        result = msgspec.structs.replace(self._result, outcomes=tuple(ordered))
        self._path.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
        return result

    def _digest_of(self, name: str) -> str:
        file = self._tree / "tests" / name
        return self._programs + (_digest(file) if file.is_file() else "")


def name_of(part: list[str]) -> str:
    """What a part is called."""
    return " ".join(part).removeprefix("tests/")


def _digest(place: Path) -> str:
    """Of a file, or of all sources below a folder."""
    found = hashlib.sha256()
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            found.update(f"{file.relative_to(place)}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def from_junit(name: str, text: str | None) -> Outcome:
    """The outcome of a test file from its JUnit XML, or without one: pytest was ended before its end."""
    if not text:
        return Outcome(name, failed=1, failures=("no result: it took too long, or could not begin",))
    passed, seconds, failures, skips = 0, 0.0, [], []
    for case in ElementTree.fromstring(text).iter("testcase"):
        seconds += float(case.get("time", "0"))
        if (bad := _child(case, "failure", "error")) is not None:
            words = (bad.get("message") or "").strip().splitlines()
            failures.append(f"{case.get('name')}: {words[0] if words else '?'}")
        elif (skip := _child(case, "skipped")) is not None:
            skips.append(skip.get("message") or "?")
        else:
            passed += 1
    if not passed and not failures and not skips:
        failures.append("it ran no test")
    return Outcome(
        name, passed, len(failures), len(skips), round(seconds, 1), tuple(failures), tuple(sorted(set(skips)))
    )


def _child(case: ElementTree.Element, *tags: str) -> ElementTree.Element | None:
    return next((child for child in case if child.tag in tags), None)


class _Check(msgspec.Struct):
    name: str
    result: str
    text: str


class _SelfTest(msgspec.Struct):
    """The part of the self-test's report that counts here."""

    seconds: float
    checks: tuple[_Check, ...] = ()
    why: str = ""
    error: str = ""


def from_self_test(text: str | None) -> Outcome:
    """The outcome of the self-test from its JSON: `ok` and `known` have passed, `bad` has failed."""
    try:
        report = msgspec.json.decode(text or "", type=_SelfTest)
    except msgspec.MsgspecError:
        report = _SelfTest(0.0, error="no report")
    bad = [f"{check.name}: {check.text}" for check in report.checks if check.result == "bad"]
    bad += [report.error] if report.error else []
    unrun = [f"{check.name}: {check.text}" for check in report.checks if check.result == "not-run"]
    passed = sum(check.result in ("ok", "known") for check in report.checks)
    return Outcome(
        plan.SELF_TEST, passed, len(bad), len(unrun), round(report.seconds, 1), tuple(bad), tuple(sorted(unrun))
    )


def lines(result: KernelResult) -> list[str]:
    """For people, while it runs and at the end."""
    found = [line for outcome in result.outcomes for line in outcome_lines(outcome)]
    found += [f"the kernel's log: {line}" for line in result.complaints]
    return [f"{result.uname}, {result.seconds:.0f} s", *found]


def outcome_lines(outcome: Outcome) -> list[str]:
    """One line, and one for each failure."""
    counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped, {outcome.seconds:g} s"
    return [f"{outcome.name}: {counts}", *(f"  {failure}" for failure in outcome.failures)]


def section(results: list[KernelResult], files: list[str]) -> str:
    """The section of docs/kernels.md between BEGIN and END. `files`: all test files, relative to tests/."""
    text = [BEGIN, ""]
    for result in results:
        log = "nothing" if not result.complaints else f"{len(result.complaints)} lines that say BUG, WARNING or Oops"
        text += [
            f"**{result.series}**: `{_version(result.uname)}`, commit {result.commit}, {result.seconds / 60:.0f} min; "
        ]
        text[-1] += f"the kernel's log has {log} to complain of."
        text += ["", "| what | passed | failed | skipped | s (guest's clock) |", "| --- | --- | --- | --- | --- |"]
        for each in result.outcomes:
            text.append(f"| {each.name} | {each.passed} | {each.failed} | {each.skipped} | {each.seconds:g} |")
        for title, notes in (
            ("Failed", [note for note in result.failures if not plan.expected(result.series, note)]),
            ("Failed, as that kernel must", _with_reasons(result)),
            ("Skipped, because", [f"{each.name}: {note}" for each in result.outcomes for note in each.skips]),
        ):
            text += ["", f"{title}:", "", *(f"- {_plain(note)}" for note in notes)] if notes else []
        text.append("")
    text += ["Not run there:", "", "| why | files |", "| --- | --- |"]
    text.append(
        f"| one processor only: nothing is handed to another one | of the files above, `-k '{plan.NOT_THERE}'` |"
    )
    text.append(
        f"| all of them would take hours | of each parametrised test, all but one in "
        f"{plan.VARIANTS} of its variants (IP version, leg, direction), another one for each: `--variants` |"
    )
    for why, names in plan.left_out(files).items():
        text.append(f"| {why} | {_shortened(names)} |")
    return "\n".join([*text, "", END])


def replaced(document: str, made: str) -> str:
    """The document with what is between BEGIN and END made anew. Raises ValueError if it has no such place."""
    before, found, rest = document.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the document has no place between {BEGIN} and {END}")
    return before + made + after


def test_files(tests: Path) -> list[str]:
    """All test files, relative to tests/."""
    return sorted(str(file.relative_to(tests)) for file in tests.rglob("test_*.py"))


def _version(uname: str) -> str:
    """`Linux NAME 6.1.0-56-amd64 #1 SMP … Debian 6.1.192-2 (…) x86_64 GNU/Linux` without name and machine."""
    words = uname.split()
    return " ".join(words[2:-2])


def _with_reasons(result: KernelResult) -> list[str]:
    found = ((plan.expected(result.series, note), note) for note in result.failures)
    return [f"{note}; {why}" for why, note in found if why]


def _plain(note: str) -> str:
    """Short enough for a list, and without what Markdown would read."""
    text = note.replace("<", "‹").replace(">", "›").replace("|", "/")
    return text if len(text) <= 240 else text[:239] + "…"


def _shortened(names: list[str]) -> str:
    if len(names) > 40 or all(name.startswith(("unit/", "fuzz/")) for name in names):
        folders = sorted({name.partition("/")[0] for name in names})
        return ", ".join(
            f"all {sum(name.startswith(f'{folder}/') for name in names)} of tests/{folder}" for folder in folders
        )
    return ", ".join(f"`{name}`" for name in names)
