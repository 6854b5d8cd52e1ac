"""`spliceway sock`: what became of each redirected connection, once or again and again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from spliceway.agent.cli import options
from spliceway.agent.cli.common import Output, OutputOption, SocketOption, agent_client, program

Json = dict[str, Any]
#: Home, and erase all below: the next table takes the place of the one before.
_ANEW = "\x1b[H\x1b[J"


_PodOption = Annotated[str | None, typer.Option(metavar="[NAMESPACE/]POD", help="Only those of a pod of this node.")]
_StateOption = Annotated[str | None, typer.Option(help="Only spliced, tcp-only …", callback=options.sock_value)]
_ReasonOption = Annotated[
    str | None, typer.Option(help="Only those that are not spliced for sent-first …", callback=options.sock_value)
]
_WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Again and again, with rates; the busiest first.")]
_IntervalOption = Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")]
_CountOption = Annotated[int, typer.Option(min=0, help="End --watch after so many looks; 0: never.")]


def socks(
    pod: _PodOption = None,
    state: _StateOption = None,
    reason: _ReasonOption = None,
    watch: _WatchOption = False,
    interval: _IntervalOption = 2.0,
    count: _CountOption = 0,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """List redirected connections: spliced or not and why, what was spliced each way, what of it waits unread.

    Bytes, messages and rates are of what was spliced; `-`: it goes by TCP, and nothing is counted. With --watch and
    -o json each look is one line: {"time": …, "socks": […]}, with bytes a second each way, null where none is counted.
    """
    from spliceway.agent.cli.render import emit
    from spliceway.agent.cli.splices import SOCK_COLUMNS, chosen, sock_rows

    client = agent_client(socket)
    wanted = options.local_pod(client, pod) if pod is not None else None

    def look() -> list[Json]:
        return chosen(client.get("socks"), pod=wanted, state=state, reason=reason)

    if watch:
        _watch(look, interval, count, output)
        return
    found = look()
    emit(found, output, SOCK_COLUMNS, sock_rows(found))
    if not found and output is Output.TABLE:
        sys.stdout.flush()
        such = " like this" if wanted or state or reason else ""
        typer.echo(f"no redirected connection{such} is open now; `{program()} sock summary` has those before", err=True)


def summary(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """Count redirected connections by state and reason: since the programs were loaded, and those of now."""
    from spliceway.agent.cli.render import emit
    from spliceway.agent.cli.splices import counted

    client = agent_client(socket)
    found = counted(client.get("status")["splice"]["counters"], client.get("socks"))
    rows = ((item["state"], item["reason"], item["total"], item["now"]) for item in found)
    emit(found, output, ("STATE", "REASON", "TOTAL", "NOW"), rows)


def _watch(look: Callable[[], list[Json]], interval: float, count: int, output: Output) -> None:
    from spliceway.agent.cli.splices import with_rates
    from spliceway.agent.jsonable import time_shown

    before: list[Json] = []
    at = 0.0
    looks = 0
    try:
        while True:
            now = time.monotonic()
            found = look()
            rated = with_rates(found, before, now - at)
            if output is Output.JSON:
                sys.stdout.write(msgspec.json.encode({"time": time_shown(time.time()), "socks": rated}).decode() + "\n")
            else:
                _show(rated)
            sys.stdout.flush()
            looks += 1
            if looks == count:
                return
            before, at = found, now
            time.sleep(interval)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _show(rated: list[Json]) -> None:
    """One look as a table: on a terminal in the place of the one before, as many rows as it has."""
    from spliceway.agent.cli.render import table
    from spliceway.agent.cli.splices import WATCH_COLUMNS, totals_line, watch_rows

    rows = list(watch_rows(rated))
    room = len(rows)
    if sys.stdout.isatty():
        sys.stdout.write(_ANEW)
        room = max(1, shutil.get_terminal_size().lines - 4)
    sys.stdout.write(totals_line(rated) + "\n")
    sys.stdout.flush()  # the table may be written by another way
    table(WATCH_COLUMNS, rows[:room])
    if len(rows) > room:
        sys.stdout.write(f"… {len(rows) - room} more\n")
