"""Other people's xDS clients against a real `spliceway xds serve`: gRPC's own of Python and of Node.js, and mTLS."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from spliceway.xds.protocol.typeurls import CLUSTER
from support.certificates import Authority
from support.grpcclients import TARGET, WhoServer, XdsClient, cluster, command, endpoints, listener, routes
from support.staticserver import COMMAND, StaticServer, until
from support.xdsclient import DeltaStream, SotwStream, dial, names_of

#: CI sets it: there what can't be installed is a failure.
REQUIRED = os.environ.get("SPLICEWAY_REQUIRE_KERNEL") == "1"
LOCK = Path(__file__).parents[1] / "clients" / "grpc-js-xds" / "package-lock.json"


@pytest.fixture(scope="module", params=["python", "node"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client; what it needs is there afterwards."""
    name = str(request.param)
    try:
        command(name)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        if REQUIRED:
            raise
        pytest.skip(f"npm can't install {LOCK.parent.name}: {error}")
    return name


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sw-") as path:
        yield Path(path)


@pytest.fixture
def services() -> Iterator[tuple[WhoServer, WhoServer]]:
    first, second = WhoServer("first"), WhoServer("second")
    yield first, second
    first.stop()
    second.stop()


@pytest.fixture
def server(folder: Path, services: tuple[WhoServer, WhoServer]) -> Iterator[StaticServer]:
    """A control plane that leads to the first service."""
    with StaticServer(folder, "--listen", "127.0.0.1:0", "--insecure") as started:
        started.write("listener.yaml", listener())
        started.write("routes.yaml", routes())
        started.write("cluster.yaml", cluster())
        started.write("endpoints.yaml", endpoints(services[0].port))
        started.until(lambda status: status["nodes"] and status["nodes"][0]["resources"]["LDS"])
        yield started


@pytest.fixture
def client(kind: str, server: StaticServer) -> Iterator[XdsClient]:
    with XdsClient(kind, f"unix:{server.socket}", node="client-1") as started:
        yield started


def types_of(server: StaticServer, node: str = "client-1") -> dict[str, Any]:
    """Short type → its status at the node."""
    streams = [item for item in server.status()["clients"] if item["client"]["node"] == node]
    return {each["type"]: each for stream in streams for each in stream["types"]}


def test_a_client_resolves_and_calls_over_the_unix_socket(kind: str, server: StaticServer, folder: Path) -> None:
    uri = f"unix:{server.socket}"
    with XdsClient(kind, uri, node="client-1", file=folder / "bootstrap.json") as client:
        assert client.tell("call 20") == {"answer": "first"}
        found = until(lambda: types_of(server), lambda types: all(t["state"] == "SYNCED" for t in types.values()))
        assert {short: item["names"] for short, item in found.items()} == {
            "LDS": [TARGET],
            "RDS": ["who-routes"],
            "CDS": ["who"],
            "EDS": ["who-endpoints"],
        }


def test_a_client_resolves_and_calls_over_tcp(kind: str, server: StaticServer) -> None:
    with XdsClient(kind, f"127.0.0.1:{server.port}", node="client-1") as client:
        assert client.tell("call 20") == {"answer": "first"}


def test_a_node_of_its_own_gets_its_own(kind: str, server: StaticServer, services: tuple[WhoServer, WhoServer]) -> None:
    server.write("nodes/client-2/endpoints.yaml", endpoints(services[1].port))
    server.until(lambda status: len(status["nodes"]) == 2)
    uri = f"unix:{server.socket}"
    with XdsClient(kind, uri, node="client-2") as own, XdsClient(kind, uri, node="client-1") as other:
        assert own.tell("call 20") == {"answer": "second"}
        assert other.tell("call 20") == {"answer": "first"}


def test_calls_move_with_their_endpoint_and_none_fails(
    client: XdsClient, server: StaticServer, services: tuple[WhoServer, WhoServer]
) -> None:
    assert client.tell("call 20") == {"answer": "first"}
    client.tell("start")
    until(lambda: client.tell("count"), lambda found: found["answers"].get("first", 0) > 50)
    server.write("endpoints.yaml", endpoints(services[1].port))
    until(lambda: client.tell("count"), lambda found: found["answers"].get("second", 0) > 50)
    services[0].stop()
    moved = client.tell("count")["answers"]
    enough = moved["second"] + 50
    until(lambda: client.tell("count"), lambda found: found["answers"]["second"] > enough or found["failures"])
    found = client.tell("stop")
    assert found["failures"] == []
    assert found["answers"]["first"] == moved["first"]


def test_without_its_listener_a_call_is_unavailable(client: XdsClient, server: StaticServer) -> None:
    assert client.tell("call 20") == {"answer": "first"}
    (server.files / "listener.yaml").unlink()
    until(lambda: client.tell("call"), lambda found: found.get("code") == "UNAVAILABLE")
    # Not the very same: @grpc/grpc-js-xds 1.14 takes what it had before for no news, even after it was removed.
    server.write("listener.yaml", listener(prefix="again"))
    until(lambda: client.tell("call"), lambda found: found.get("answer") == "first")


def test_a_listener_that_is_late_is_found_when_it_comes(kind: str, server: StaticServer) -> None:
    (server.files / "listener.yaml").unlink()
    server.until(lambda status: not status["nodes"][0]["resources"]["LDS"])
    with XdsClient(kind, f"unix:{server.socket}", node="client-1") as client:
        # gRPC waits 15 s for a resource before it says that there is none.
        assert client.tell("call 2")["code"] == "DEADLINE_EXCEEDED"
        server.write("listener.yaml", listener())
        until(lambda: client.tell("call"), lambda found: found.get("answer") == "first")


def test_what_a_client_refuses_is_in_the_status_with_its_words(client: XdsClient, server: StaticServer) -> None:
    assert client.tell("call 20") == {"answer": "first"}
    server.write("cluster.yaml", cluster("MAGLEV"))
    found = until(lambda: types_of(server)["CDS"], lambda found: found["state"] == "NACK")
    assert "lb_policy" in found["lastError"]["message"] or "LB policy" in found["lastError"]["message"]
    assert found["lastError"]["resources"] == ["who"]
    assert client.tell("call") == {"answer": "first"}  # the last good one stays
    server.write("cluster.yaml", cluster())
    until(lambda: types_of(server)["CDS"], lambda found: found["state"] == "SYNCED")
    assert client.tell("call") == {"answer": "first"}


def test_the_lock_of_the_npm_packages_names_no_registry() -> None:
    text = LOCK.read_text()
    assert '"resolved"' not in text
    assert text.count('"integrity": "sha512-') == text.count('"node_modules/') > 20


class Tls:
    """A control plane over TCP with mutual TLS, and credentials for its clients."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.authority = Authority(folder, "ca")
        self.stranger = Authority(folder, "other")
        certificate, key = self.authority.issue("control-plane", "control-plane", "IP:127.0.0.1")
        own = ("--tls-cert", str(certificate), "--tls-key", str(key))
        clients = ("--tls-client-ca", str(self.authority.path))
        self.server = StaticServer(folder, "--listen", "127.0.0.1:0", *own, *clients, *options)

    def credentials(self, files: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
        """Of a client that trusts the control plane, with certificate and key of its own or none."""
        chain, key = (files[0].read_bytes(), files[1].read_bytes()) if files else (None, None)
        return grpc.ssl_channel_credentials(self.authority.path.read_bytes(), key, chain)

    def ask(
        self, credentials: grpc.ChannelCredentials | None, node: str, kind: type[SotwStream | DeltaStream] = SotwStream
    ) -> object:
        """Names of the clusters that the node gets, or the status code that it meets instead."""

        async def main() -> object:
            channel = dial(f"127.0.0.1:{self.server.port}", credentials)
            async with asyncio.timeout(30), channel:
                stream = kind(channel, node)
                try:
                    await stream.ask(CLUSTER)
                    return names_of(await stream.read())
                except (grpc.aio.AioRpcError, EOFError, asyncio.InvalidStateError):
                    return await stream.code()

        return asyncio.run(main())


def test_tls_clients_are_served_by_their_certificate(folder: Path) -> None:
    tls = Tls(folder)
    with tls.server as server:
        server.write("cluster.yaml", {"@type": CLUSTER, "name": "one"})
        server.until(lambda status: status["nodes"][0]["resources"]["CDS"] == 1)
        by_name = tls.credentials(tls.authority.issue("client", "node-1"))
        for kind in (SotwStream, DeltaStream):
            assert tls.ask(by_name, "node-1", kind) == ["one"]
        spiffe = tls.authority.issue("mesh", "any", "DNS:node-2", "URI:spiffe://cluster/ns/mesh/node-3")
        assert tls.ask(tls.credentials(spiffe), "node-2") == ["one"]
        assert tls.ask(tls.credentials(spiffe), "node-3") == ["one"]
        # What is not in the certificate, no certificate, one of somebody else's, and no TLS at all.
        assert tls.ask(by_name, "node-2") is grpc.StatusCode.PERMISSION_DENIED
        assert tls.ask(tls.credentials(None), "node-1") is grpc.StatusCode.UNAVAILABLE
        foreign = tls.stranger.issue("stranger", "node-1")
        assert tls.ask(tls.credentials(foreign), "node-1") is grpc.StatusCode.UNAVAILABLE
        assert tls.ask(None, "node-1") is grpc.StatusCode.UNAVAILABLE
        server.until(lambda status: not status["clients"])


def test_tls_any_node_serves_whoever_has_a_certificate(folder: Path) -> None:
    tls = Tls(folder, "--tls-any-node")
    with tls.server as server:
        server.answer("PUT", "/v1/resources", {"@type": CLUSTER, "name": "one"})
        credentials = tls.credentials(tls.authority.issue("client", "node-1"))
        assert tls.ask(credentials, "node-2") == ["one"]
        assert tls.ask(tls.credentials(None), "node-2") is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_cannot_be_read_is_told(folder: Path) -> None:
    missing = str(folder / "none.pem")
    files = ("--tls-cert", missing, "--tls-key", missing, "--tls-client-ca", missing)
    command = [*COMMAND, "--static", str(folder), "--listen", "127.0.0.1:0", *files]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert (
        ended.stderr.splitlines()[-1] == f"spliceway: --tls-cert: {missing}: can't be read: No such file or directory"
    )
