"""`spliceway demo`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from spliceway.agent.bench.interrupts import exit_interrupted, interruptible
from spliceway.agent.bench.progress import progress
from spliceway.agent.cli.common import program
from spliceway.agent.configsections import ProxyKind

app = typer.Typer(name="demo", pretty_exceptions_enable=False, add_completion=False)

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people or for programs.")]


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the node running, to try more.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short round of measuring.")] = False,
    proxy: Annotated[ProxyKind, typer.Option(help="The node's proxy.")] = "embedded",
    output: Output = "table",
) -> None:
    """Show the whole product on one virtual node, with real requests; nothing of this machine's network is touched.

    Exit status 0 when every request came out as expected, else 1; 130 when interrupted.
    """
    from spliceway.agent.cli.render import emit_json
    from spliceway.agent.demo import report
    from spliceway.agent.demo.run import run_demo

    try:
        with interruptible():
            result = run_demo(proxy, quick=quick, keep=keep, say=progress())
    except KeyboardInterrupt:
        exit_interrupted()
    if output == "json":
        emit_json(report.as_json(result.rows, result.samples))
    else:
        report.print_tables(result.rows, result.samples)
    if result.kept:
        how = _HOW_TO_ENTER.format(program=program(), run=result.kept, policies=result.policies)
        typer.echo(how, err=output == "json")
    if not all(row.ok for row in result.rows):
        raise typer.Exit(1)


_HOW_TO_ENTER = """
The node is still running (testbed {run}):
  {program} testbed exec --run {run} frontend -- curl -i http://10.240.1.13/articles/1
  {program} testbed exec --run {run} node/node1 -- bash        the node itself, or one command there
  {program} status        also: flows --follow, sock list, policy get, xds dump
  edit the policies in    {policies}
  {program} testbed down {run}"""
