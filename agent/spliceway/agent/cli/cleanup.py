"""`spliceway cleanup`: take out all that was ever attached on this node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliceway.agent.cli.common import Output, OutputOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spliceway.agent.config import Config
    from spliceway.agent.nodecleanup import Item
    from spliceway.bpf.types import DatapathSettings

_AFTERWARDS = "Afterwards policy is not enforced on this node: pods reach whatever the network lets them."


def cleanup(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", exists=True, dir_okay=False, help="An agent's configuration; needs none."),
    ] = None,
    bpffs: Annotated[Path | None, typer.Option("--bpffs", help="In place of the configuration's.")] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="In place of the configuration's.")] = None,
    state: Annotated[bool, typer.Option("--state", help="Also what agents remember: numbers, held documents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even while an agent runs.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove all that agents of any version left on this node: programs, maps, filters, rules, sysctls, the proxy.

    Policy is not enforced on this node afterwards. Run it in the node's network namespace. What others attached stays.
    Without --yes it asks, and with nobody to ask it only lists what there is, with exit status 1.
    """
    import asyncio

    from spliceway.agent import log
    from spliceway.agent.cli.render import emit_json
    from spliceway.agent.config import load_config
    from spliceway.agent.errors import StateError
    from spliceway.agent.jsonable import plain
    from spliceway.agent.nodecleanup import Cleaned, elsewhere, find, remove, sees_all
    from spliceway.agent.podcgroup import located

    log.configure("warning")
    settings = _settings(located(load_config(config)) if config else None, bpffs, state_dir)
    found = asyncio.run(find(settings))
    if not sees_all():
        for item in found if output is Output.TABLE else ():
            typer.echo(f"There is {item.kind} {item.what}")
        raise StateError("only root can see all that agents left, and nothing was removed: run it as root")
    wanted = [item for item in found if state or item.kind != "state"]
    if wanted and not yes and not _agrees(wanted, settings, output, force=force):
        if output is Output.JSON:
            emit_json(plain(Cleaned(tuple(found), (), tuple(found))))
        raise typer.Exit(1)
    unseen = elsewhere(settings)
    done = asyncio.run(remove(settings, state=state, force=force))
    if output is Output.JSON:
        emit_json(plain(done))
        return
    for item in done.removed:
        typer.echo(f"Removed {item.kind} {item.what}")
    if any(item.kind == "pins" for item in done.removed):
        typer.echo("Policy is not enforced on this node any more.")
    if not done.removed:
        typer.echo("Nothing to remove.")
        typer.echo(_where(settings), err=True)
    for item in done.kept:
        why = "--state removes it, too" if item.kind == "state" else "others use it"
        typer.echo(f"Kept {item.kind} {item.what} ({why})")
    if unseen:
        typer.echo("Filters, rules and sysctls in the agent's network namespace are as they were.")


def _settings(config: Config | None, bpffs: Path | None, state_dir: Path | None) -> DatapathSettings:
    """Those of the configuration or the defaults, with what was named on the command line."""
    import msgspec

    from spliceway.agent.configsections import CgroupsConfig
    from spliceway.agent.nodecheck.runner import target_of
    from spliceway.agent.podcgroup import usual

    settings = target_of(config).settings
    if config is None:
        settings = msgspec.structs.replace(settings, pods_cgroup=usual(), proxy_cgroup=CgroupsConfig().proxy)
    named = {"bpffs": bpffs, "state_dir": state_dir}
    return msgspec.structs.replace(
        settings, **{name: path.absolute() for name, path in named.items() if path is not None}
    )


def _where(settings: DatapathSettings) -> str:
    """Where agents were looked for: one that had other places is not found."""
    return (
        f"looked at {settings.bpffs}/spliceway, {settings.state_dir}, interfaces and rules of this network namespace; "
        "--config, --bpffs and --state-dir name other places"
    )


def _agrees(found: Sequence[Item], settings: DatapathSettings, output: Output, *, force: bool) -> bool:
    """Ask, where somebody is there to answer, and where it would be done."""
    from spliceway.agent.nodecleanup import elsewhere, foreign
    from spliceway.bpf.leftovers import runs

    for item in found if output is Output.TABLE else ():
        typer.echo(f"Would remove {item.kind} {item.what}")
    why = ""
    if elsewhere(settings):
        why = "the agent ran in another network namespace, of which nothing is seen from here: run it there, or"
    elif runs(settings.bpffs):
        why = "an agent runs: stop it first, or"
    elif told := foreign(settings, found):
        why = f"{told}, or"
    if why and not force:
        typer.echo(f"spliceway: nothing was removed: {why} say --yes --force", err=True)
        return False
    if output is Output.TABLE and sys.stdin.isatty():
        return typer.confirm(f"{_AFTERWARDS} Remove all this?")
    typer.echo(f"spliceway: nothing was removed: say --yes. {_AFTERWARDS}", err=True)
    return False
