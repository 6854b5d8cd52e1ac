"""Commands that read policy files themselves, without an agent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliceway.agent.cli.common import Output, OutputOption, RootNamespaceOption, TrustDomainOption

if TYPE_CHECKING:
    from spliceway.agent.inventory import Inventory
    from spliceway.policy.parse_authorization_source import IstioNames


def validate(
    path: Annotated[Path, typer.Argument(metavar="DIR", exists=True, help="A directory of YAML, or one file.")],
    output: OutputOption = Output.TABLE,
    trust_domain: TrustDomainOption = "cluster.local",
    root_namespace: RootNamespaceOption = "istio-system",
) -> None:
    """Check policies as an agent would read them. Exit status 1 when one document is refused."""
    from spliceway.agent.cli.render import emit_json
    from spliceway.policy.parse_authorization_source import IstioNames

    inventory = read(path, IstioNames(trust_domain, root_namespace))
    refusals = inventory.refusals
    kinds = Counter(kind for kind, _name in inventory.changes())
    if output is Output.JSON:
        from spliceway.agent.jsonable import plain

        emit_json({"files": inventory.files, "objects": dict(kinds), "refusals": plain(refusals)})
    else:
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"
        typer.echo(f"{inventory.files} file{'' if inventory.files == 1 else 's'}: {counted}; {len(refusals)} refused")
        for refusal in refusals:
            typer.echo(str(refusal), err=True)
    if refusals:
        raise typer.Exit(1)


def read(path: Path, istio: IstioNames | None = None) -> Inventory:
    """Read a directory (or file) once. `istio`: what the mesh calls itself. Raises SourceError."""
    from spliceway.agent.errors import SourceError
    from spliceway.agent.inventory import Inventory
    from spliceway.agent.sources.events import FileEvent, SourceEvent
    from spliceway.agent.sources.scan import Tree

    events: list[SourceEvent]
    try:
        if path.is_dir():
            events = Tree(path).changes()
        else:
            found = Tree(path.absolute().parent).changes()
            events = [event for event in found if isinstance(event, FileEvent) and event.file == path.name]
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from error
    if not events and not path.is_dir():
        raise SourceError(f"{path} is not a YAML file (.yaml, .yml or .json)")
    inventory = Inventory("", istio=istio)
    inventory.feed(tuple(events))
    return inventory
