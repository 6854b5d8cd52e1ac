"""Commands that ask a running agent and print what it says."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from spliceway.agent.cli import options
from spliceway.agent.cli.audits import By
from spliceway.agent.cli.common import Output, OutputOption, SocketOption, agent_client, program

if TYPE_CHECKING:
    from spliceway.agent.cli.client import AgentClient

#: How long to wait before the agent is asked again, in seconds.
_STATUS_PAUSE = 0.05


def status(
    wait: Annotated[
        float,
        typer.Option(min=0, help="Wait so many seconds for an agent with nothing wrong that is done with its start."),
    ] = 0.0,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show what is in force, what is loaded, and what is wrong. Exit status 1 when something is."""
    from spliceway.agent.cli.render import emit_json, table
    from spliceway.agent.cli.summary import problems, summary, warnings

    deadline = time.monotonic() + wait
    client = None
    while True:
        client, found = _status(client, socket, deadline)
        wrong = problems(found)
        unsettled = not found["splice"]["decided"] or found["policy"].get("servicePending", False)
        if not (wrong or unsettled) or time.monotonic() >= deadline:
            break
        time.sleep(_STATUS_PAUSE)
    if output is Output.JSON:
        emit_json({**found, "problems": wrong})
    else:
        table((), summary(found))
        for problem in wrong:
            typer.echo(f"! {problem}")
        for warning in warnings(found):
            typer.echo(f"(warning) {warning}")
    if wrong:
        raise typer.Exit(1)


def _status(client: AgentClient | None, socket: Path | None, deadline: float) -> tuple[AgentClient, dict[str, Any]]:
    """What the agent says, as soon as one answers. Raises ClientError, for none that answers by the deadline too.

    `client`: of the agent that was chosen before, so that the choice is told once.
    """
    from spliceway.agent.errors import NoAgentError

    while True:
        try:
            client = client or agent_client(socket)
            return client, _of_agent(client.get("status"))
        except NoAgentError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_STATUS_PAUSE)


def _of_agent(status: dict[str, Any]) -> dict[str, Any]:
    """`status`, if an agent says it: `xds serve` has one of its own under the same path. Raises ClientError."""
    if "policy" not in status:
        from spliceway.agent.errors import ClientError

        raise ClientError(f"there is no agent behind that socket, but `xds serve`: try `{program()} xds status`")
    return status


def endpoints(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List the pods of this node."""
    from spliceway.agent.cli.istiotext import istio_text
    from spliceway.agent.cli.render import emit, labels_text
    from spliceway.agent.cli.splices import splice_wish
    from spliceway.agent.cli.summary import unenforced

    client = agent_client(socket)
    found = client.get("endpoints")
    if output is Output.TABLE and (why := unenforced(_of_agent(client.get("status")))):
        typer.echo(f"{why}; INGRESS and EGRESS are what would be", err=True)
    emit(
        found,
        output,
        (
            *("ENDPOINT", "IDENTITY", "POLICY", "INGRESS", "EGRESS", "READY", "SPLICE", "ISTIO"),
            *("INTERFACE", "ADDRESSES", "LABELS"),
        ),
        (
            (
                item["name"],
                item["identity"],
                item["policyId"],
                "enforced" if item["ingress"] else "open",
                "enforced" if item["egress"] else "open",
                item["ready"],
                splice_wish(item),
                istio_text(item),
                item["interface"],
                item["addresses"],
                labels_text(item["labels"]),
            )
            for item in found
        ),
    )


def identities(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List identities, their labels and the prefixes that have them."""
    from spliceway.agent.cli.render import emit, labels_text

    found = agent_client(socket).get("identities")
    rows = ((item["id"], labels_text(item["labels"]), item["prefixes"]) for item in found)
    emit(found, output, ("ID", "LABELS", "PREFIXES"), rows)


def policy(
    endpoint: Annotated[
        str | None, typer.Argument(metavar="[[NAMESPACE/]POD]", help="One endpoint; all without it.")
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show the policy in force: for each endpoint, direction, peers and port the verdict and its rule.

    The state says whether the proxy has taken over the HTTP rules as they are shown.
    """
    from spliceway.agent.cli.render import emit
    from spliceway.agent.cli.ruletext import policy_rows
    from spliceway.agent.cli.summary import not_applied, refusals

    client = agent_client(socket)
    if endpoint and "/" not in endpoint:
        endpoint = options.local_pod(client, endpoint)
    found = client.get("policy", endpoint=endpoint)
    columns = ("ENDPOINTS", "DIRECTION", "PEERS", "PROTOCOL", "PORTS", "VERDICT", "STATE", "HTTP", "RULE")
    emit(found, output, columns, policy_rows(found))
    status = client.get("status") if output is Output.TABLE else None
    for text in (*refusals(status), *not_applied(status)) if status else ():
        typer.echo(f"! {text}", err=True)


def audit(
    reset: Annotated[bool, typer.Option("--reset", help="Begin to count anew, after showing what there is.")] = False,
    by: Annotated[
        By | None, typer.Option("--by", help="Sum up by policies, pairs of workloads, or servers' ports.")
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show what would be denied without audit mode, summed by rule, pair and port: nothing of it was denied."""
    from spliceway.agent.cli.audits import COLUMNS, audit_groups, audit_notes, audit_rows, group_columns
    from spliceway.agent.cli.render import emit

    client = agent_client(socket)
    found = client.delete("audit") if reset else client.get("audit")
    if by is None:
        emit(found, output, COLUMNS, audit_rows(found))
    else:
        emit(found, output, group_columns(by), audit_groups(found, by))
    for note in audit_notes(found) if output is Output.TABLE else ():
        typer.echo(note, err=True)


def bpf_policy(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List the policy rows in the kernel."""
    _list("bpf/policy", output, socket)


def bpf_ipcache(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List the kernel's prefixes and their identities."""
    _list("bpf/ipcache", output, socket)


def bpf_ct(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List tracked connections, each in the perspective of the endpoint's own end."""
    from spliceway.agent.cli.render import address, emit

    found = agent_client(socket).get("bpf/ct")
    rows = (
        (
            item["endpointPod"] or "-",
            address(item["endpoint"], item["endpointPort"]),
            "->" if item["endpointIsClient"] else "<-",
            address(item["peer"], item["peerPort"]),
            item["protocol"],
            item["leg"],
            item["verdict"],
            item["reason"],
            item["packets"],
            item["bytes"],
            item["idleSeconds"],
            item["ruleName"],
        )
        for item in found
    )
    columns = ("POD", "ADDRESS", "", "PEER", "PROTO", "LEG", "VERDICT", "REASON", "PACKETS", "BYTES", "IDLE S", "RULE")
    emit(found, output, columns, rows)


def bpf_reasons(output: OutputOption = Output.TABLE, socket: SocketOption = None) -> None:
    """List the verdict counters."""
    _list("bpf/reasons", output, socket)


def flows(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new flows.")] = False,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=0, help="How many of the latest. [default: 100, 0 with --follow]")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="allow, redirect, deny or audit.", callback=options.flow_value)
    ] = None,
    reason: Annotated[str | None, typer.Option(help="For example default-deny.", callback=options.flow_value)] = None,
    hook: Annotated[
        str | None, typer.Option(help="Where it was judged, for example to-pod or proxy.", callback=options.flow_value)
    ] = None,
    pod: Annotated[
        str | None, typer.Option(metavar="[NAMESPACE/]POD", help="A pod of the cluster at either end.")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(metavar="[NAMESPACE/]SERVICE", help="What was dialled, or whose backend."),
    ] = None,
    output: OutputOption = Output.TABLE,
    socket: SocketOption = None,
) -> None:
    """Show verdicts of kernel and proxy in one stream; with -o json one object a line."""
    from spliceway.agent.cli.ruletext import flow_line

    client = agent_client(socket)
    lines = client.lines(
        "flows",
        follow="1" if follow else None,
        last=None if last is None else str(last),
        verdict=verdict,
        reason=reason,
        hook=hook,
        pod=None if pod is None else options.flow_pod(client, pod, follow=follow),
        service=None if service is None else options.flow_service(client, service, follow=follow),
    )
    try:
        for item in lines:
            text = msgspec.json.encode(item).decode() if output is Output.JSON else flow_line(item)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def splice(
    mode: Annotated[str, typer.Argument(metavar="auto|force|off", callback=options.splice_mode)],
    socket: SocketOption = None,
) -> None:
    """Splice new connections where that is proved safe (auto), in any case (force), or not (off), until a restart."""
    from spliceway.agent.cli.splices import splice_notes

    found = agent_client(socket).put("splice", {"mode": mode})
    after = "" if found["mode"] == found["configured"] else f" (after a restart of the agent: {found['configured']})"
    typer.echo(f"splice: {found['mode']} for new connections, those that are open stay as they are{after}")
    for note in splice_notes(found):
        typer.echo(note)


def _list(target: str, output: Output, socket: Any) -> None:
    """Print a list of objects that all have the same fields."""
    from spliceway.agent.cli.render import emit

    found = agent_client(socket).get(target)
    columns = list(found[0]) if found else []
    emit(found, output, [column.upper() for column in columns], ([item[name] for name in columns] for item in found))
