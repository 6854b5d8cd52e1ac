"""`service list` and `bpf lb list`: where connections to Services lead on this node, by documents and kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from spliceway.agent.cli import options
from spliceway.agent.cli.common import FullOutput, ListOutput, ListOutputOption, SocketOption, agent_client

Json = dict[str, Any]

#: How many backends of a frontend a table shows that is not wide.
_FIRST = 3


def service_list(
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Only Services of this namespace.", callback=options.namespace),
    ] = None,
    output: ListOutputOption = ListOutput.TABLE,
    socket: SocketOption = None,
) -> None:
    """List the frontends of Services with the backends that this node would choose from.

    It is what the documents say, by kube-proxy's rules; `bpf lb list` shows what the kernel has of it.
    """
    from spliceway.agent.cli.render import emit_full, emit_json, table

    client = agent_client(socket)
    found = client.get("services", namespace=None if namespace is None else options.known_namespace(client, namespace))
    if output is ListOutput.JSON:
        emit_json(found)
    elif output is ListOutput.YAML:
        emit_full([found], FullOutput.YAML, (), ())
    else:
        wide = output is ListOutput.WIDE
        columns = ("SERVICE", "PORT", "KIND", "FRONTEND", "COUNT", "BACKENDS")
        table((*columns, "AFFINITY") if wide else columns, service_rows(found["frontends"], wide=wide))
        for note in service_notes(found):
            typer.echo(note, err=True)


def lb_list(output: ListOutputOption = ListOutput.TABLE, socket: SocketOption = None) -> None:
    """List the frontends that the kernel has for pods' sockets, with their backends."""
    from spliceway.agent.cli.render import emit_full, emit_json, table

    found = agent_client(socket).get("bpf/lb")
    if output is ListOutput.JSON:
        emit_json(found)
    elif output is ListOutput.YAML:
        emit_full([found], FullOutput.YAML, (), ())
    else:
        columns = ("SERVICE", "PORT", "KIND", "FRONTEND", "SET", "COUNT", "BACKENDS", "AFFINITY")
        table(columns, lb_rows(found, wide=output is ListOutput.WIDE))


def lb_rows(frontends: list[Json], *, wide: bool) -> Iterator[tuple[Any, ...]]:
    """Rows of the table: `wide` ones have all backends, by place, each after its number."""
    for item in frontends:
        backends = [f"{one['number']}={_address(one)}" for one in item["backends"]]
        more = 0 if wide else len(backends) - _FIRST
        shown = [*backends[:_FIRST], f"{more} more"] if more > 0 else backends
        affinity = f"{item['affinitySeconds']} s" if item["affinitySeconds"] else ""
        names = (item["service"], item["portName"], item["kind"])
        yield *names, _frontend(item), item["set"], len(backends), shown, affinity


def service_rows(frontends: list[Json], *, wide: bool) -> Iterator[tuple[Any, ...]]:
    """Rows of the table: `wide` ones have all backends, and the seconds of session affinity."""
    for item in frontends:
        backends = [_address(one) for one in item["backends"]]
        row = (item["service"], item["portName"], item["kind"], _frontend(item), len(backends))
        if wide:
            yield *row, backends, f"{item['affinitySeconds']} s" if item["affinitySeconds"] else ""
        else:
            more = len(backends) - _FIRST
            yield *row, [*backends[:_FIRST], *([f"{more} more"] if more > 0 else ())]


def service_notes(found: Json) -> list[str]:
    """What the table can't show, one sentence each: conflicts, and what has no frontend."""
    from spliceway.agent.printable import printable

    notes = [
        f"! {_frontend(item)}: {loser['service']} ({loser['kind']}) wants it, too; "
        f"{item['service']} ({item['kind']}) has it"
        for item in found["frontends"]
        for loser in item["conflicts"]
    ]
    notes += [f"(no frontend) {item['service']}: {why}" for item in found["leftOut"] for why in item["why"]]
    return [printable(note) for note in notes]


def _frontend(item: Json) -> str:
    return f"{_address(item)}/{item['protocol']}"


def _address(item: Json) -> str:
    from spliceway.agent.cli.render import address

    return address(item["address"], item["port"])
