"""`spliceway proxy-pod`: what a pod of the proxy's DaemonSet runs."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from spliceway.agent.cli.common import ConfigOption


def proxy_pod(
    config: ConfigOption,
    own: Annotated[
        Path,
        typer.Option(
            "--own",
            metavar="DIRECTORY",
            exists=True,
            file_okay=False,
            writable=True,
            help="Of this pod alone; the file `ready` is there.",
        ),
    ] = Path("/tmp"),
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds that an Envoy's connections may go on after SIGTERM.")
    ] = 30.0,
) -> None:
    """Run the proxy in a pod of its own, for an agent with proxy.managed: false.

    It waits until that agent has let it into the cgroup of cgroups.proxy, takes over from a proxy that runs, and starts
    it again when it ends; where another pod's proxy serves, it stands by. SIGTERM lets connections end first.
    """
    from spliceway.agent.config import load_config
    from spliceway.agent.proxypod.plan import make, write

    plan = write(asyncio.run(make(load_config(config), own, drain)))
    # What read the configuration is not needed any more, and stays in no memory.
    command = [sys.executable, "-P", "-m", "spliceway.agent.proxypod.keeper", str(plan)]
    os.execv(sys.executable, command)
