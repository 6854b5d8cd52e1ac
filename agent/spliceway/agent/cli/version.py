"""`spliceway version` and `spliceway --version`: which Spliceway this is."""

from __future__ import annotations

from typing import Annotated

import typer

from spliceway.agent.cli.common import Output, OutputOption


def version(output: OutputOption = Output.TABLE) -> None:
    """The version of Spliceway, and of the layout of what it keeps in the kernel."""
    from importlib import metadata

    from spliceway.agent.cli.render import emit
    from spliceway.bpf.abi import ABI_VERSION

    found = {"version": metadata.version("spliceway"), "abi": ABI_VERSION}
    emit(found, output, ("VERSION", "ABI"), [tuple(map(str, found.values()))])


def _show(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"spliceway {metadata.version('spliceway')}")
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Network policy in eBPF, HTTP policy by a proxy on the node, spliced with sockmap."""
