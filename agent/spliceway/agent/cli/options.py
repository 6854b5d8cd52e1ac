"""Options whose value must be one of something: a wrong one is told at once, with what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from spliceway.agent.cli.client import AgentClient

_STAGES = ("desired", "sent", "acked")
_LOG_LEVELS = ("debug", "info", "warning", "error")
#: How many names of what there is a message lists.
_SHOWN = 40
#: Asks for more flows than an agent keeps.
_ALL = str(2**31)


def flow_value(option: typer.CallbackParam, value: str | None) -> str | None:
    """Check a filter of `flows` (usage error)."""
    from spliceway.agent.filters import check_value

    if value is not None:
        try:
            check_value(str(option.name), value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return value


def sock_value(option: typer.CallbackParam, value: str | None) -> str | None:
    """Check a filter of `sock list` (usage error)."""
    from spliceway.agent.filters import check_sock_value

    if value is not None:
        try:
            check_sock_value(str(option.name), value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return value


def xds_type(value: str | None) -> str | None:
    """Check a type of xDS resources, «LDS» of `listeners` (usage error)."""
    from spliceway.agent.xdstypes import short_type

    if value is None:
        return None
    try:
        return short_type(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def xds_stage(value: str) -> str:
    """Check `xds dump --stage` (usage error)."""
    if value not in _STAGES:
        raise typer.BadParameter(f"no stage {value!r} (there are {', '.join(_STAGES)})")
    return value


def log_level(value: str) -> str:
    """Check `--log-level`, in capitals or not (usage error)."""
    if value.lower() not in _LOG_LEVELS:
        raise typer.BadParameter(f"no level {value!r} (there are {', '.join(_LOG_LEVELS)})")
    return value.lower()


def namespace(value: str | None) -> str | None:
    """Check the name of a namespace (usage error)."""
    from spliceway.policy.fields import DNS_LABEL

    if value is not None and not DNS_LABEL.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is not a name of a namespace (lower-case letters, digits and «-»)")
    return value


def splice_mode(value: str) -> str:
    """Check the argument of `splice` (usage error)."""
    from spliceway.agent.spliceproof import MODES

    if value not in MODES:
        raise typer.BadParameter(f"no mode {value!r} (there are {', '.join(MODES)})")
    return value


LogLevelOption = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.", callback=log_level)]


def local_pod(client: AgentClient, name: str) -> str:
    """«namespace/name» of the pod of this node that `name`, with or without namespace, means.

    Raises WrongUsageError.
    """
    from spliceway.agent.errors import WrongUsageError

    known = [item["name"] for item in client.get("endpoints")]
    found = [key for key in known if name in (key, key.partition("/")[2])]
    if len(found) == 1:
        return str(found[0])
    if found:
        raise WrongUsageError(f"pod {name}: several namespaces have one: {', '.join(found)}")
    raise WrongUsageError(f"pod {name}: there are {', '.join(known) or 'none'} on this node")


def flow_pod(client: AgentClient, name: str, *, follow: bool) -> str:
    """«namespace/name» of the pod that `name`, with or without namespace, means.

    The agent lists the pods that its source knows, other nodes' too; those that have gone are in the flows that it
    keeps. One that is in neither can come when flows are followed, if it is named in full. Raises WrongUsageError.
    """
    return _of_flows(client, "pod", name, lambda flow: {flow["source"]["pod"], flow["destination"]["pod"]}, follow)


def flow_service(client: AgentClient, name: str, *, follow: bool) -> str:
    """«namespace/name» of the Service that `name`, with or without namespace, means; as `flow_pod`."""
    return _of_flows(client, "service", name, lambda flow: set(flow["services"]), follow)


def _of_flows(
    client: AgentClient, kind: str, name: str, named: Callable[[dict[str, Any]], set[str]], follow: bool
) -> str:
    """`named`: what a flow has of this kind."""
    from spliceway.agent.errors import WrongUsageError

    known: set[str] = set(client.get("names")[f"{kind}s"])
    found = _meant(name, known)
    if not found:
        known |= {one for flow in client.lines("flows", last=_ALL) for one in named(flow) if one}
        found = _meant(name, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise WrongUsageError(f"{kind} {name}: several namespaces have one: {', '.join(found)}")
    if follow and "/" in name:
        typer.echo(f"spliceway: {kind} {name} is not known and in no flow yet; waiting for one", err=True)
        return name
    raise WrongUsageError(f"{kind} {name}: there are {_listed(known)}")


def known_namespace(client: AgentClient, name: str) -> str:
    """Check that the agent's source knows something of this namespace. Raises WrongUsageError."""
    from spliceway.agent.errors import WrongUsageError

    known = client.get("names")["namespaces"]
    if name not in known:
        raise WrongUsageError(f"namespace {name}: there are {_listed(known)}")
    return name


def _meant(name: str, known: Iterable[str]) -> list[str]:
    return sorted(key for key in known if name in (key, key.partition("/")[2]))


def _listed(names: Iterable[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
    return (", ".join(first[:_SHOWN]) or "none") + more
