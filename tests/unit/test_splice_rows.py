"""Every row of docs/splicing.md has tests or says why it has none; and its table names the files where they are."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_ROWS = range(1, 26)
#: A test's name, or its marker with whatever stands between it and the test.
_BY_NAME = re.compile(r"^def test_row_(\d\d)_", re.MULTILINE)
_BY_MARK = re.compile(r"^@pytest\.mark\.row\((\d+)\)\n(?:@.*\n|[ \])].*\n)*def test_", re.MULTILINE)
_LINE = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_FILE = re.compile(r"`(test_\w+\.py)`")
_NO_TEST = "not tested: "


def found() -> dict[int, set[str]]:
    """Row to the files with tests of it."""
    rows: dict[int, set[str]] = defaultdict(set)
    for file in (_ROOT / "tests").rglob("test_*.py"):
        text = file.read_text()
        for number in _BY_NAME.findall(text) + _BY_MARK.findall(text):
            rows[int(number)].add(file.name)
    return rows


def told() -> list[tuple[int, set[str], str]]:
    """The lines of the table: row, the files that it names, and its text."""
    section = (_ROOT / "docs" / "splicing.md").read_text().partition("\n## Rows\n")[2].partition("\n## ")[0]
    return [(int(row), set(_FILE.findall(tests)), tests) for row, _, tests in _LINE.findall(section)]


def test_the_table_has_every_row_once() -> None:
    assert [row for row, _, _ in told()] == list(_ROWS)


def test_every_row_has_tests_or_a_reason() -> None:
    tests = found()
    assert set(tests) <= set(_ROWS)
    for row, files, text in told():
        if row not in tests:
            assert text.startswith(_NO_TEST), f"row {row}"
            assert len(text) > len(_NO_TEST) + 20, f"row {row}: why?"
        else:
            assert files, f"row {row}"
            assert files <= tests[row], f"row {row}"
