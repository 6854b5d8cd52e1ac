"""`spliceway xds serve` as a process: files, reloads, the admin API, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import httpx
import pytest

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from support.staticserver import COMMAND, PATIENCE, StaticServer, until
from support.xdsclient import DeltaStream, SotwStream, bodies_of, dial, names_of, versions_of


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sw-") as path:
        yield Path(path)


@pytest.fixture
def server(folder: Path) -> Iterator[StaticServer]:
    with StaticServer(folder) as started:
        yield started


def cluster(name: str, timeout: int = 1) -> dict[str, Any]:
    return {"@type": CLUSTER, "name": name, "connect_timeout": f"{timeout}s"}


def eds_cluster(name: str) -> dict[str, Any]:
    return {**cluster(name), "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}


def names(status: Any, node: str = "*") -> int:
    """The number of clusters that a node gets."""
    return next((int(item["resources"]["CDS"]) for item in status["nodes"] if item["node"] == node), -1)


def with_client(
    server: StaticServer, work: Callable[[Any], Awaitable[None]], *, node: str = "node-1", delta: bool = False
) -> None:
    """Run `work` with a stream of its own."""

    async def main() -> None:
        async with asyncio.timeout(60), dial(server.socket) as channel:
            stream = (DeltaStream if delta else SotwStream)(channel, node)
            await work(stream)
            stream.cancel()

    asyncio.run(main())


async def edit(change: Callable[..., object], *arguments: object) -> None:
    """Something blocking, beside the streams."""
    await asyncio.to_thread(change, *arguments)


def test_files_are_served_and_again_when_they_change(server: StaticServer) -> None:
    server.write("clusters.yaml", cluster("one"), cluster("two"))
    server.until(lambda status: names(status) == 2)

    async def work(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        assert await stream.take(CLUSTER) == ["one", "two"]
        await edit(server.write, "more.yml", cluster("three"))
        assert await stream.take(CLUSTER) == ["one", "three", "two"]
        (server.files / "four.json").write_text(json.dumps({"resources": [cluster("four")]}))
        assert await stream.take(CLUSTER) == ["four", "one", "three", "two"]
        (server.files / "clusters.yaml").unlink()
        assert await stream.take(CLUSTER) == ["four", "three"]
        (server.files / "README.md").write_text("not ours")
        (server.files / "more.yml").touch()
        await stream.silent()

    with_client(server, work)
    assert server.stop() == 0
    assert not server.socket.exists()
    assert not server.admin_socket.exists()


def test_delta_clients_get_what_changed_only(server: StaticServer) -> None:
    server.write("clusters.yaml", cluster("one"), cluster("two"))
    server.until(lambda status: names(status) == 2)

    async def work(stream: DeltaStream) -> None:
        await stream.ask(CLUSTER)
        assert await stream.take(CLUSTER) == (["one", "two"], [])
        await edit(server.write, "clusters.yaml", cluster("one", 2), cluster("three"))
        first, second = await stream.take(CLUSTER)
        assert (first, second) == (["one", "three"], ["two"])

    with_client(server, work, delta=True)


def test_a_config_map_is_swapped_as_a_whole(server: StaticServer) -> None:
    """As kubelet does it: files and folders are links into `..data`, which is renamed."""

    def generation(number: int, *clusters: str) -> None:
        data = server.files / f"..{number}"
        for name in clusters:
            path = data / "nodes" / name
            path.mkdir(parents=True)
            (path / "a.yaml").write_text(f'{{"@type": {CLUSTER}, name: {name}, connect_timeout: {number}s}}')
        (data / "shared.yaml").write_text(f'{{"@type": {CLUSTER}, name: shared, connect_timeout: {number}s}}')
        (server.files / "..new").symlink_to(data.name)
        (server.files / "..new").rename(server.files / "..data")

    generation(1, "n1", "n2")
    (server.files / "shared.yaml").symlink_to("..data/shared.yaml")
    (server.files / "nodes").symlink_to("..data/nodes")
    server.until(lambda status: names(status, "n1") == names(status, "n2") == 2)
    generation(2, "n1")
    status = server.until(lambda status: names(status, "n2") == -1)
    assert not status["problems"]
    found = server.answer("GET", "/v1/resources/cds/n1", node="n1")
    assert found["resource"]["connect_timeout"] == "2s"


def xds_status(server: StaticServer) -> list[str]:
    """What `spliceway xds status` says when something is wrong, by line."""
    command = [*COMMAND[:2], "status", "--socket", str(server.admin_socket), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert isinstance(json.loads(done.stdout), list)
    return done.stderr.splitlines()


def test_a_client_that_is_not_served_is_told(server: StaticServer) -> None:
    async def work(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        with pytest.raises(grpc.RpcError):
            await stream.read()

    with_client(server, work, node="")
    assert any(line.startswith("(warning) (without node id) is not served: ") for line in xds_status(server))
    (refused,) = server.answer("GET", "/v1/xds/refused")
    assert (refused["kind"], refused["name"], refused["time"][-1]) == ("client", "", "Z")


def test_what_is_refused_is_told_and_changes_nothing(server: StaticServer) -> None:
    server.write("clusters.yaml", cluster("one"))
    server.until(lambda status: names(status) == 1)
    server.write("clusters.yaml", cluster("two"), {"@type": CLUSTER, "name": "three", "lb_policy": "FASTEST"})
    status = server.until(lambda status: status["problems"])
    (problem,) = status["problems"]
    assert problem.startswith("clusters.yaml: document 2: lb_policy: ")
    assert status["files"] == [
        {
            "file": "clusters.yaml",
            "state": "refused",
            "resources": 1,
            "reason": f"{problem} (its last good content stays)",
        }
    ]
    assert f"! refused: {problem} (its last good content stays)" in xds_status(server)
    assert [item["name"] for item in server.answer("GET", "/v1/resources")["resources"]] == ["one"]
    assert problem in [json.loads(line).get("error") for line in server.log.read_text().splitlines()]
    (server.files / "clusters.yaml").write_bytes(b"\xff")
    server.until(lambda status: status["problems"] == ["clusters.yaml: is not UTF-8 (byte 0)"])
    server.write("clusters.yaml", cluster("two"))
    server.until(lambda status: names(status) == 1 and not status["problems"])
    # A set with a dangling reference is refused as a whole, until what it refers to is there.
    route = {"match": {"prefix": "/"}, "route": {"cluster": "later"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    server.write("routes.yaml", {"@type": ROUTE, "name": "r", "virtual_hosts": hosts})
    (problem,) = server.until(lambda status: status["problems"])["problems"]
    assert "later" in problem
    said = xds_status(server)
    reason = problem.removeprefix("node *: ")
    assert f"! refused: resources for every node: {reason} (what was served before stays)" in said
    assert server.answer("GET", "/v1/resources", type="rds")["resources"] == []
    server.write("later.yaml", cluster("later"))
    server.until(lambda status: not status["problems"] and names(status) == 2)
    assert [item["name"] for item in server.answer("GET", "/v1/resources", type="routes")["resources"]] == ["r"]


def test_a_half_written_file_is_not_read(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"))
    server.until(lambda status: names(status) == 1)
    with (server.files / "b.yaml").open("w") as half:
        half.write(f'"@type": {CLUSTER}\nname: t')
        half.flush()
        server.write("c.yaml", cluster("three"))
        status = server.until(lambda status: names(status) == 2)
        assert {item["file"] for item in status["files"]} == {"a.yaml", "c.yaml"}
        half.write("wo\n")
    server.until(lambda status: names(status) == 3)
    assert server.answer("GET", "/v1/resources/CDS/two")["from"] == "b.yaml: document 1"


def test_at_the_start_nothing_is_served_before_everything_could_be_read(folder: Path) -> None:
    (folder / "files").mkdir()
    (folder / "files" / "a.yaml").write_text("@")
    (folder / "files" / "b.yaml").write_text(f'"@type": {CLUSTER}\nname: one\n')
    with StaticServer(folder) as server:
        assert server.status()["complete"] is False
        assert server.ask("POST", "/v1/resources", cluster("two")).status_code == 422

        async def work(stream: SotwStream) -> None:
            await stream.ask(CLUSTER)
            await stream.silent()
            await edit(server.write, "a.yaml", cluster("two"))
            assert await stream.take(CLUSTER) == ["one", "two"]

        with_client(server, work)


def test_a_node_with_a_folder_gets_both_and_its_own_win(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"), cluster("two"))
    server.write("nodes/n1/a.yaml", cluster("two", 2), cluster("mine"))
    server.until(lambda status: names(status, "n1") == 3)

    async def work(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        first = await stream.read()
        assert names_of(first) == ["mine", "one", "two"]
        await stream.answer(first)
        (server.files / "nodes" / "n1" / "a.yaml").unlink()
        second = await stream.read()
        assert names_of(second) == ["one", "two"]
        assert bodies_of(second)["two"] != bodies_of(first)["two"]

    with_client(server, work, node="n1")

    async def other(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        assert await stream.take(CLUSTER) == ["one", "two"]

    with_client(server, other, node="n2")


def test_the_admin_api_sets_adds_updates_and_removes(server: StaticServer) -> None:
    server.write("a.yaml", cluster("file"))
    server.until(lambda status: names(status) == 1)
    assert server.ask("POST", "/v1/resources", cluster("one")).status_code == 201
    assert server.ask("POST", "/v1/resources", cluster("one", 2)).status_code == 409
    assert server.ask("POST", "/v1/resources", cluster("file")).status_code == 409
    one = server.answer("PUT", "/v1/resources/clusters/one", cluster("one", 2))
    assert one["version"] == server.answer("GET", "/v1/resources/CDS/one")["version"]
    assert server.ask("PUT", "/v1/resources/clusters/two", cluster("one")).status_code == 400
    assert server.ask("DELETE", "/v1/resources/clusters/two").status_code == 404
    server.answer("DELETE", "/v1/resources/envoy.config.cluster.v3.Cluster/file")
    assert names(server.status()) == 1
    server.write("a.yaml", cluster("file", 2), cluster("more"))
    server.until(lambda status: names(status) == 2)
    server.answer("PUT", "/v1/resources", [cluster("a"), cluster("b"), cluster("c")])
    assert names(server.status()) == 3
    assert server.answer("DELETE", "/v1/resources")["resources"] == 0
    assert server.answer("DELETE", "/v1/changes")["resources"] == 2
    assert server.status()["nodes"][0]["changed"] is False


def test_the_admin_api_refuses_what_would_be_inconsistent(server: StaticServer) -> None:
    server.answer("PUT", "/v1/resources", [cluster("one")])
    before = server.answer("GET", "/v1/resources")
    route = {"match": {"prefix": "/"}, "route": {"cluster": "two"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    refused = server.ask("POST", "/v1/resources", {"@type": ROUTE, "name": "r", "virtual_hosts": hosts})
    assert refused.status_code == 422
    assert "two" in refused.json()["error"]
    assert server.answer("GET", "/v1/resources") == before


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "reason"),
    [
        ("POST", "/v1/resources", b"@", 400, "request: "),
        ("POST", "/v1/resources", b"\xff", 400, "not UTF-8"),
        ("POST", "/v1/resources", b"x" * ((4 << 20) + 1), 413, "longer than 4 MiB"),
        ("POST", "/v1/resources", b'"@type": nothing', 400, "is not served"),
        ("POST", "/v1/resources?nod=n1", b"{}", 400, "unknown parameter 'nod'"),
        ("POST", "/v1/resources?version=%0a", b"[]", 400, "printable"),
        ("PUT", "/v1/resources/xds/a", b"{}", 400, "no type 'xds': CDS, EDS"),
        ("GET", "/v1/resources?type=x", b"", 400, "no type 'x'"),
        ("GET", "/v1/resources/CDS/none", b"", 404, "there is no CDS 'none'"),
    ],
)
def test_bad_requests_are_told(
    server: StaticServer, method: str, path: str, content: bytes, status: int, reason: str
) -> None:
    transport = httpx.HTTPTransport(uds=str(server.admin_socket))
    with httpx.Client(transport=transport, base_url="http://admin") as client:
        answer = client.request(method, path, content=content)
        assert answer.status_code == status, answer.text
        assert reason in answer.json()["error"]


class Adapter:
    """The five calls of the CNCF's xDS test harness (api/adapter/adapter.proto), on the admin API."""

    def __init__(self, server: StaticServer) -> None:
        self._server = server

    def set_state(self, node: str, version: str, resources: list[dict[str, Any]]) -> None:
        self._server.answer("PUT", "/v1/resources", resources, node=node, version=version)

    def clear_state(self, node: str) -> None:
        self._server.answer("DELETE", "/v1/resources", node=node)

    def add_resource(self, node: str, resource: dict[str, Any], version: str) -> None:
        self._server.answer("POST", "/v1/resources", resource, node=node, version=version)

    def update_resource(self, node: str, resource: dict[str, Any], version: str) -> None:
        path = f"/v1/resources/{resource['@type'].rpartition('/')[2]}/{resource['name']}"
        self._server.answer("PUT", path, resource, node=node, version=version)

    def remove_resource(self, node: str, url: str, name: str) -> None:
        self._server.answer("DELETE", f"/v1/resources/{url.rpartition('/')[2]}/{name}", node=node)


def test_an_adapter_for_a_conformance_client_takes_five_lines(server: StaticServer) -> None:
    adapter = Adapter(server)
    adapter.set_state("node-1", "1", [cluster("A"), cluster("B")])

    async def sotw(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        first = await stream.read()
        assert (names_of(first), first.version_info) == (["A", "B"], "1")
        await stream.answer(first)
        await edit(adapter.update_resource, "node-1", cluster("A", 2), "2")
        second = await stream.read()
        assert (names_of(second), second.version_info) == (["A", "B"], "2")
        await stream.answer(second)
        await edit(adapter.add_resource, "node-1", cluster("C"), "3")
        third = await stream.read()
        assert (names_of(third), third.version_info) == (["A", "B", "C"], "3")
        await stream.answer(third)
        await edit(adapter.remove_resource, "node-1", CLUSTER, "B")
        assert await stream.take(CLUSTER) == ["A", "C"]
        await edit(adapter.clear_state, "node-1")
        assert await stream.take(CLUSTER) == []

    with_client(server, sotw)
    adapter.set_state("node-1", "1", [cluster("A"), cluster("B")])

    async def delta(stream: DeltaStream) -> None:
        await stream.ask(CLUSTER, "A", "B")
        first = await stream.read()
        assert versions_of(first) == {"A": "1", "B": "1"}
        await stream.answer(first)
        await edit(adapter.update_resource, "node-1", cluster("A", 2), "2")
        second = await stream.read()
        assert versions_of(second) == {"A": "2"}
        await stream.answer(second)
        await edit(adapter.remove_resource, "node-1", CLUSTER, "B")
        assert await stream.take(CLUSTER) == ([], ["B"])
        await edit(adapter.add_resource, "node-1", cluster("B", 2), "3")
        assert versions_of(await stream.read()) == {"B": "3"}

    with_client(server, delta, delta=True)


def test_clients_are_in_the_status_with_what_they_refused(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"))
    server.until(lambda status: names(status) == 1)

    async def work(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        await stream.answer(await stream.read(), "one is ugly")
        status = await asyncio.to_thread(server.until, lambda found: "one is ugly" in str(found["clients"]))
        (client,) = status["clients"]
        assert client["client"]["node"] == "node-1"
        (held,) = (item for item in client["types"] if item["type"] == "CDS")
        assert held["resources"][0]["state"] == "NACK"
        assert server.answer("GET", "/v1/xds/status")[0]["stream"] == client["stream"]
        assert client["since"] < held["sentAt"]
        assert client["since"].endswith("Z")

    with_client(server, work)


def test_the_commands_for_an_agent_work_on_it(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"))
    server.write("nodes/node-1/own.yaml", cluster("two"))
    server.until(lambda status: names(status, "node-1") == 2)

    def command(*arguments: str) -> str:
        whole = [*COMMAND[:2], *arguments, "--socket", str(server.admin_socket)]
        done = subprocess.run(
            whole, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def work(stream: SotwStream) -> None:
        await stream.ask(CLUSTER)
        assert await stream.take(CLUSTER) == ["one", "two"]
        await asyncio.to_thread(server.until, lambda status: '"SYNCED"' in json.dumps(status["clients"]))
        assert "SYNCED" in await asyncio.to_thread(command, "status")
        table = await asyncio.to_thread(command, "dump", "--node", "node-1", "--type", "clusters")
        assert "nodes/node-1/own.yaml: document 1" in table
        assert " a.yaml: document 1" in table
        assert "NOT SENT" not in await asyncio.to_thread(command, "dump")
        status = [COMMAND[0], "status", "--socket", str(server.admin_socket)]
        done = await asyncio.to_thread(subprocess.run, status, capture_output=True, text=True, check=False)
        assert (done.returncode, "xds status`" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
        dump = json.loads(
            await asyncio.to_thread(command, "dump", "--node", "node-1", "--stage", "acked", "-o", "json")
        )
        assert [item["name"] for item in dump] == ["one", "two"]
        listed = server.answer("GET", "/v1/xds/resources", node="node-1", contents="0")
        whole = server.answer("GET", "/v1/xds/resources", node="node-1")
        assert listed == [{key: value for key, value in item.items() if key != "resource"} for item in whole]
        events = server.ask("GET", "/v1/xds/events", last="20").text.splitlines()
        kinds = [json.loads(line)["kind"] for line in events]
        assert all(json.loads(line)["time"].endswith("Z") for line in events)
        assert kinds[0] == "connected"
        assert {"push", "ack"} <= set(kinds)
        (synced,) = server.answer("GET", "/debug/syncz")
        assert synced["proxy"] == "node-1"
        config = server.answer("GET", "/debug/config_dump", proxyID="node-1")
        assert "two" in json.dumps(config)
        differs = server.ask("POST", "/v1/xds/diff", {"configs": []}, node="node-1")  # as YAML, which is no dump
        assert differs.status_code == 400
        assert server.ask("GET", "/v1/xds/resources", stage="x").status_code == 400
        assert server.ask("GET", "/v1/xds/resources", name="none").status_code == 404

    with_client(server, work)


def test_without_checks_what_clients_must_refuse_is_served(folder: Path) -> None:
    with StaticServer(folder, "--no-check") as server:
        hosts = [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "none"}}]}
        ]
        server.write("a.yaml", {"@type": ROUTE, "name": "r", "virtual_hosts": hosts}, eds_cluster("two"))
        server.until(lambda status: names(status) == 1)
        server.write("b.yaml", {"@type": CLUSTER, "name": "three", "connect_timeout": "-1s"})
        assert server.until(lambda status: names(status) == 2)["problems"] == []


def test_private_keys_are_not_shown(server: StaticServer) -> None:
    certificate = {"certificate_chain": {"inline_string": "public"}, "private_key": {"inline_string": "very private"}}
    server.answer("POST", "/v1/resources", {"@type": SECRET, "name": "tls", "tls_certificate": certificate})
    shown = server.ask("GET", "/v1/resources/SDS/tls").text
    assert "public" in shown
    assert "very private" not in shown
    assert "very private" not in server.log.read_text()


def test_the_sockets_are_the_owners_alone(server: StaticServer) -> None:
    for path in (server.socket, server.admin_socket):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_admin_api_on_loopback_answers_no_web_page(folder: Path) -> None:
    (folder / "files").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with StaticServer(folder, "--admin", f"127.0.0.1:{port}"), httpx.Client() as client:
        url = f"http://127.0.0.1:{port}/v1/status"
        assert client.get(url).status_code == 200
        assert client.get(url, headers={"Host": f"localhost:{port}"}).status_code == 200
        assert client.get(url, headers={"Host": f"evil.example:{port}"}).status_code == 403
        assert client.get(url, headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "give --socket, --listen, or both"),
        (["--listen", "127.0.0.1:0"], "--listen needs either"),
        (["--listen", "127.0.0.1:0", "--tls-cert", "c", "--tls-key", "k"], "--tls-client-ca is missing"),
        (["--listen", "127.0.0.1", "--insecure"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:70000", "--insecure"], "is not HOST:PORT"),
        (["--socket", "s", "--insecure"], "are for --listen"),
        (["--socket", "s", "--admin", "0.0.0.0:1234"], "only a Unix socket or loopback"),
        (["--socket", "s", "--admin", "example.com:1234"], "only a Unix socket or loopback"),
    ],
)
def test_what_must_not_be_started_is_wrong_usage(folder: Path, options: list[str], reason: str) -> None:
    command = [*COMMAND, "--static", str(folder), *options]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, "COLUMNS": "300"}
    )
    assert ended.returncode == 2
    assert reason in ended.stderr


def test_a_socket_that_is_in_use_is_left_alone(server: StaticServer) -> None:
    command = [*COMMAND, "--static", str(server.files), "--socket", str(server.socket)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert "another process listens there" in ended.stderr
    assert server.status()["complete"]


@pytest.mark.parametrize("option", ["--socket", "--admin"])
def test_what_is_no_socket_is_left_alone(folder: Path, option: str) -> None:
    (folder / "files").mkdir()
    (folder / "file").write_text("mine")
    command = [*COMMAND, "--static", str(folder / "files"), "--socket", str(folder / "s"), option, str(folder / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert str(folder / "file") in ended.stderr
    assert (folder / "file").read_text() == "mine"


def test_a_restarted_server_serves_the_same(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"), eds_cluster("two"), {"@type": ENDPOINT, "cluster_name": "two"})
    server.until(lambda status: names(status) == 2)
    have: dict[str, str] = {}

    async def first(stream: DeltaStream) -> None:
        await stream.ask(CLUSTER)
        have.update(versions_of(await stream.read()))

    with_client(server, first, delta=True)
    assert server.stop() == 0
    server.start()

    async def second(stream: DeltaStream) -> None:
        await stream.ask(CLUSTER, "*", have=have)
        assert await stream.take(CLUSTER) == ([], [])
        await stream.ask(LISTENER)
        assert await stream.take(LISTENER) == ([], [])

    with_client(server, second, delta=True)


def test_a_directory_that_goes_and_comes_back(server: StaticServer) -> None:
    server.write("a.yaml", cluster("one"))
    server.until(lambda status: names(status) == 1)
    aside = server.files.with_name("aside")
    server.files.rename(aside)
    status = server.until(lambda status: status["problems"])
    assert names(status) == 1
    (aside / "b.yaml").write_text(f'"@type": {CLUSTER}\nname: two\n')
    aside.rename(server.files)
    status = until(server.status, lambda status: names(status) == 2)
    assert not status["problems"]
