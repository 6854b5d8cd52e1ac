"""Options whose value must be one of something: a wrong one is told at once, with what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spliceway.agent.cli.client import AgentClient

_STAGES = ("desired", "sent", "acked")
_LOG_LEVELS = ("debug", "info", "warning", "error")
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

    The agent lists the pods of its node; those of other nodes are known by the flows that it keeps. One that is in
    neither can still come when flows are followed, if it is named in full. Raises WrongUsageError.
    """
    from spliceway.agent.errors import WrongUsageError

    known = {item["name"] for item in client.get("endpoints")}
    found = sorted(key for key in known if name in (key, key.partition("/")[2]))
    if not found:
        seen = {
            end["pod"]
            for flow in client.lines("flows", last=_ALL)
            for end in (flow["source"], flow["destination"])
            if end["pod"]
        }
        found = sorted(key for key in seen if name in (key, key.partition("/")[2]))
        known |= seen
    if len(found) == 1:
        return str(found[0])
    if found:
        raise WrongUsageError(f"pod {name}: several namespaces have one: {', '.join(found)}")
    if follow and "/" in name:
        typer.echo(f"spliceway: pod {name} is not on this node and in no flow yet; waiting for one", err=True)
        return name
    raise WrongUsageError(f"pod {name}: there are {', '.join(sorted(known)) or 'none'}")
