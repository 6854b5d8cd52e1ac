"""The command tree. Sub-commands that need heavy modules import them when they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from spliceway.agent.cli import (
    cleanup,
    evaluate,
    istio,
    killswitch,
    lazy,
    preflight,
    proxy,
    proxypod,
    services,
    show,
    sock,
    source,
    version,
    xds,
    xdsserve,
)
from spliceway.agent.cli.common import ConfigOption, Group
from spliceway.agent.cli.options import LogLevelOption

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(version.root)


@app.command("agent")
def agent(
    config: ConfigOption,
    cleanup: Annotated[
        bool,
        typer.Option("--cleanup", help="On SIGTERM, remove programs, rules and the proxy instead of leaving them."),
    ] = False,
    log_level: LogLevelOption = "info",
) -> None:
    """Run the agent on this node until SIGTERM. What it put into the kernel stays in force after it."""
    from spliceway.agent import memory

    memory.import_less()  # first
    from spliceway.agent.config import load_config
    from spliceway.agent.errors import ConfigError
    from spliceway.agent.podcgroup import located
    from spliceway.agent.run import run_agent

    found = located(load_config(config))
    if (directory := found.source.directory) and not directory.is_dir():
        raise ConfigError(str(config), "source.directory", f"{directory} is not a directory")
    run_agent(found, log_level=log_level, cleanup=cleanup)


app.command("cleanup")(cleanup.cleanup)
app.command("kill-switch")(killswitch.kill_switch)
app.command("preflight")(preflight.preflight)
app.command("proxy")(proxy.proxy)
app.command("proxy-pod")(proxypod.proxy_pod)
app.command("status")(show.status)
app.command("flows")(show.flows)
app.command("splice")(show.splice)
app.command("version")(version.version)
_Command = Callable[..., None]
_GROUPS: tuple[tuple[str, str, dict[str, _Command]], ...] = (
    ("endpoint", "Pods of this node.", {"list": show.endpoints}),
    ("identity", "Numbers for sets of labels.", {"list": show.identities}),
    ("service", "Where connections to Services lead.", {"list": services.service_list}),
    (
        "policy",
        "What is in force, and checking files.",
        {"get": show.policy, "audit": show.audit, "validate": source.validate},
    ),
    ("sock", "Redirected connections and their splices.", {"list": sock.socks, "summary": sock.summary}),
    (
        "xds",
        "What the proxy is served and what it answered.",
        {"status": xds.status, "dump": xds.dump, "diff": xds.diff, "watch": xds.watch, "serve": xdsserve.serve},
    ),
)
for _name, _help, _commands in _GROUPS:
    _group = typer.Typer(cls=Group, help=_help, no_args_is_help=True)
    for _command, _function in _commands.items():
        _group.command(_command)(_function)
    if _name == "policy":
        _group.command("evaluate", cls=evaluate.Spread)(evaluate.evaluate)
        _group.add_typer(istio.app, name="istio")
    app.add_typer(_group, name=_name)

_bpf = typer.Typer(cls=Group, help="Kernel maps as they are.", no_args_is_help=True)
for _name, _help, _function in (
    ("policy", "Policy rows.", show.bpf_policy),
    ("ipcache", "Prefixes and their identities.", show.bpf_ipcache),
    ("ct", "Connection tracking.", show.bpf_ct),
    ("reasons", "Verdict counters.", show.bpf_reasons),
    ("lb", "Services for pods' sockets.", services.lb_list),
):
    _group = typer.Typer(cls=Group, help=_help, no_args_is_help=True)
    _group.command("list")(_function)
    _bpf.add_typer(_group, name=_name)
app.add_typer(_bpf, name="bpf")

lazy.add(app, "testbed", "spliceway.agent.testbed.commands", "Virtual nodes to try policies on, with real traffic.")
lazy.add(app, "demo", "spliceway.agent.demo.commands", "The whole product on one virtual node, as a table.")
lazy.add(app, "bench", "spliceway.agent.bench.commands", "Compare data paths on a virtual node.")
