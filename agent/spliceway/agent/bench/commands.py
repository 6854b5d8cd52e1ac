"""`spliceway bench`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from spliceway.agent.bench.edits import SUBJECTS
from spliceway.agent.bench.errors import UnknownPathError
from spliceway.agent.bench.interrupts import exit_interrupted, interruptible
from spliceway.agent.bench.paths import PATHS, default_paths, parse_paths
from spliceway.agent.bench.progress import progress
from spliceway.agent.configsections import ProxyKind

app = typer.Typer(
    name="bench",
    help="Compare data paths on a virtual node of its own; nothing of this machine's network is touched.",
    pretty_exceptions_enable=False,
    add_completion=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people or for programs.")]


@app.callback()
def bench(
    context: typer.Context,
    paths: Annotated[
        str,
        typer.Option(
            help=f"Which to compare, comma between: {', '.join(PATHS)}. "
            "Unless given: direct, and each proxy that is installed, spliced and not."
        ),
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Length of each of the five measurements.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Workers of each proxy; 0: one for each core.")] = 1,
    output: Output = "table",
) -> None:
    """Compare data paths: requests a second and latency of small replies, bytes a second of larger ones."""
    if context.invoked_subcommand:
        return
    from spliceway.agent.bench import report
    from spliceway.agent.bench.run import installed_kinds, run
    from spliceway.agent.cli.render import emit_json

    try:
        chosen = parse_paths(paths or default_paths(*installed_kinds()))
    except UnknownPathError as error:
        raise typer.BadParameter(str(error), param_hint="--paths") from error
    try:
        with interruptible():
            result = run(chosen, rounds=rounds, seconds=seconds, workers=workers, say=progress())
    except KeyboardInterrupt:
        exit_interrupted()
    if output == "json":
        emit_json(report.as_json(result.machine, rounds, result.samples))
    else:
        report.print_tables(result.machine, rounds, result.samples)


@app.command("policy-latency")
def policy_latency(
    what: Annotated[
        str, typer.Option(help=f"Which rules and data paths, comma between: {', '.join(SUBJECTS)}.")
    ] = ",".join(SUBJECTS),
    edits: Annotated[int, typer.Option(min=1, help="How often each policy is tightened, and loosened.")] = 15,
    proxy: Annotated[ProxyKind, typer.Option(help="The node's proxy.")] = "embedded",
    output: Output = "table",
) -> None:
    """Measure how long an edit of a policy takes until the first packet or request is judged by it."""
    from spliceway.agent.bench import latency, report
    from spliceway.agent.cli.render import emit_json

    names = what.split(",")
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join(SUBJECTS)}", param_hint="--what")
    try:
        with interruptible():
            result = latency.run([SUBJECTS[name] for name in names], edits=edits, proxy=proxy, say=progress())
    except KeyboardInterrupt:
        exit_interrupted()
    if output == "json":
        emit_json(report.latency_json(result))
    else:
        report.print_latencies(result)
