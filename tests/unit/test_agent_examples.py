"""The examples of policy kinds say what their comments say."""

from __future__ import annotations

from pathlib import Path

import msgspec
from typer.testing import CliRunner

from spliceway.agent.cli.root import app

KINDS = Path(__file__).parents[2] / "examples" / "kinds"


def test_the_kinds_are_read_and_answered() -> None:
    assert CliRunner().invoke(app, ["policy", "validate", str(KINDS / "policies")]).exit_code == 0
    asked = {
        "--policies": KINDS / "policies",
        "--inventory": KINDS / "cluster.yaml",
        "--queries": KINDS / "queries.jsonl",
    }
    options = [part for name, path in asked.items() for part in (name, str(path))]
    done = CliRunner().invoke(app, ["policy", "evaluate", *options, "-o", "json"])
    assert done.exit_code == 0, done.output
    answers = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [(one["from"], one["port"], one["verdict"], one.get("audit", False)) for one in answers] == [
        ("shop/web", 8080, "allow", False),  # by the name of the port
        ("shop/web", 9100, "deny", False),  # no team `platform`
        ("monitoring/prober", 9100, "allow", False),  # before the NetworkPolicy, which does not name it
        ("shop/batch", 8080, "deny", False),  # by the NetworkPolicy, which is enforced
        ("shop/batch", 443, "allow", True),
    ]
