"""The kernel matrix without a kernel: packages, archive, command line, results, and that its plan is complete."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from support.vm import debian, plan, results
from support.vm.__main__ import guest_command
from support.vm.initramfs import archive, initramfs
from support.vm.machine import Machine, complaints
from support.vm.results import KernelResult, Outcome, Record

TESTS = Path(__file__).parents[1]
UNAME = "Linux kernels 6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16) x86_64 GNU/Linux"
JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" tests="5" time="9.0">
<testcase name="test_good" time="1.5"/>
<testcase name="test_bad[a|b]" time="2.25"><failure message="AssertionError: 1 &lt; 0&#10;more"/></testcase>
<testcase name="test_broken" time="0.0"><error message="failed on setup"/></testcase>
<testcase name="test_not_here" time="0.0"><skipped message="needs Linux 6.6"/></testcase>
<testcase name="test_nor_here" time="0.0"><skipped message="needs Linux 6.6"/></testcase>
</testsuite></testsuites>"""


def test_what_the_guest_runs() -> None:
    text = guest_command([[plan.SELF_TEST], ["tests/kernel/test_x.py"]], plan.CHOICE)
    assert "selftest" in text
    run = next(shlex.split(line) for line in text.splitlines() if " -m pytest " in line)
    assert run[run.index("-k") + 1] == plan.NOT_THERE
    assert run[-1] == "tests/kernel/test_x.py"


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    tree, file = tmp_path / "tree", tmp_path / "6.1.json"
    for name in ("bpf/c/abi.h", "tests/kernel/test_abi.py", "tests/kernel/test_parse.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    parts = [[plan.SELF_TEST], ["tests/kernel/test_abi.py"], ["tests/kernel/test_parse.py"]]

    def begun() -> tuple[Record, list[list[str]]]:
        record = Record(file, "6.1", "abc", tree)
        return record, record.missing(parts)

    record, missing = begun()
    assert missing == parts
    record.add(Outcome("kernel/test_abi.py", 11))
    record.add(Outcome(plan.SELF_TEST, 15, 1, failures=("fionread: FIONREAD says 0",)))
    record, missing = begun()
    assert missing == parts[2:]
    record.add(Outcome("kernel/test_parse.py", 6, 1, failures=("test_it: it failed",)))
    record, missing = begun()
    assert missing == parts[2:]
    record.add(Outcome("kernel/test_parse.py", 7))
    result = record.end(UNAME, 60.0, ["BUG: one"])
    assert [one.name for one in result.outcomes] == [plan.SELF_TEST, "kernel/test_abi.py", "kernel/test_parse.py"]
    (tree / "tests/kernel/test_abi.py").write_text("another")
    record, missing = begun()
    assert missing == parts[1:2]
    record.add(Outcome("kernel/test_abi.py", 12))
    result = record.end(UNAME, 1.0, [])
    assert (result.seconds, result.complaints) == (61.0, ("BUG: one",))
    (tree / "bpf/c/abi.h").write_text("another")
    assert begun()[1] == parts


def test_the_newest_plain_kernel_of_a_series() -> None:
    names = [
        *("linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1.0-57-cloud-amd64"),
        *("linux-image-6.1.0-57-rt-amd64", "linux-image-6.1.0-57-amd64-dbg", "linux-image-6.1.0-57-amd64-unsigned"),
        *("linux-image-6.12.9+bpo-amd64", "linux-image-6.12.117+deb12-amd64", "linux-image-amd64"),
    ]
    assert debian.newest(names, "6.1") == "linux-image-6.1.0-56-amd64"
    assert debian.newest(names, "6.12") == "linux-image-6.12.117+deb12-amd64"
    assert debian.newest(names, "6.6") is None


def test_modules_come_after_those_that_they_need(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.1.0-56-amd64/kernel/net"
    folder.mkdir(parents=True)
    for name, depends in (
        ("9p", "9pnet,netfs"),
        ("9pnet", ""),
        ("netfs", ""),
        ("nft-ct", "nf_conntrack"),
        ("other", ""),
    ):
        (folder / f"{name}.ko").write_bytes(b"ELF\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0")
    loaded = debian.Kernel("6.1", tmp_path).modules(("9p", "built_in", "nft_ct", "9pnet"))
    assert [name for name, _ in loaded] == ["9pnet", "netfs", "9p", "nft_ct"]


def test_an_archive_is_aligned_and_has_an_end() -> None:
    made = archive([("bin", 0o040755, b""), ("bin/x", 0o100755, b"12345")])
    assert len(made) % 4 == 0
    at, names = 0, []
    while not names or names[-1] != "TRAILER!!!":
        fields = [int(made[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        assert made[at : at + 6] == b"070701"
        size, length = fields[6], fields[11]
        names.append(made[at + 110 : at + 110 + length - 1].decode())
        start = (at + 110 + length + 3) // 4 * 4
        if names[-1] == "bin/x":
            assert made[start : start + size] == b"12345"
        at = (start + size + 3) // 4 * 4
    assert names == ["bin", "bin/x", "TRAILER!!!"]
    assert at == len(made)


def test_the_first_script_mounts_the_checkout_where_it_is(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"static")
    made = initramfs(busybox, [("9pnet", b"a"), ("9p", b"b")], Path("/a b/checkout"))
    assert b"root=/root'/a b/checkout'\n" in made
    assert b"9pnet.ko 9p.ko" in made


def test_the_guest_can_write_nothing_but_the_share(tmp_path: Path) -> None:
    arguments = Machine(
        tmp_path / "vmlinuz", tmp_path / "initramfs", Path("/checkout"), tmp_path / "tree", tmp_path / "share"
    ).arguments()
    devices = {one.split("id=")[1].split(",")[0]: one for one in arguments if one.startswith("local,")}
    assert sorted(devices) == ["host", "share", "tree"]
    assert [name for name, one in devices.items() if not one.endswith(",readonly=on")] == ["share"]
    assert f"path={tmp_path / 'share'}," in devices["share"]
    assert arguments[arguments.index("-nic") + 1] == "none"
    assert not [one for one in arguments if "kvm" in one or "-drive" in one]


def test_what_a_kernel_complains_of() -> None:
    log = "[ 1.0] 9pnet: Limiting 'msize'\n[ 2.0] WARNING: CPU: 0 PID: 1 at net/core/x.c:12\n[ 3.0] BUG: scheduling\n"
    assert [line[:14] for line in complaints(log)] == ["[ 2.0] WARNING", "[ 3.0] BUG: sc"]


def test_outcome_of_a_test_file() -> None:
    outcome = results.from_junit("kernel/test_x.py", JUNIT)
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.seconds) == (1, 2, 2, 3.8)
    assert outcome.failures == ("test_bad[a|b]: AssertionError: 1 < 0", "test_broken: failed on setup")
    assert outcome.skips == ("needs Linux 6.6",)


def test_no_result_is_a_failure() -> None:
    assert results.from_junit("kernel/test_x.py", None).failed == 1
    assert results.from_junit("kernel/test_x.py", "<testsuites><testsuite tests='0'/></testsuites>").failed == 1
    assert results.from_self_test(None).failed == 1
    assert results.from_self_test('{"seconds": 1.0, "checks": [], "error": "not done"}').failures == ("not done",)


def test_outcome_of_the_self_test() -> None:
    checks = [("order", "ok"), ("splice", "known"), ("fionread", "bad"), ("measure", "not-run")]
    listed = ", ".join(f'{{"name": "{name}", "result": "{result}", "text": "said"}}' for name, result in checks)
    outcome = results.from_self_test(f'{{"seconds": 4.0, "kernel": "6.1", "checks": [{listed}]}}')
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, 1, 1)
    assert outcome.failures == ("fionread: said",)


def test_every_test_file_runs_or_is_left_out_with_a_reason() -> None:
    files = results.test_files(TESTS)
    running, left = plan.chosen(files), plan.left_out(files)
    assert sorted([*running, *(file for names in left.values() for file in names)]) == files
    assert "kernel/test_staging.py" in running
    with pytest.raises(LookupError, match="neither run"):
        plan.left_out(["new/test_new.py"])


def test_the_results_have_a_place_in_the_docs() -> None:
    outcomes = (Outcome("self-test", 14, 0, 0, 4.5), results.from_junit("kernel/test_x.py", JUNIT))
    result = KernelResult("6.1", UNAME, "abc1234", 600.0, outcomes)
    section = results.section([result], ["unit/test_a.py", "kernel/test_staging.py", "integration/test_demo.py"])
    assert "`6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)`" in section
    assert "| kernel/test_x.py | 1 | 2 | 2 | 3.8 |" in section
    assert "test_bad[a/b]: AssertionError: 1 ‹ 0" in section
    assert "`integration/test_demo.py`" in section
    document = (TESTS.parent / "docs/kernels.md").read_text()
    replaced = results.replaced(document, section)
    assert section in replaced
    assert results.replaced(replaced, section) == replaced
    assert not result.good
    with pytest.raises(ValueError, match="no place"):
        results.replaced("nothing", section)


def test_what_fails_on_a_kernel_for_its_own_reasons_is_no_failure_of_ours() -> None:
    known = Outcome("self-test", 15, 1, 0, 23.5, ("fionread: FIONREAD says 0",))
    other = Outcome("self-test", 14, 2, 0, 23.5, ("fionread: FIONREAD says 0", "order: overtaken"))
    assert KernelResult("6.1", UNAME, "abc1234", 1.0, (known,)).good
    assert not KernelResult("6.12", UNAME, "abc1234", 1.0, (known,)).good
    assert not KernelResult("6.1", UNAME, "abc1234", 1.0, (other,)).good
    section = results.section([KernelResult("6.1", UNAME, "abc1234", 1.0, (other,))], [])
    failed, _, must = section.partition("Failed, as that kernel must:")
    assert "order: overtaken" in failed
    assert "fionread" not in failed
    assert "929e30f93125" in must
