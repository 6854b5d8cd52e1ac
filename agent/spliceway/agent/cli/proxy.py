"""`spliceway proxy`: the embedded proxy. The agent starts it; by hand it is started for tests, or under a supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def proxy(
    config: Annotated[
        Path,
        typer.Option("--config", metavar="FILE", help="Its settings (JSON); the agent writes <stateDir>/proxy.json."),
    ],
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: logLevel]"),
    ] = None,
) -> None:
    """Run the embedded proxy until SIGTERM, which lets connections end first (a second one does not wait).

    Where one runs already with the same sockets and state file, this one takes over from it: no connection is lost.
    """
    from spliceway.proxy.__main__ import run

    run(config, log_level)
