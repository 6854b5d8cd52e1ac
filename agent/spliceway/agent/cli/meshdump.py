"""`spliceway xds dump --sidecar/--address/--istiod`: what Istio's side has, beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import typer

from spliceway.agent import boundedget
from spliceway.agent.cli import options
from spliceway.agent.cli.common import FullOutput, agent_client
from spliceway.agent.errors import ClientError, NoAgentError, WrongUsageError
from spliceway.agent.printable import printable
from spliceway.xds.debug.meshview import Seen, of_istiod, of_sidecar

Json = dict[str, Any]

COLUMNS = ("SOURCE", "NODE", "TYPE", "NAME", "STATE", "VERSION", "WHY")
_DUMP, _SYNCZ = "/config_dump?include_eds", "/debug/syncz"
#: Where istiod has its debug interface in plain HTTP.
_PORT = 15014


def dump(
    socket: Path | None,
    output: FullOutput,
    *,
    pod: str | None,
    address: str | None,
    istiod: str | None,
    narrowed: dict[str, str | None],
) -> None:
    """Print them. `narrowed`: `node`, `stage` (of ours), `type` and `name` (of all). Raises one of OWN_ERRORS."""
    from spliceway.agent.cli.render import emit_full

    if pod is not None and address is not None:
        raise WrongUsageError("--sidecar and --address both name a sidecar: choose one")
    theirs: list[Seen] = []
    if pod is not None:
        client = agent_client(socket)
        found = client.get("xds/sidecar", pod=options.local_pod(client, pod))
        theirs += msgspec.convert(found, list[Seen])
    if address is not None:
        theirs += of_sidecar(_asked(address, 15000, _DUMP), address)
    if istiod is not None:
        theirs += of_istiod(_asked(istiod, _PORT, _SYNCZ))
    rows = [*_ours(socket, narrowed, needed=pod is not None), *msgspec.to_builtins(_chosen(theirs, narrowed))]
    emit_full(rows, output, COLUMNS, _rows(rows))


def loopback(text: str, port: int) -> tuple[str, int]:
    """Host and port of an address or URL of this machine. Raises ClientError for any other."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host = "127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname or "")
        # Neither has authentication nor encryption: what comes over the network may be anybody's word.
        fits = parts.scheme == "http" and ip_address(host).is_loopback and parts.path in ("", "/", _SYNCZ)
        found = parts.port or port
    except ValueError:
        fits = False
    if not fits:
        raise ClientError(
            f"{text!r} is not http://127.0.0.1:PORT: only this machine is asked; for a pod elsewhere have "
            "`kubectl port-forward` listen here"
        )
    return host, found


def _asked(text: str, port: int, target: str) -> bytes:
    host, port = loopback(text, port)
    return boundedget.checked(boundedget.get(host, port, target), text)


def _ours(socket: Path | None, narrowed: dict[str, str | None], *, needed: bool) -> list[Json]:
    """What this node's agent serves. Without an agent there is nothing of ours, unless it is `needed`."""
    try:
        found = agent_client(socket).get("xds/resources", contents="0", **narrowed)
    except NoAgentError as error:
        if needed:
            raise
        typer.echo(f"(warning) nothing of ours: {printable(str(error))}", err=True)
        return []
    except ClientError as error:
        if narrowed["name"] is None:
            raise
        typer.echo(f"(warning) nothing of ours: {printable(str(error))}", err=True)
        return []
    return [
        {"source": "spliceway", **{field: str(one.get(field, "")) for field in ("node", "type", "name")}}
        | {"state": one["state"], "version": one["version"], "error": one.get("error", "")}
        for one in found
    ]


def _chosen(theirs: Sequence[Seen], narrowed: dict[str, str | None]) -> list[Seen]:
    kind, name = narrowed["type"], narrowed["name"]
    # Of types istiod has no names.
    return [one for one in theirs if kind in (None, one.type) and (name in (None, one.name) or one.source == "istiod")]


def _rows(rows: Sequence[Json]) -> Iterator[tuple[str, ...]]:
    for one in rows:
        fields = ("source", "node", "type", "name", "state", "version", "error")
        yield tuple(printable(str(one.get(field, ""))) for field in fields)
