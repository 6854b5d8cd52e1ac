"""Real Envoy as the sidecars of many workloads: one listener for each address and port, with mutual TLS and RBAC.

All addresses are in one network namespace. Clients send from their own address with their own certificate, whose only
name is their service account's (SPIFFE), signed by an authority of the test's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed import netns
from spliceway.policy.model import IPAddress
from support.certificates import Authority
from support.istiofilters import patched
from support.steered import read_reply

Doc = dict[str, Any]
_NUMBERS = itertools.count()
_TYPES = "type.googleapis.com/envoy.extensions."
#: What `meshConfig.pathNormalization` means for the HTTP connection manager (Istio, «Normalization»).
NORMALIZATION: Mapping[str, Doc] = {
    "NONE": {"normalize_path": False},
    "BASE": {"normalize_path": True},
    "MERGE_SLASHES": {"normalize_path": True, "merge_slashes": True},
    "DECODE_AND_MERGE_SLASHES": {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    },
}


class Place(NamedTuple):
    """Where a workload listens."""

    address: IPAddress
    port: int


class IstioBed:
    """The namespace, the authority, and one Envoy at a time."""

    def __init__(self, directory: Path, addresses: Iterable[IPAddress]) -> None:
        self._directory = directory
        self._netns = netns.DIRECTORY / f"istio{os.getpid()}-{next(_NUMBERS)}"
        self._authority = Authority(directory / "ca")
        self._server = self._authority.issue("server", "server", "URI:spiffe://cluster.local/ns/any/sa/server")
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._addresses = sorted(set(addresses), key=lambda one: (one.version, int(one)))

    def __enter__(self) -> IstioBed:
        try:
            netns.create(self._netns, self._set_up)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        netns.delete(self._netns)

    def _set_up(self) -> None:
        lines = ["link set lo up"]
        for one in self._addresses:
            lines.append(f"addr add {one}/{one.max_prefixlen} dev lo" + (" nodad" if one.version == 6 else ""))
        done = subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def serving(
        self,
        chains: Mapping[Place, Sequence[Doc]],
        normalization: str,
        *,
        patches: Mapping[Place, Sequence[Doc]] = MappingProxyType({}),
        tcp: bool = False,
    ) -> Iterator[None]:
        """Run Envoy with these filters; every request that passes them is answered with 200.

        `patches`: of EnvoyFilters, for those that have any.
        """
        listeners = [
            self._listener(place, filters, normalization, patches.get(place, ()), tcp)
            for place, filters in chains.items()
        ]
        config = {
            "admin": {"address": {"pipe": {"path": str(self._directory / "admin.sock")}}},
            "node": {"id": "sidecar", "cluster": "sidecar"},
            "static_resources": {"listeners": listeners},
        }
        file = self._directory / f"envoy-{next(_NUMBERS)}.json"
        file.write_text(json.dumps(config))
        log = file.with_suffix(".log")
        command = [shutil.which("nsenter") or "nsenter", f"--net={self._netns}", str(find_envoy()), "-c", str(file)]
        command += ["--disable-hot-restart", "--concurrency", "1", "--log-path", str(log), "-l", "warning"]
        envoy = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            wanted = {place.port for place in chains}
            for _ in range(600):
                assert envoy.poll() is None, log.read_text()[-3000:]
                if wanted <= netns.call(self._netns, netns.listening_ports):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"Envoy does not listen:\n{log.read_text()[-3000:]}")
            yield
        finally:
            envoy.terminate()
            envoy.wait()

    def ask(self, source: IPAddress, place: Place, principal: str, raw: bytes, *, head: bool = False) -> int:
        """Status of one request on a connection of its own; 0: the connection was closed instead."""
        context = self._context(principal)

        def connect() -> socket.socket:
            found = socket.socket(socket.AF_INET if source.version == 4 else socket.AF_INET6)
            found.settimeout(10)
            found.bind((str(source), 0))
            found.connect((str(place.address), place.port))
            return found

        with netns.call(self._netns, connect) as plain:
            try:
                with context.wrap_socket(plain) as connection:
                    connection.sendall(raw)
                    return read_reply(connection, head).status
            except (ssl.SSLError, ConnectionError, EOFError, AssertionError, IndexError, ValueError):
                return 0

    def _context(self, principal: str) -> ssl.SSLContext:
        found = self._contexts.get(principal)
        if found is None:
            number = len(self._contexts)
            certificate, key = self._authority.issue(f"client{number}", "", f"URI:spiffe://{principal}")
            found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            found.check_hostname = False
            found.load_verify_locations(self._authority.path)
            found.load_cert_chain(certificate, key)
            self._contexts[principal] = found
        return found

    def _listener(
        self, place: Place, filters: Sequence[Doc], normalization: str, patches: Sequence[Doc], tcp: bool
    ) -> Doc:
        router = {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{_TYPES}filters.http.router.v3.Router"},
        }
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        hosts = [{"name": "any", "domains": ["*"], "routes": [route]}]
        manager = {
            "@type": f"{_TYPES}filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "inbound",
            "route_config": {"virtual_hosts": hosts},
            "http_filters": [*(() if tcp else filters), router],
            **NORMALIZATION[normalization],
        }
        certificate, key = self._server
        context = {
            "tls_certificates": [
                {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            ],
            "validation_context": {"trusted_ca": {"filename": str(self._authority.path)}},
        }
        tls = {
            "@type": f"{_TYPES}transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": context,
            "require_client_certificate": True,
        }
        http = {
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": patched(manager, patches, place.port),
        }
        chain = {
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
            "filters": [*(filters if tcp else ()), http],
        }
        return {
            "name": f"{place.address} {place.port}",
            "address": {"socket_address": {"address": str(place.address), "port_value": place.port}},
            "filter_chains": [chain],
        }
