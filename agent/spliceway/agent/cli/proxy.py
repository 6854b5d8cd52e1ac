"""`spliceway proxy`: the embedded proxy. The agent starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spliceway.agent.cli import options


def _level(value: str | None) -> str | None:
    return None if value is None else options.log_level(value)


def proxy(
    config: Annotated[
        Path,
        typer.Option("--config", metavar="FILE", help="Its settings in JSON: the agent writes <stateDir>/proxy.json."),
    ],
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", help="debug, info, warning or error. [default: logLevel]", callback=_level),
    ] = None,
) -> None:
    """Run the embedded proxy until SIGTERM, which lets connections end first (a second one does not wait).

    Where one runs already with the same sockets and state file, this one takes over from it: no connection is lost.

    By hand it must be started in the cgroup of cgroups.proxy (echo $$ > …/cgroup.procs before it): the kernel takes
    nobody else for the proxy, and drops what would be steered to it.
    """
    from spliceway.proxy.__main__ import run

    run(config, log_level)
