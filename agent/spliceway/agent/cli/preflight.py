"""`spliceway preflight`: whether this node is fit for an agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from spliceway.agent.cli.common import Output, OutputOption


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

    target = runner.target_of(load_config(config) if config else None, bpffs=bpffs, self_test=self_test)
    report = runner.run(target)
    rows = ((check.status, check.name, check.found, check.to_do) for check in report.checks)
    emit(plain(report), output, ("STATUS", "CHECK", "FOUND", "TO DO"), rows)
    if output is Output.TABLE:
        sums = ((len(report.failed), "failed"), (len(report.warned), "to look at"))
        counted = [f"{count} {word}" for count, word in sums if count]
        sys.stdout.flush()
        typer.echo(f"{len(report.checks)} results, {', '.join(counted) or 'nothing to complain of'}", err=True)
    if report.failed:
        raise typer.Exit(1)
