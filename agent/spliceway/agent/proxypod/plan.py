"""What a proxy's pod starts, made of the agent's configuration by the code of the pod's own image."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from spliceway.agent import preflight
from spliceway.agent.config import Config
from spliceway.agent.embedded import EmbeddedProgram
from spliceway.agent.envoy import EnvoyProgram
from spliceway.agent.errors import AgentError
from spliceway.agent.proxypod import place


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """See `keeper`. `directory`: the one that is shared with the agent; `own`: the pod's, where `ready` goes.

    `command`: the proxy with its arguments. `admin`: its admin socket. `drain`: how long an Envoy's connections may go
    on after SIGTERM, in seconds; the embedded proxy knows that by itself.
    """

    kind: Literal["embedded", "envoy"]
    version: str
    directory: Path
    own: Path
    command: list[str]
    admin: Path
    drain: float


async def make(config: Config, own: Path, drain: float) -> Plan:
    """Find the program, and write what it is started with into `own`.

    Raises AgentError: the agent runs the proxy in this configuration, or a path is too long; and ProxyProcessError.
    """
    if config.proxy.managed:
        raise AgentError("proxy.managed: the agent runs the proxy in this configuration, and no pod does")
    admin = preflight.proxy_admin_socket(config)
    preflight.check_socket_paths(config)
    program: EmbeddedProgram | EnvoyProgram
    if config.proxy.kind == "envoy":
        settings, bootstrap = preflight.envoy_settings(config)
        program = EnvoyProgram(msgspec.structs.replace(settings, state_dir=own, log_file=False), bootstrap)
    else:
        program = EmbeddedProgram(preflight.proxy_settings(config), own)
    await program.find()
    program.prepare()
    return Plan(
        kind=config.proxy.kind,
        version=program.version,
        directory=place.directory(config),
        own=own,
        command=program.command(),
        admin=admin,
        drain=drain,
    )


def write(plan: Plan) -> Path:
    """Into the pod's own directory; the file."""
    file = plan.own / "plan.json"
    file.write_bytes(msgspec.json.encode(plan, enc_hook=str))
    return file
