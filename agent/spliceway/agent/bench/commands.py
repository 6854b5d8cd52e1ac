"""`spliceway bench`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from spliceway.agent.bench.errors import UnknownPathError
from spliceway.agent.bench.interrupts import INTERRUPTED, interruptible
from spliceway.agent.bench.paths import DEFAULT_PATHS, PATHS, parse_paths
from spliceway.agent.bench.progress import progress

app = typer.Typer(
    name="bench",
    help="Compare data paths on a virtual node of its own; nothing of this machine's network is touched.",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people or for programs.")]


@app.callback()
def bench(
    context: typer.Context,
    paths: Annotated[str, typer.Option(help=f"Which to compare, comma between: {', '.join(PATHS)}.")] = DEFAULT_PATHS,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Length of each of the four measurements.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Envoy's worker threads; 0: one for each core.")] = 1,
    output: Output = "table",
) -> None:
    """Compare data paths: requests a second and latency of small replies, bytes a second of larger ones."""
    if context.invoked_subcommand:
        return
    from spliceway.agent.bench import report
    from spliceway.agent.bench.run import run
    from spliceway.agent.cli.render import emit_json

    try:
        chosen = parse_paths(paths)
    except UnknownPathError as error:
        raise typer.BadParameter(str(error), param_hint="--paths") from error
    try:
        with interruptible():
            result = run(chosen, rounds=rounds, seconds=seconds, workers=workers, say=progress())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if output == "json":
        emit_json(report.as_json(result.machine, rounds, result.samples))
    else:
        report.print_tables(result.machine, rounds, result.samples)
