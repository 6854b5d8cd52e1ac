"""`spliceway kill-switch`: turn enforcement and steering off on this node, with or without an agent, and on again."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spliceway.agent.cli.common import DEFAULT_SOCKET, Output, OutputOption, SocketOption

if TYPE_CHECKING:
    from spliceway.agent.cli.client import AgentClient

#: How long an agent may take to do what the file says, in seconds; it watches the file.
AGENT_SECONDS = 5.0
_PAUSE = 0.05


class Turn(StrEnum):
    """What to do."""

    ON = "on"
    OFF = "off"
    STATUS = "status"


class _Places:
    """Where file, kernel state and agent are."""

    def __init__(self, config: Path | None, bpffs: Path | None, file: Path | None, socket: Path | None) -> None:
        from spliceway.agent.config import load_config
        from spliceway.agent.configsections import KillSwitchConfig
        from spliceway.agent.errors import WrongUsageError

        found = load_config(config) if config else None
        configured = (found.kill_switch if found else KillSwitchConfig()).file
        if file is None and configured is None:
            raise WrongUsageError("killSwitch.file of the configuration is null: no agent looks at a file")
        self.file = Path(file or configured or "").absolute()
        self.bpffs = bpffs or (found.bpffs if found else Path("/sys/fs/bpf"))
        self.socket = socket or (found.admin.socket if found else DEFAULT_SOCKET)


def kill_switch(
    turn: Annotated[Turn, typer.Argument(metavar="on|off|status", help="Turn it on or off, or show how it is.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="SPLICEWAY_CONFIG",
            exists=True,
            dir_okay=False,
            help="The agent's configuration; needs none.",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The file, in place of the configuration's.")] = None,
    bpffs: Annotated[Path | None, typer.Option("--bpffs", help="In place of the configuration's.")] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Turn all enforcement and steering off on this node (on), and on again (off). Works without an agent, too.

    It writes or removes the file that agents watch, and where none answers tells the programs in the kernel itself.
    Exit status 1 when it is not afterwards as was asked, with the reason.
    """
    from spliceway.agent.cli.render import emit_json
    from spliceway.agent.errors import AgentError
    from spliceway.bpf import killswitch

    places = _Places(config, bpffs, file, socket)
    client = _client(places.socket)
    if turn is not Turn.STATUS:
        _write(places.file, on=turn is Turn.ON)
        # On: at once, whatever the agent does. Off: an agent that answers knows whether the Node says otherwise.
        if turn is Turn.ON or client is None:
            killswitch.turn(places.bpffs, turn is Turn.ON)
    said = _agent_says(client, None if turn is Turn.STATUS else turn is Turn.ON)
    if said is None and turn is not Turn.STATUS:
        killswitch.turn(places.bpffs, turn is Turn.ON)
    on = bool(said["on"]) if said is not None else killswitch.is_on(places.bpffs)
    found = {"on": on, "file": str(places.file), "filePresent": os.path.lexists(places.file), "agent": said}
    if output is Output.JSON:
        emit_json(found)
    else:
        for line in _told(found):
            typer.echo(line)
    # Where nothing is loaded, the file alone does it: an agent that starts looks at it first.
    if turn is Turn.OFF and on:
        why = "; ".join(said["why"]) if said else "the kernel's programs still pass everything"
        raise AgentError(f"the kill switch is still on: {why}")
    if turn is Turn.ON and not on and said is not None:
        raise AgentError(f"the agent has not turned off enforcement: {said['error'] or 'it looks at ' + said['file']}")


def _write(file: Path, *, on: bool) -> None:
    """Raises AgentError."""
    from spliceway.agent.errors import AgentError

    try:
        if on:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write(time.strftime("%Y-%m-%dT%H:%M:%SZ spliceway kill-switch on\n", time.gmtime()))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise AgentError(f"{file}: {error.strerror}") from error


def _client(socket: Path) -> AgentClient | None:
    """Of an agent that answers, or None."""
    from spliceway.agent.cli.client import AgentClient
    from spliceway.agent.errors import ClientError

    client = AgentClient(socket, timeout=AGENT_SECONDS)
    try:
        client.get("status")
    except ClientError:
        return None
    return client


def _agent_says(client: AgentClient | None, wanted: bool | None) -> dict[str, Any] | None:
    """What the agent says of its switch once it is as wanted, or after AGENT_SECONDS; None where none answers."""
    from spliceway.agent.errors import ClientError

    deadline = time.monotonic() + AGENT_SECONDS
    while client is not None:
        try:
            said: dict[str, Any] | None = client.get("status").get("killSwitch")
        except ClientError:
            return None
        if said is None or wanted in (None, said["on"]) or time.monotonic() > deadline:
            return said
        time.sleep(_PAUSE)
    return None


def _told(found: dict[str, Any]) -> list[str]:
    said = found["agent"]
    lines = [
        "The kill switch is ON: no policy is enforced on this node, and nothing new goes through the proxy."
        if found["on"]
        else "The kill switch is off."
    ]
    if said is None:
        lines.append("No agent answers: this is what the programs in the kernel do.")
        if found["on"]:
            lines.append("Connections that the proxy has already still meet its HTTP rules, until an agent runs.")
    lines += [f"- {why}" for why in (said or {}).get("why", ())]
    if found["filePresent"] and not found["on"]:
        lines.append(f"{found['file']} is there: an agent that starts enforces nothing.")
    return lines
