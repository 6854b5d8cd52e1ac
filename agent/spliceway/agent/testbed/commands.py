"""`spliceway testbed`: virtual nodes from manifests, for trying policies with real traffic."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import typer

from spliceway.agent.cli.common import WideGroup, program
from spliceway.agent.cli.summary import refusals
from spliceway.agent.config import parse_config
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.configtext import read_mapping
from spliceway.agent.errors import ConfigError
from spliceway.agent.testbed import manifests, processes, runs
from spliceway.agent.testbed.agentprocess import config_text, merged, start_agent, takes_long
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.hints import hints, places
from spliceway.agent.testbed.node import NodeInfo, Pod, find_pod
from spliceway.agent.testbed.plan import make_plan
from spliceway.agent.testbed.profiles import Chain, KubeProxy, PodLink, Profile, ProfileName, Tunnel, Uplink
from spliceway.agent.testbed.testbed import Record, Testbed, load_record

app = typer.Typer(
    name="testbed",
    cls=WideGroup,
    help="Virtual nodes from manifests, to try policies with real traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people or for programs.")]
#: What the file of --config need not say.
_OF_EVERY_NODE = {"source": {"directory": "/"}, "node": {"name": "node1"}, "cgroups": {"pods": "/"}}
RunId = Annotated[str, typer.Option("--run", help="Which testbed, when several are up.")]


class RunStatus(msgspec.Struct, frozen=True, rename="camel"):
    """One testbed in `status`. `state`: kept, running (its owner lives) or starting; `age_seconds` since it began."""

    run: str
    state: str
    age_seconds: int
    nodes: tuple[str, ...]
    pods: tuple[PodStatus, ...]


class PodStatus(msgspec.Struct, frozen=True):
    """One pod, or a host outside the cluster when `node` is empty."""

    name: str
    node: str
    addresses: tuple[str, ...]
    interface: str
    netns: str


@app.command("up")
def up(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", exists=True, help="Manifests, or directories of them.")
    ],
    policies: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="A directory or file of policies and what they refer to; can be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Fields of the agent's configuration that shall differ."),
    ] = None,
    proxy: Annotated[
        ProxyKind | None,
        typer.Option(help="The nodes' proxy, embedded unless FILE of --config says."),
    ] = None,
    agent: Annotated[bool, typer.Option("--agent/--no-agent", help="Whether to run the agent on the nodes.")] = True,
    profile: Annotated[ProfileName, typer.Option(help="What the nodes are built like.")] = "l3",
    kube_proxy: Annotated[
        KubeProxy, typer.Option(help="Whose rules translate the manifests' Services on the nodes.")
    ] = "none",
    drop: Annotated[
        list[str] | None, typer.Option(help="A chain of the nodes whose policy is DROP; can be repeated.")
    ] = None,
    br_netfilter: Annotated[
        bool, typer.Option("--br-netfilter/--no-br-netfilter", help="Whether bridges hand frames to iptables.")
    ] = True,
    uplink: Annotated[Uplink, typer.Option(help="What has the nodes' addresses.")] = "plain",
    tunnel: Annotated[Tunnel, typer.Option(help="What leads to pods of other nodes.")] = "none",
    pod_link: Annotated[PodLink, typer.Option(help="What joins pods to their node.")] = "veth",
    big_tcp: Annotated[bool, typer.Option("--big-tcp", help="Whether pods' devices carry packets of 192 KiB.")] = False,
) -> None:
    """Build virtual nodes from manifests and leave them running.

    Namespaces, Nodes and Pods are built; policies of all kinds, Services, EndpointSlices, Secrets and CiliumCIDRGroups
    among them are handed to the agents, as those of --policies are.

    Exit status 1 when a policy or manifest is refused: what is refused is told, and the testbed stays up without it.
    """
    overrides = _overrides(config, proxy) if config else {"proxy": {"kind": proxy}} if proxy is not None else {}
    plan = make_plan(manifests.load(files))
    built = Profile(
        profile,
        kube_proxy,
        cast("tuple[Chain, ...]", tuple(drop or ())),
        br_netfilter,
        uplink=uplink,
        tunnel=tunnel,
        pod_link=pod_link,
        big_tcp=big_tcp,
    )
    testbed = Testbed.up(files, policies=policies or (), profile=built)
    refused: dict[str, None] = {}  # in order, each once: all nodes read the same policies
    try:
        for node in testbed.nodes if agent else ():
            typer.echo(f"starting the agent on {node.info.name}{takes_long()}", err=True)
            refused |= dict.fromkeys(refusals(start_agent(node, overrides).client.get("status")))
        testbed.keep()
    except BaseException:
        testbed.down()
        raise
    testbed.detach()
    typer.echo(_table([_status(testbed.run_id)]))
    typer.echo("")
    for sentence in places([node.info for node in testbed.nodes]):
        typer.echo(sentence)
    several = len(runs.existing()) > 1
    for line in hints(program(), testbed.run_id if several else "", [*plan.pods, *plan.hosts]):
        typer.echo(line)
    for sentence in refused:
        typer.echo(f"! {sentence}", err=True)
    if refused:
        typer.echo(f"spliceway: {len(refused)} refused; the testbed is up without what is refused", err=True)
        raise typer.Exit(1)


def _overrides(file: Path, proxy: ProxyKind | None) -> dict[str, Any]:
    """What a file says of the agent's configuration, with the proxy of the command line. Raises ConfigError."""
    try:
        found = read_mapping(file.read_text(), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), "", f"is not UTF-8 (byte {error.start})") from error
    overrides = merged(found, {"proxy": {"kind": proxy}} if proxy is not None else {})
    # The agent would say the same of the node's file, which the user has never seen.
    parse_config(config_text(merged(_OF_EVERY_NODE, overrides)), str(file))
    return overrides


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    pod: Annotated[str, typer.Argument(metavar="POD", help="[NAMESPACE/]NAME of a pod or host, or node/NAME.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="Program and arguments.")],
    run: RunId = "",
) -> None:
    """Run a program in a pod, with this terminal. Its exit status is ours."""
    run, command = _run_after_pod(run, command)
    if not command:
        raise typer.BadParameter("no program given", param_hint="CMD")
    record = load_record(_chosen(run))
    if pod.startswith("node/"):
        node = _node(record, pod.removeprefix("node/"))
        processes.replace(node.netns, node.cgroups.agent, command, os.environ)
    else:
        target = find_pod(pod, {each.key: each for each in (*record.pods, *record.hosts)})
        terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
        processes.replace(target.netns, target.cgroup, command, target.environment(terminal))


@app.command("status")
def status(output: Output = "table") -> None:
    """List the testbeds that are up, their nodes and pods."""
    found = [_status(run_id) for run_id in runs.existing()]
    if output == "json":
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        typer.echo(_table(found) if found else "No testbed is up.")


@app.command("down")
def down(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]…", help="Which; not needed when one is up.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are kept.")] = False,
    run: RunId = "",
) -> None:
    """Take kept testbeds down, and sweep what dead ones left."""
    if everything:
        chosen = [run_id for run_id in runs.existing() if runs.is_kept(run_id)]
    else:
        chosen = [*(run_ids or ()), *([run] if run else ())] or [_chosen("", kept=True)]
    for run_id in chosen:
        if run_id not in runs.existing():
            raise TestbedError(f"{run_id}: no such testbed; `spliceway testbed status` lists them")
        if not runs.is_kept(run_id) and not runs.is_dead(run_id):
            raise TestbedError(f"{run_id}: belongs to a process that is still running; end that instead")
        runs.tear_down(run_id)
        typer.echo(f"{run_id} is down.")
    runs.sweep()


def _run_after_pod(run: str, words: list[str]) -> tuple[str, list[str]]:
    """Take a `--run ID` that was written after the pod, and the «--», from what stands before the program."""
    while words and words[0] != "--" and (words[0] == "--run" or words[0].startswith("--run=")):
        given, words = (words[0][6:], words[1:]) if "=" in words[0] else (words[1] if words[1:] else "", words[2:])
        if given in ("", "--") or run not in ("", given):
            raise typer.BadParameter("must name one testbed", param_hint="--run")
        run = given
    return run, words[1:] if words[:1] == ["--"] else words


def _chosen(run: str, *, kept: bool = False) -> str:
    """The run that is meant: the given one, else the only one that is kept, else the only one that is up."""
    if run:
        return run
    found = [run_id for run_id in runs.existing() if runs.is_kept(run_id)]
    if not found and not kept:
        found = [run_id for run_id in runs.existing() if not runs.is_dead(run_id)]
    if not found:
        raise TestbedError("no testbed is up; `spliceway testbed up FILE…` makes one")
    if len(found) > 1:
        raise TestbedError(f"several testbeds are up, say which: {', '.join(found)}")
    return found[0]


def _node(record: Record, name: str) -> NodeInfo:
    for node in record.nodes:
        if node.name == name:
            return node
    raise TestbedError(f"node {name}: there are {', '.join(node.name for node in record.nodes)}")


def _status(run_id: str) -> RunStatus:
    age = int(time.time() - (runs.begun(run_id) or time.time()))
    try:
        record = load_record(run_id)
    except TestbedError:  # it is being built, or its owner died on the way
        return RunStatus(run_id, "dead" if runs.is_dead(run_id) else "starting", age, (), ())
    state = "kept" if runs.is_kept(run_id) else "dead" if runs.is_dead(run_id) else "running"
    pods = tuple(_pod_status(pod) for pod in (*record.pods, *record.hosts))
    return RunStatus(run_id, state, age, tuple(node.name for node in record.nodes), pods)


def _pod_status(pod: Pod) -> PodStatus:
    return PodStatus(pod.key, pod.node, pod.ips, pod.interface, str(pod.netns))


def _table(found: list[RunStatus]) -> str:
    rows = [("RUN", "STATE", "NODE", "POD", "ADDRESSES", "INTERFACE")]
    for each in found:
        if not each.pods:
            rows.append((each.run, each.state, ",".join(each.nodes) or "-", "-", "-", "-"))
        for pod in each.pods:
            rows.append(
                (each.run, each.state, pod.node or "(outside)", pod.name, ",".join(pod.addresses), pod.interface or "-")
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
