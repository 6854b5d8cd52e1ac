"""Other people's xDS clients against a real `spliceway xds serve`: gRPC's own of Python and of Node.js, and mTLS."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from support.grpcclients import TARGET, WhoServer, XdsClient, cluster, command, endpoints, listener, routes
from support.staticserver import StaticServer, until

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
