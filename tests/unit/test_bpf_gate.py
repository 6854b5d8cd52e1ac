"""The kernel gate: every row at its borders, declared fixes, names of kernels as distributions give them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spliceway.bpf import gatedoc
from spliceway.bpf.gate import (
    Finding,
    KernelRelease,
    State,
    allowed,
    declared_rows,
    judge,
    missing,
    version,
)
from spliceway.bpf.gatetable import FEATURES, ROWS, Row, Scope

KERNELS = Path(__file__).parents[2] / "docs/kernels.md"
NAME = {row.commit: row for row in ROWS}
#: A row of each scope.
EVERYTHING, SERVERS, TOLD = NAME["4b4647add7d3"], NAME["c77b3b79a92e"], NAME["a76624733730"]


def state(row: Row, release: str, *fixed: str) -> State:
    (found,) = (one for one in judge(KernelRelease.parse(release), fixed) if one.row is row)
    return found.state


def before(text: str) -> str | None:
    """The patch level before, in the same series."""
    major, minor, patch = version(text)
    return f"{major}.{minor}.{patch - 1}" if patch else None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.commit)
def test_a_row_is_well_formed(row: Row) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", row.commit)
    assert re.fullmatch(r"(CVE-\d{4}-\d{4,})?", row.cve)
    assert re.fullmatch(rf"https://\S+({row.cve}|{row.commit})", row.source)
    assert row.subject
    assert re.fullmatch(r"[^|]+[^.|]", row.what)
    first, fixed = version(row.bad[0]), version(row.fixed)
    assert first < fixed
    assert fixed[2] == 0
    levels = [version(level) for level in row.stable]
    assert levels == sorted(levels)
    assert len({level[:2] for level in levels}) == len(levels)
    assert all(level < fixed and level[2] > 0 for level in levels)
    assert all(version(level) < first for level in row.bad[1:]), "series that got the fault later are older ones"


def test_rows_have_names_of_their_own() -> None:
    names = [name for row in ROWS for name in (row.commit, row.cve) if name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.commit)
def test_mainline_is_bad_until_its_first_fixed_release(row: Row) -> None:
    assert state(row, row.bad[0]) is State.AFFECTED
    assert state(row, row.fixed) is State.FIXED
    assert state(row, "99.0") is State.FIXED
    assert state(row, f"{row.fixed}.0-rc7") is State.AFFECTED, "a candidate may not have the fix yet"
    assert state(row, f"{row.bad[0]}.0-rc1") is State.AFFECTED, "a candidate may have the fault already"


@pytest.mark.parametrize(("row", "level"), [(row, level) for row in ROWS for level in row.stable])
def test_a_stable_series_is_bad_until_its_own_level(row: Row, level: str) -> None:
    assert state(row, level) is State.FIXED
    last_bad = before(level)
    series_is_bad = version(level) >= version(row.bad[0]) or any(
        version(bad)[:2] == version(level)[:2] for bad in row.bad
    )
    assert last_bad is not None
    assert state(row, last_bad) is (State.AFFECTED if series_is_bad else State.NOT_AFFECTED)
    major, minor, _ = version(level)
    assert state(row, f"{major}.{minor}.9999") is State.FIXED


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.commit)
def test_a_series_without_a_known_fix_stays_bad(row: Row) -> None:
    """5.13 never got a fix of anything that came after it, whatever its patch level is."""
    if version(row.bad[0]) <= (5, 13, 0):
        assert state(row, "5.13.9999") is State.AFFECTED
    elif version(row.bad[0]) > (5, 13, 9999):
        assert state(row, "5.13.9999") is State.NOT_AFFECTED


@pytest.mark.parametrize(
    ("row", "level"), [(row, level) for row in ROWS for level in row.bad if before(level) is not None]
)
def test_a_series_that_got_the_fault_later_is_good_before(row: Row, level: str) -> None:
    last_good = before(level)
    assert last_good is not None
    assert state(row, level) is State.AFFECTED
    assert state(row, last_good) is State.NOT_AFFECTED


@pytest.mark.parametrize(
    ("release", "text", "signature", "expected"),
    [
        ("6.18.44-fc-v657", "#1 SMP PREEMPT_DYNAMIC @0", "", (6, 18, 44)),
        ("6.12.57+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1 (2025-11-05)", "", (6, 12, 57)),
        ("6.12.117+deb12-cloud-amd64", "#1 SMP Debian 6.12.117-1~deb12u1 (2026-11-12)", "", (6, 12, 117)),
        ("6.1.0-40-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.153-1 (2025-09-20)", "", (6, 1, 153)),
        ("6.1.0-40-amd64", "#1 SMP PREEMPT_DYNAMIC", "", (6, 1, 0)),
        ("6.1.0-40-amd64", "#1 SMP Debian 6.12.57-1 (of another series)", "", (6, 1, 0)),
        ("6.1.0-0.deb11.40-amd64", "#1 SMP Debian 6.1.153-1~bpo11+1 (2025-09-20)", "", (6, 1, 153)),
        ("6.8.0-45-generic", "#45-Ubuntu SMP", "Ubuntu 6.8.0-45.45-generic 6.8.12", (6, 8, 12)),
        ("5.15.0-1071-azure", "#80-Ubuntu SMP", "Ubuntu 5.15.0-1071.80-azure 5.15.160", (5, 15, 160)),
        ("5.14.0-570.12.1.el9_6.x86_64", "#1 SMP PREEMPT_DYNAMIC Tue May 13", "", (5, 14, 0)),
        ("6.12.0-55.9.1.el10_0.x86_64", "#1 SMP PREEMPT_DYNAMIC", "", (6, 12, 0)),
        ("6.4.0-150600.23.25-default", "#1 SMP PREEMPT_DYNAMIC", "", (6, 4, 0)),
        ("6.12.79-101.147.amzn2023.aarch64", "#1 SMP", "", (6, 12, 79)),
        ("6.6.119.3-1.azl3", "#1 SMP PREEMPT_DYNAMIC", "", (6, 6, 119)),
        ("6.12.85+", "#1 SMP PREEMPT_DYNAMIC", "", (6, 12, 85)),
        ("6.8.12-13-pve", "#1 SMP PREEMPT_DYNAMIC PMX 6.8.12-13 (2025-07-22T10:00Z)", "", (6, 8, 12)),
        ("7.2-arch1", "#1", "", (7, 2, 0)),
        ("6.19.0-rc3", "#1", "", (6, 19, -1)),
        ("6.13-rc2-amd64", "#1 SMP Debian 6.13~rc2-1~exp1 (2024-12-09)", "", (6, 13, -1)),
    ],
)
def test_the_version_behind_a_distributions_name(
    release: str, text: str, signature: str, expected: tuple[int, int, int]
) -> None:
    assert KernelRelease.parse(release, text, signature).version == expected


def test_a_name_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="no version of a kernel"):
        KernelRelease.parse("generic")


def test_the_running_kernel_has_a_version() -> None:
    assert KernelRelease.running().version > (5, 0, 0)


@pytest.mark.parametrize(
    ("release", "text"),
    [
        ("6.18.44", "6.18.44"),
        ("6.18.44-fc-v657", "6.18.44-fc-v657"),
        ("7.2-arch1", "7.2-arch1 (Linux 7.2.0)"),
        ("6.13-rc2", "6.13-rc2"),
    ],
)
def test_a_release_reads_as_a_name_with_its_version(release: str, text: str) -> None:
    assert str(KernelRelease.parse(release)) == text


def test_debians_release_reads_with_upstreams_version() -> None:
    found = KernelRelease.parse("6.1.0-40-amd64", "#1 SMP Debian 6.1.153-1 (2025-09-20)")
    assert str(found) == "6.1.0-40-amd64 (Linux 6.1.153)"


@pytest.mark.parametrize(
    "name", [EVERYTHING.commit, EVERYTHING.commit + "c8530493", EVERYTHING.cve, EVERYTHING.cve.lower()]
)
def test_a_fix_that_is_declared_counts(name: str) -> None:
    assert state(EVERYTHING, "5.15.161") is State.AFFECTED
    assert state(EVERYTHING, "5.15.161", name) is State.DECLARED_FIXED
    assert state(EVERYTHING, "5.15.162", name) is State.FIXED
    assert state(EVERYTHING, "5.12.1", name) is State.NOT_AFFECTED


@pytest.mark.parametrize("name", ["CVE-1999-0001", EVERYTHING.commit[:11], "0123456789ab", ""])
def test_an_unknown_fix_is_refused_and_the_known_ones_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="is no fix that the kernel gate knows") as refused:
        judge(KernelRelease.parse("6.18.1"), [EVERYTHING.cve, name])
    assert repr(name) in str(refused.value)
    assert all(row.commit in str(refused.value) and row.cve in str(refused.value) for row in ROWS)


def test_declared_rows_are_those_that_are_named() -> None:
    assert declared_rows([SERVERS.cve, TOLD.commit, SERVERS.commit]) == {SERVERS, TOLD}


def test_with_every_fix_declared_an_old_distribution_kernel_may_splice() -> None:
    release = KernelRelease.parse("5.14.0-570.el9")
    assert allowed(judge(release)) == (False, False)
    assert allowed(judge(release, [row.commit for row in ROWS])) == (True, True)


@pytest.mark.parametrize(
    ("affected", "expected"),
    [
        ([], (True, True)),
        ([TOLD], (True, True)),
        ([SERVERS], (True, False)),
        ([TOLD, SERVERS], (True, False)),
        ([EVERYTHING], (False, False)),
        ([SERVERS, EVERYTHING], (False, False)),
    ],
)
def test_the_scope_of_a_fault_switches_connections_off(affected: list[Row], expected: tuple[bool, bool]) -> None:
    found = [Finding(row, State.AFFECTED if row in affected else State.FIXED) for row in ROWS]
    assert allowed(found) == expected


@pytest.mark.parametrize("other", [State.FIXED, State.DECLARED_FIXED, State.NOT_AFFECTED])
def test_only_a_kernel_that_is_affected_loses_anything(other: State) -> None:
    assert allowed([Finding(EVERYTHING, other), Finding(SERVERS, other)]) == (True, True)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("5.10.300", False),
        ("5.15.300", False),
        ("6.1.192", False),  # FIONREAD says 0 for spliced bytes: never mended there
        ("6.6.127", False),
        ("6.6.152", True),
        ("6.12.59", False),
        ("6.12.74", False),
        ("6.12.75", True),
        ("6.18.13", False),
        ("6.18.44", True),
        ("7.0", True),
    ],
)
def test_whole_kernels(release: str, expected: bool) -> None:
    found = judge(KernelRelease.parse(release))
    assert allowed(found) == (expected, expected)


def test_kernel_tls_is_told_only_as_no_pod_can_set_it_on_a_member() -> None:
    (found,) = (one for one in judge(KernelRelease.parse("6.18.52")) if one.row.cve == "CVE-2026-93824")
    assert (found.state, found.off) == (State.AFFECTED, Scope.TOLD)


def test_a_sentence_says_what_happens_what_is_off_and_where_it_is_fixed() -> None:
    assert Finding(SERVERS, State.AFFECTED).sentence == (
        "CVE-2025-68227: a plain connection to an MPTCP listener (Go's default since 1.24) can panic the kernel; "
        "sockets that pods accept are not spliced. "
        "Fixed in Linux 5.10.247, 5.15.197, 6.1.159, 6.6.118, 6.12.60, 6.17.10 or 6.18."
    )
    unsure = Finding(NAME["929e30f93125"], State.AFFECTED).sentence
    assert re.match("929e30f93125: .*; nothing is spliced[.]", unsure)
    assert unsure.endswith("or 7.0 (or earlier: the range is not confirmed).")
    assert Finding(TOLD, State.AFFECTED).sentence.count("nothing is switched off for it") == 1
    assert Finding(SERVERS, State.DECLARED_FIXED).sentence.endswith("; declared fixed by splice.kernelFixes.")
    assert Finding(SERVERS, State.FIXED).sentence.endswith("; not on this kernel.")


def test_features_are_missing_before_their_release() -> None:
    assert missing(KernelRelease.parse("6.13")) == ()
    for feature in FEATURES:
        major, minor, _ = version(feature.since)
        assert feature in missing(KernelRelease.parse(f"{major}.{minor - 1}.9999"))
        assert feature not in missing(KernelRelease.parse(feature.since))
    assert not any(feature.required for feature in missing(KernelRelease.parse("5.15")))
    assert any(feature.required for feature in missing(KernelRelease.parse("5.14.21")))


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    text = KERNELS.read_text()
    assert gatedoc.replaced(text) == text, "run python -m spliceway.bpf.gatedoc docs/kernels.md"
    assert text.count(gatedoc.BEGIN) == text.count(gatedoc.END) == 1
