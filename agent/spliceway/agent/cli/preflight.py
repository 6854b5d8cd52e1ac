"""`spliceway preflight`: whether this node is fit for an agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliceway.agent.cli.common import Output, OutputOption, program, testbed_configs

if TYPE_CHECKING:
    from spliceway.agent.nodecheck.model import Report


def preflight(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", exists=True, dir_okay=False, help="An agent's configuration."),
    ] = None,
    bpffs: Annotated[Path | None, typer.Option("--bpffs", help="In place of the configuration's.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Splice on sockets of its own, in its own namespaces.")
    ] = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check this node, before or while an agent runs. Changes nothing. Exit status 1 when a check fails.

    Each line says what was found and what to do; docs/preflight.md tells more. Run it where the agent runs: as root, in
    the node's network and mount namespace.
    """
    from spliceway.agent.cli.render import emit
    from spliceway.agent.config import load_config
    from spliceway.agent.jsonable import plain
    from spliceway.agent.nodecheck import runner
    from spliceway.agent.podcgroup import located

    target = runner.target_of(located(load_config(config)) if config else None, bpffs=bpffs, self_test=self_test)
    report = runner.run(target)
    rows = ((check.status, check.name, check.found, check.to_do) for check in report.checks)
    emit(plain(report), output, ("STATUS", "CHECK", "FOUND", "TO DO"), rows)
    if output is Output.TABLE:
        sys.stdout.flush()
        typer.echo(verdict(report), err=True)
        for node in testbed_configs() if config is None else ():
            typer.echo(
                f"spliceway: that is where this ran, not the testbed's node. For that: {on_node(node)}", err=True
            )
    if report.failed:
        raise typer.Exit(1)


def on_node(config: Path) -> str:
    """The command that checks a testbed's node, whose agent has this configuration."""
    run, node = config.parts[-3:-1]
    return f"{program()} testbed exec --run {run} node/{node} -- {program()} preflight --config {config}"


def verdict(report: Report) -> str:
    """The last line, which counts the rows of the table: «33 results: 3 fail, 1 warn»."""
    from spliceway.agent.nodecheck.model import Status

    statuses = [check.status for check in report.checks]
    counted = [f"{statuses.count(status)} {status}" for status in (Status.FAIL, Status.WARN) if status in statuses]
    return f"{len(statuses)} results: {', '.join(counted) or 'nothing to complain of'}"
