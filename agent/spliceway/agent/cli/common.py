"""What all commands share: options, the way errors are told, and which agent is meant."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from spliceway.agent.cli.client import AgentClient

DEFAULT_SOCKET = Path("/run/spliceway/agent.sock")
TESTBEDS = Path("/run/spliceway/testbed")


class Output(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


class FullOutput(StrEnum):
    """How to print what has more in it than a table can show."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class ListOutput(StrEnum):
    """How to print lists whose rows have more in them than fits a line."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="A table for people, JSON for programs.")]
FullOutputOption = Annotated[
    FullOutput, typer.Option("--output", "-o", help="A table for people, JSON or YAML documents with all of it.")
]
ListOutputOption = Annotated[
    ListOutput, typer.Option("--output", "-o", help="A table for people, a wide one, JSON or YAML with all of it.")
]
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", envvar="SPLICEWAY_SOCKET", help=f"The agent's admin socket. [default: {DEFAULT_SOCKET}]"),
]
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", exists=True, dir_okay=False, help="The agent's configuration file.")
]


def _name(value: str) -> str:
    """Check a name that becomes part of patterns (usage error)."""
    from spliceway.policy.fields import DNS_SUBDOMAIN

    if not DNS_SUBDOMAIN.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is not a name (lower-case letters, digits, «-» and «.»)")
    return value


TrustDomainOption = Annotated[str, typer.Option(help="The mesh's trust domain.", callback=_name)]
RootNamespaceOption = Annotated[str, typer.Option(help="Istio's root namespace.", callback=_name)]


class WideGroup(typer.core.TyperGroup):
    """A command group: lines of its commands' help are as wide as the terminal, whatever they are in the source."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, with such a help."""
        found = super().get_command(ctx, cmd_name)
        if found is not None and found.help:
            paragraphs = inspect.cleandoc(found.help).split("\n\n")
            found.help = "\n\n".join(each.replace("\n", " ") for each in paragraphs)
        return found


class Group(WideGroup):
    """A command group that tells our own errors in one line on stderr, with exit status 1; 2 for wrong usage."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; where there is none of this name but a group has one, the error tells it."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            groups = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
            meant = [
                f"'{name} {args[0]}'"
                for name, group in groups.items()
                if isinstance(group, typer.core.TyperGroup) and args[0] in group.list_commands(ctx)
            ]
            if meant:
                ctx.fail(f"No such command {args[0]!r}. There is {' and '.join(meant)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        from spliceway.agent.errors import OWN_ERRORS, WrongUsageError
        from spliceway.agent.printable import printable

        try:
            return super().invoke(ctx)
        except OWN_ERRORS as error:
            typer.echo(f"spliceway: {printable(str(error))}", err=True)
            raise typer.Exit(2 if isinstance(error, WrongUsageError) else 1) from error
        except BrokenPipeError as error:
            # `spliceway flows | head`: not an error of ours; Python must not complain when it flushes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from error


def program() -> str:
    """How this command line was called, for a shell: «spliceway», «.venv/bin/spliceway», «python -m …»."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m spliceway.agent"
    found = shutil.which(called.name)
    return called.name if found and Path(found) == called.absolute() else shlex.quote(sys.argv[0])


def agent_client(socket: Path | None) -> AgentClient:
    """Client of the agent that is meant. Raises ClientError when that can't be told."""
    from spliceway.agent.cli.client import AgentClient
    from spliceway.agent.errors import ClientError, NoAgentError

    if socket is not None:
        return AgentClient(socket)
    if DEFAULT_SOCKET.exists():
        return AgentClient(DEFAULT_SOCKET)
    found = testbed_sockets()
    if len(found) == 1:
        typer.echo(f"spliceway: using the testbed's agent at {found[0]}", err=True)
        return AgentClient(found[0])
    if found:
        listed = ", ".join(map(str, found))
        raise ClientError(f"several testbed nodes have an agent; choose one with --socket: {listed}")
    where = "--socket or SPLICEWAY_SOCKET name another"
    expected = ", ".join(f"{path} (testbed)" for path in _testbed_places()) or DEFAULT_SOCKET
    raise NoAgentError(f"no agent at {expected}: is it running, or still starting? {where}")


def testbed_sockets() -> list[Path]:
    """Admin sockets of the agents on kept testbed nodes."""
    return [socket for socket in _testbed_places() if socket.is_socket()]


def testbed_configs() -> list[Path]:
    """Configurations of the agents on kept testbed nodes."""
    return [config for socket in _testbed_places() if (config := socket.parents[1] / "agent.yaml").is_file()]


def _testbed_places() -> list[Path]:
    """Where the agents of kept testbed nodes have their admin sockets while they run."""
    if not TESTBEDS.is_dir():
        return []
    kept = (run for run in TESTBEDS.iterdir() if (run / "kept").exists())
    return sorted(state / "agent.sock" for run in kept for state in run.glob("*/state"))
