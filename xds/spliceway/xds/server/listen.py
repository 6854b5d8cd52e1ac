"""Where the control plane listens: a Unix socket of mode 0600, and TCP with mutual TLS."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import msgspec
import structlog

from spliceway.xds.errors import XdsError

_log = structlog.get_logger(__name__)


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files. They are read again when one of them changes; connections that are there go on.

    `match_node`: a client's node id must be one of the names in its certificate: the common name, a DNS name, or the
    last part of a URI (SPIFFE). Without it whoever has a certificate may ask for any node's resources. `called`: how
    whoever configured them calls certificate, key and client CA, for errors.
    """

    certificate: Path
    key: Path
    client_ca: Path
    match_node: bool = True
    called: tuple[str, str, str] = ("certificate", "key", "client CA")


class TcpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An address to listen on. Without `tls` only if `plaintext` says so: everybody who can connect may read.

    `all_services`: the access log and client status, too. The one makes flows of what a client says, the other shows
    every node's resources, so that both are the Unix socket's own otherwise.
    """

    host: str
    port: int
    tls: TlsSettings | None = None
    plaintext: bool = False
    all_services: bool = False


def add_unix(server: grpc.aio.Server, socket: Path) -> None:
    """Listen on the socket, mode 0600.

    Raises:
        XdsError: it can't be made.
    """
    try:
        socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        before = os.umask(0o177)  # the socket is never open to others, not even for a moment
        try:
            server.add_insecure_port(f"unix:{socket}")
        finally:
            os.umask(before)
    except (OSError, RuntimeError) as error:
        raise XdsError(f"{socket}: can't serve xDS there: {error}") from error


def add_tcp(server: grpc.aio.Server, tcp: TcpSettings) -> int:
    """Listen on the address; returns the port, also if 0 was asked for.

    Raises:
        XdsError: neither TLS nor plain text by choice, a file that can't be read, an address that can't be had.
    """
    address = f"[{tcp.host}]:{tcp.port}" if ":" in tcp.host else f"{tcp.host}:{tcp.port}"
    if tcp.tls is None and not tcp.plaintext:
        raise XdsError(f"{address}: xDS over TCP needs TLS (certificate, key and client CA), or plain text by choice")
    try:
        if tcp.tls is not None:
            return int(server.add_secure_port(address, _credentials(tcp.tls)))
        _log.warning("xDS is served in plain text: whoever can connect reads all of it", address=address)
        return int(server.add_insecure_port(address))
    except RuntimeError as error:
        raise XdsError(f"{address}: can't serve xDS there: {error}") from error


async def require_local(context: grpc.aio.ServicerContext[Any, Any], tcp: TcpSettings | None) -> None:
    """End the call with PERMISSION_DENIED unless it came over the Unix socket, or TCP may have all services."""
    if not context.peer().startswith("unix:") and (tcp is None or not tcp.all_services):
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this service is only on the Unix socket")


def names_of(auth: Mapping[str, Iterable[bytes]]) -> frozenset[str]:
    """Names in a client's certificate, from gRPC's auth context; empty without one.

    The common name, DNS names, and URIs: whole, and the last part of their path (not of host, query or fragment).
    """
    names = {_text(value) for key in ("x509_common_name", "peer_dns") for value in auth.get(key, ())}
    uris = {_text(value) for value in auth.get("peer_uri", ())}
    return frozenset(name for name in names | uris | {_last_part(uri) for uri in uris} if name)


def _last_part(uri: str) -> str:
    try:
        return urlsplit(uri).path.rpartition("/")[2]
    except ValueError:  # a host in brackets that is no address
        return ""


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class _Files:
    """The PEM files, and what they were like when they were read."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._paths = (tls.certificate, tls.key, tls.client_ca)
        self._names = tuple(f"{name}: {path}" for name, path in zip(tls.called, self._paths, strict=True))
        self._stamps: tuple[tuple[int, int, int], ...] = ()

    def configuration(self) -> Any:
        """The certificate configuration as it is in the files.

        Raises:
            XdsError: one can't be read, or they are not a certificate, its key and certificates of an authority.
        """
        stamps = self._look()
        certificate, key, client_ca = map(_read, self._names, self._paths)
        self._check()
        self._stamps = stamps  # only now: what can't be read is tried again
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)

    def fresh(self) -> Any:
        """The configuration if a file changed, else None. For gRPC, which asks at each new connection."""
        try:
            return None if self._look() == self._stamps else self.configuration()
        except XdsError as error:
            _log.error("certificates can't be read again, the last ones stay", error=str(error))
            return None

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(map(_stamp, self._names, self._paths))

    def _check(self) -> None:
        """GRPC itself would only say that it can't bind to the address.

        OpenSSL doesn't say which file can't be read: all of them have been tried before.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # which keys are long enough is gRPC's to say
        certificate, key, client_ca = self._names
        try:
            # An encrypted key is an error, and asks nobody.
            context.load_cert_chain(self._tls.certificate, self._tls.key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; also when it went a moment ago
            raise XdsError(f"{certificate} and {key} are not a certificate and its key in PEM: {error}") from error
        try:
            context.load_verify_locations(self._tls.client_ca)
        except (OSError, ValueError) as error:
            raise XdsError(f"{client_ca}: has no certificate in PEM: {error}") from error


def _stamp(name: str, path: Path) -> tuple[int, int, int]:
    with _readable(name):
        stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(name: str, path: Path) -> bytes:
    with _readable(name):
        return path.read_bytes()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """OSError as XdsError that names the file."""
    try:
        yield
    except OSError as error:
        raise XdsError(f"{name}: can't be read: {error.strerror}") from error


def _credentials(tls: TlsSettings) -> Any:
    files = _Files(tls)
    first = files.configuration()
    return grpc.dynamic_ssl_server_credentials(first, files.fresh, require_client_authentication=True)
