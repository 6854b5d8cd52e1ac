"""Nothing that others say is a command for a terminal: tables, sentences, errors, log."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import structlog
import typer.testing

from spliceway.agent import log
from spliceway.agent.cli import xdsrender
from spliceway.agent.cli.common import Group
from spliceway.agent.cli.render import cell, styled, table
from spliceway.agent.cli.ruletext import flow_line
from spliceway.agent.cli.summary import refusals
from spliceway.agent.errors import ClientError
from spliceway.agent.printable import one_line, printable

CLEAR = "\x1b[2J"
#: A control character of one byte less, one that turns the direction of writing, and what is text.
HOSTILE = f"a{CLEAR}\x9b31m\u202e\x7f\rä"
HARMLESS = "a\\x1b[2J\\x9b31m\\u202e\\x7f\\rä"


def test_control_characters_are_escaped() -> None:
    assert printable(f"{HOSTILE}\nb") == f"{HARMLESS}\nb"
    assert one_line(f"{HOSTILE}\nb") == f"{HARMLESS}\\nb"
    assert printable("") == ""


def test_cells_are_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cell([HOSTILE, "b\n"]) == f"{HARMLESS}, b\\n"
    table(("NAME",), [(HOSTILE,)])
    assert CLEAR not in capsys.readouterr().out
    assert CLEAR not in "".join(str(line) for line in styled(("NAME",), [[cell(HOSTILE)]], 80))


def test_sentences_about_what_others_say() -> None:
    differing: dict[str, Any] = {"type": "CDS", "name": HOSTILE, "message": HOSTILE, "more": 1, "state": "error"}
    told = [*xdsrender.diff_notes([differing]), xdsrender.diff_sum({"node": HOSTILE, "resources": [differing]})]
    refusal = {"file": HOSTILE, "document": "", "field": "", "reason": HOSTILE, "kept": False}
    told += refusals({"source": {"refusals": [refusal]}})
    end = {"pod": HOSTILE, "address": "10.0.0.1", "port": 1, "labels": []}
    request = {"method": "GET", "path": f"/{HOSTILE}\n", "status": 403, "duration": 1}
    told.append(
        flow_line({
            "time": "t", "hook": "proxy", "source": end, "destination": end, "reply": False, "protocol": "HTTP/1.1",
            "verdict": "deny", "reason": "r", "http": request, "rule": "", "nearestMiss": "",
        })
    )  # fmt: skip
    for text in told:
        assert HARMLESS in text
        assert text.isprintable()


def test_errors_repeat_nothing_as_it_is() -> None:
    app = typer.Typer(cls=Group)

    @app.command()
    def fail() -> None:
        raise ClientError(f"no node (there are {HOSTILE})")

    @app.command()
    def other() -> None: ...

    answer = typer.testing.CliRunner().invoke(app, ["fail"])
    assert answer.exit_code == 1
    assert answer.stderr == f"spliceway: no node (there are {HARMLESS})\n"


def test_the_log_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = structlog.get_config()
    root = log.logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log.configure()
        structlog.get_logger().warning("refused", node=HOSTILE, count=1)
    finally:
        structlog.configure(**before)
        root.handlers[:], root.level = handlers, level
    said = terminal.getvalue()
    assert HARMLESS in said.replace("\\\\", "\\")
    assert CLEAR not in said
    assert "\x9b" not in said
