"""Tables on narrow terminals: headers and addresses stay whole, nothing is lost, no line is too long."""

from __future__ import annotations

import pytest

from spliceway.agent.cli.columns import Layout, fit, fold
from spliceway.agent.cli.render import styled, table

COLUMNS = ("ENDPOINT", "IDENTITY", "INTERFACE", "ADDRESSES", "LABELS")
ROWS = [
    ["default/frontend", "256", "lxce1e27870", "10.240.1.11, fd00:240:1::11", "k8s:role=frontend, k8s:app=shop"],
    ["default/api", "16777217", "lxc95ddf69d", "10.240.1.13, fd00:240:1::13", "-"],
]


@pytest.mark.parametrize("room", [50, 60, 80, 120, 200])
def test_words_stay_whole(room: int) -> None:
    lines = [line.plain for line in styled(COLUMNS, ROWS, room)]
    assert max(map(len, lines)) <= room
    words = " ".join(lines).replace(",", " ").replace(";", " ").split()
    for name in COLUMNS:
        assert name in words
    for row in ROWS:
        for cell in row[:4]:
            assert set(cell.replace(",", " ").split()) <= set(words)


def test_what_has_no_room_is_below_its_row() -> None:
    assert fit(COLUMNS, ROWS, 200).below == ()
    assert fit(COLUMNS, ROWS, 50) == Layout({0: 16, 1: 8, 2: 11}, (3, 4))
    lines = [line.plain for line in styled(COLUMNS, ROWS, 60)]
    assert lines[0].split() == ["ENDPOINT", "IDENTITY", "INTERFACE", "ADDRESSES"]
    assert "  LABELS k8s:role=frontend, k8s:app=shop" in lines


def test_without_a_header_the_last_column_is_folded() -> None:
    lines = [line.plain for line in styled((), [["source", "x" * 50], ["policy", "a b"]], 40)]
    assert lines == ["source  " + "x" * 32, " " * 8 + "x" * 18, "policy  a b"]


def test_no_rows() -> None:
    assert [line.plain for line in styled(COLUMNS, [], 80)] == ["ENDPOINT  IDENTITY  INTERFACE  ADDRESSES  LABELS"]


def test_in_a_pipe_one_long_cell_widens_no_other_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["bpffs", "x" * 300, "mount it"], ["libbpf", "ok", ""]]
    table(("CHECK", "FOUND", "TO DO"), rows)
    assert capsys.readouterr().out.splitlines() == [
        f"CHECK   FOUND{' ' * 59}  TO DO",
        f"bpffs   {'x' * 300}  mount it",
        f"libbpf  ok{' ' * 62}  -",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", [""]), ("a b", ["a b"]), ("aaa bbb", ["aaa", "bbb"]), ("aaaaaa b", ["aaaa", "aa b"]), ("abcd", ["abcd"])],
)
def test_fold(text: str, lines: list[str]) -> None:
    assert fold(text, 4) == lines
