"""Commands that show the xDS control plane: who has what, where it comes from, what happens, what a proxy lacks."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from spliceway.agent.cli import options
from spliceway.agent.cli.common import (
    FullOutput,
    FullOutputOption,
    Output,
    OutputOption,
    SocketOption,
    agent_client,
)

TypeOption = Annotated[
    str | None,
    typer.Option(
        "--type", metavar="TYPE", help="Only LDS, RDS, CDS, EDS, SDS or ECDS; or listeners, routes, clusters, …",
        callback=options.xds_type,
    ),
]  # fmt: skip
NodeOption = Annotated[str | None, typer.Option("--node", help="Node id of a client. [default: the agent's own proxy]")]


def status(output: FullOutputOption = FullOutput.TABLE, socket: SocketOption = None) -> None:
    """Show each client, and of each type whether it has what it shall have.

    Exit status 1 when a client refused something (NACK), has not answered for 5 seconds, or when there is none; with
    `xds serve` also when a file or a set of resources is refused. Clients that were not served in the last minute are
    told as warnings.
    """
    from spliceway.agent.cli import xdsrender
    from spliceway.agent.cli.render import emit_full, table

    client = agent_client(socket)
    clients, refused = client.get("xds/status"), client.get("xds/refused")
    if output is FullOutput.TABLE:
        if clients:
            table(xdsrender.CLIENT_COLUMNS, xdsrender.client_rows(clients))
            typer.echo()
            table(xdsrender.TYPE_COLUMNS, xdsrender.type_rows(clients))
        for note in xdsrender.status_notes(clients):
            typer.echo(note)
    else:
        emit_full(clients, output, (), ())
    wrong = [*xdsrender.refused_problems(refused), *xdsrender.status_problems(clients, time.time())]
    for warning in xdsrender.refused_warnings(refused):
        typer.echo(f"(warning) {warning}", err=True)
    for problem in wrong:
        typer.echo(f"! {problem}", err=True)
    if wrong:
        raise typer.Exit(1)


def dump(
    node: NodeOption = None,
    type_: TypeOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Only the resource of this name.")] = None,
    stage: Annotated[
        str,
        typer.Option("--stage", help="desired (what it shall have), sent or acked.", callback=options.xds_stage),
    ] = "desired",
    sidecar: Annotated[
        str | None,
        typer.Option("--sidecar", metavar="[NAMESPACE/]POD", help="Also what Istio's sidecar of this node's pod has."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="URL", help="The same of a sidecar's admin port: http://127.0.0.1:15000."),
    ] = None,
    istiod: Annotated[
        str | None,
        typer.Option(
            "--istiod",
            metavar="URL",
            help="Also what istiod says of its proxies (/debug/syncz): http://127.0.0.1:15014.",
        ),
    ] = None,
    output: FullOutputOption = FullOutput.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show resources as they are served, each with the policies that made it; whole with -o yaml or json.

    With a sidecar or istiod: names, versions and states of theirs beside ours, without what is in them.
    """
    if (sidecar, address, istiod) != (None, None, None):
        from spliceway.agent.cli import meshdump

        narrowed = {"node": node, "type": type_, "name": name, "stage": stage}
        meshdump.dump(socket, output, pod=sidecar, address=address, istiod=istiod, narrowed=narrowed)
        return
    from spliceway.agent.cli import xdsrender
    from spliceway.agent.cli.render import emit_full

    contents = "0" if output is FullOutput.TABLE else None
    client = agent_client(socket)
    found = client.get("xds/resources", node=node, type=type_, name=name, stage=stage, contents=contents)
    emit_full(found, output, xdsrender.DUMP_COLUMNS, xdsrender.dump_rows(found))


def diff(
    node: NodeOption = None,
    admin: Annotated[
        str | None,
        typer.Option(
            help="That proxy's admin interface: the path of a Unix socket, or http://127.0.0.1:PORT. "
            "[default: that of the agent's own proxy]"
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Compare what a proxy shall have with what it says it has (/config_dump). Exit status 1 when it differs."""
    from spliceway.agent.cli import xdsrender
    from spliceway.agent.cli.client import config_dump
    from spliceway.agent.cli.render import emit_json, table

    client = agent_client(socket)
    answer = (
        client.get("xds/diff", node=node) if admin is None else client.post("xds/diff", config_dump(admin), node=node)
    )
    wrong = [item for item in answer["resources"] if item["state"] != "same"]
    if output is Output.JSON:
        emit_json(answer)
    else:
        if wrong:
            table(xdsrender.DIFF_COLUMNS, xdsrender.diff_rows(wrong))
        for note in (*xdsrender.diff_notes(wrong), xdsrender.diff_sum(answer)):
            typer.echo(note)
    if wrong:
        raise typer.Exit(1)


def watch(
    node: Annotated[str | None, typer.Option("--node", help="Only clients with this node id.")] = None,
    type_: TypeOption = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="Begin with so many of the latest.")] = 0,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show pushes, ACKs, NACKs and connections as they happen; with -o json one object a line."""
    from spliceway.agent.cli.xdsrender import event_line

    lines = agent_client(socket).lines("xds/events", follow="1", last=str(last), node=node, type=type_)
    try:
        for event in lines:
            sys.stdout.write((_json(event) if output is Output.JSON else event_line(event)) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
