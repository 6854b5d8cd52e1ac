"""`spliceway xds serve`: a control plane by itself, which serves Envoy's resources from files."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliceway.agent.cli.options import LogLevelOption

if TYPE_CHECKING:
    from spliceway.agent.staticserver import Admin
    from spliceway.xds.server.listen import TlsSettings


def serve(
    static: Annotated[
        Path,
        typer.Option(
            "--static",
            exists=True,
            file_okay=False,
            help="Directory of .yaml, .yml and .json files: those in it are for every node, those in nodes/NODE_ID for "
            "that node as well, and win.",
        ),
    ],
    socket: Annotated[Path | None, typer.Option("--socket", help="Serve xDS on this Unix socket (mode 0600).")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Serve xDS over TCP, with TLS or --insecure.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain TCP: whoever can connect reads everything, private keys too.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option("--tls-cert", dir_okay=False, help="The server's certificate chain (PEM).")
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", dir_okay=False, help="Its private key (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--tls-client-ca", dir_okay=False, help="Who signs clients' certificates (PEM).")
    ] = None,
    match_node: Annotated[
        bool,
        typer.Option(
            "--tls-match-node/--tls-any-node",
            help="Whether a client's node id must be a name in its certificate (CN, DNS name, last part of a URI).",
        ),
    ] = True,
    admin: Annotated[
        str | None,
        typer.Option(
            "--admin",
            metavar="PATH or HOST:PORT",
            help="The admin API, on a Unix socket (mode 0600) or loopback. What it changes lives in memory and wins "
            "over the files of the same nodes, until the process ends or DELETE /v1/changes.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Refuse what breaks the rules of Envoy's API, and sets with dangling references. gRPC's own clients "
            "are content with less, and a test of a client may want what is wrong.",
        ),
    ] = True,
    log_level: LogLevelOption = "info",
) -> None:
    """Serve Envoy's resources from files to any xDS client, and again whenever a file changes.

    What is refused (a file that can't be read, a set with dangling references) is logged with file, field and reason,
    and what was served before stays.
    """
    tls = _tls(certificate, key, client_ca, match_node)
    if socket is None and listen is None:
        raise typer.BadParameter("give --socket, --listen, or both")
    if listen is None and (insecure or tls):
        raise typer.BadParameter("--insecure and --tls-… are for --listen")
    if listen is not None and insecure == (tls is not None):
        raise typer.BadParameter("--listen needs either --tls-cert, --tls-key and --tls-client-ca, or --insecure")

    from spliceway.agent.staticserver import StaticSettings, run_static
    from spliceway.xds.server.listen import TcpSettings

    tcp = None
    if listen is not None:
        host, port = _address(listen, "--listen")
        tcp = TcpSettings(host=host, port=port, tls=tls, plaintext=insecure)
    settings = StaticSettings(directory=static, socket=socket, tcp=tcp, admin=_admin(admin), check=check)
    run_static(settings, log_level=log_level)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None, match_node: bool) -> TlsSettings | None:
    given = {"--tls-cert": certificate, "--tls-key": key, "--tls-client-ca": client_ca}
    if not any(given.values()):
        return None
    if absent := [name for name, value in given.items() if value is None]:
        raise typer.BadParameter(f"{', '.join(absent)} is missing: clients must show a certificate")
    from spliceway.xds.server.listen import TlsSettings

    assert certificate is not None
    assert key is not None
    assert client_ca is not None
    called = ("--tls-cert", "--tls-key", "--tls-client-ca")
    return TlsSettings(certificate=certificate, key=key, client_ca=client_ca, match_node=match_node, called=called)


def _admin(text: str | None) -> Admin | None:
    """A path has a slash or no port."""
    if text is None:
        return None
    if "/" in text or not text.rpartition(":")[2].isdigit():
        return Path(text)
    host, port = _address(text, "--admin")
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise typer.BadParameter(f"--admin {text}: it has no authentication, so only a Unix socket or loopback will do")
    return host, port


def _address(text: str, option: str) -> tuple[str, int]:
    """Split HOST:PORT or [V6]:PORT; port 0 is any that is free."""
    found = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:/\s]+)):(?P<port>\d{1,5})", text)
    if found is None or int(found["port"]) > 65535:
        raise typer.BadParameter(f"{option} {text}: is not HOST:PORT")
    host = found["v6"] or found["host"]
    return ("127.0.0.1" if host == "localhost" else host), int(found["port"])
