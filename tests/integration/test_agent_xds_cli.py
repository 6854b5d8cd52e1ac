"""`spliceway xds …` and what `policy get` and `status` say of ACK and NACK: the whole agent, and a raw xDS client."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import yaml
from envoy.config.core.v3 import base_pb2

from spliceway.agent.cli.client import AgentClient, _UnixConnection, config_dump
from spliceway.agent.errors import ClientError
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from support.agent import NODE, pod, policy, run, until
from support.agentsite import Site
from support.xdsclient import DeltaStream, dial, names_of

#: As flows have it: RFC 3339 in UTC.
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
TITLE = "CiliumNetworkPolicy default/web"
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: token, namespace: default}
stringData: {value: hush-hush}
"""
HTTP = policy("web", "server", 80, http=["/a"])
ENVOY = "proxy: {kind: envoy}"


@pytest.fixture(autouse=True)
def _log_apart() -> Iterator[None]:
    """The agent logs in this process: it must not stand in what a command prints."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


def proxy_node(node: str = NODE, cluster: str = "spliceway") -> base_pb2.Node:
    return base_pb2.Node(id=node, cluster=cluster, user_agent_name="envoy")


class Proxy:
    """A client that acknowledges everything but the routes that a test wants refused."""

    def __init__(self, stream: DeltaStream) -> None:
        self.stream = stream
        self.refuse = ""
        self._asked: set[str] = set()

    async def live(self) -> None:
        await self.stream.ask(CLUSTER, "*")
        await self.stream.ask(LISTENER, "*")
        while True:
            response = await self.stream.read(3600)
            refused = self.refuse if response.type_url == ROUTE and self.refuse else None
            await self.stream.answer(response, refused)
            if response.type_url == LISTENER and (new := set(names_of(response)) - self._asked):
                self._asked |= new
                await self.stream.ask(ROUTE, *sorted(new))


@asynccontextmanager
async def proxy(site: Site, node: base_pb2.Node | None = None) -> AsyncIterator[Proxy]:
    async with dial(site.config.state_dir / "xds.sock") as channel:
        made = Proxy(DeltaStream(channel, node or proxy_node()))
        task = asyncio.create_task(made.live())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def with_site(tmp_path: Path, body: Callable[[Site], Awaitable[None]], extra: str = "", web: str = HTTP) -> None:
    async def start() -> None:
        site = Site(tmp_path, extra)
        site.write("pods.yaml", pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11"))
        site.write("web.yaml", web)
        task = asyncio.create_task(site.agent().run(site.stop))
        try:
            await until(lambda: site.datapath.table is not None or task.done())
            await body(site)
        finally:
            site.stop.set()
            await task

    run(start, 60.0)


async def settled(site: Site, state: str, type_: str = "RDS") -> list[Any]:
    """Status of the clients once the type is in that state at every current one."""
    async with asyncio.timeout(10):
        while True:
            clients = await site.get("xds/status")
            found = [kind["state"] for one in clients for kind in one["types"] if kind["type"] == type_]
            if found and set(found) == {state}:
                return list(clients)
            await asyncio.sleep(0.01)


def test_nobody_is_connected(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        assert "! no client is connected" in await site.cli("xds", "status", status=1)
        # What would be served can be looked at all the same.
        assert "NOT SENT" in await site.cli("xds", "dump", "--type", "routes")
        assert "waiting" in await site.cli("policy", "get", "default/server")
        said = await site.cli("status", status=1)
        assert "no proxy is connected that has asked for it" in said
        assert f"({TITLE} in web.yaml)" in said
        assert "the proxy's admin interface failed on /config_dump" in await site.cli("xds", "diff", status=1)
        metrics = await asyncio.to_thread(_metrics, site)
        late = {
            short: metrics[f'spliceway_xds_not_in_sync{{type="{short}"}}'] for short in ("CDS", "LDS", "RDS", "SDS")
        }
        assert metrics['spliceway_policies_not_applied{state="waiting"}'] == 1
        assert late == {"CDS": 1, "LDS": 1, "RDS": 1, "SDS": 0}

    with_site(tmp_path, body)


def test_all_is_well(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with proxy(site):
            (client,) = await settled(site, "SYNCED")
            assert (client["protocol"], client["service"], client["current"]) == ("delta", "ADS", True)
            assert re.fullmatch(TIME, client["since"])
            for kind in client["types"]:
                assert re.fullmatch(TIME, kind["sentAt"])
                assert client["since"] < kind["sentAt"] < kind["ackedAt"]
                assert 0 < kind["ackSeconds"] < 10
            assert (await site.get("xds"))["clients"][0]["since"] == client["since"]
            output = await site.cli("xds", "status")
            clients, types = output.split("\n\n")
            assert clients.splitlines()[1].split()[:6] == [NODE, "spliceway", "envoy", "-", "delta", "ADS"]
            kinds = {line.split()[1]: line.split()[2:4] for line in types.splitlines()[1:]}
            assert kinds == {"CDS": ["SYNCED", "1"], "LDS": ["SYNCED", "1"], "RDS": ["SYNCED", "1"]}
            rows = [line for line in (await site.cli("policy", "get", "default/server")).splitlines() if "/a" in line]
            assert len(rows) == 1
            assert " redirect " in rows[0]
            assert " applied " in rows[0]
            for form, read in (("json", msgspec.json.decode), ("yaml", lambda text: list(yaml.safe_load_all(text)))):
                assert read(await site.cli("xds", "status", "-o", form))[0]["client"]["node"] == NODE

    with_site(tmp_path, body)


def test_a_dump_names_the_policies_and_hides_secrets(tmp_path: Path) -> None:
    match = "path: '/a', headerMatches: [{name: x-token, secret: {name: token}}]"
    web = HTTP.replace("path: '/a'", match) + "---" + SECRET

    async def body(site: Site) -> None:
        async with proxy(site):
            await settled(site, "SYNCED")
            output = await site.cli("xds", "dump")
            assert f"web.yaml  {TITLE} spec.ingress[0].toPorts[0].rules.http[0]" in output
            assert "(configuration)" in next(line for line in output.splitlines() if "original-destination" in line)
            for stage in ("desired", "sent", "acked"):
                for form in ("json", "yaml"):
                    text = await site.cli("xds", "dump", "--type", "Route", "--stage", stage, "-o", form)
                    assert "hush" not in text
                    assert "(secret)" in text
                    found = msgspec.json.decode(text) if form == "json" else list(yaml.safe_load_all(text))
                    assert [one["type"] for one in found] == ["RDS"]
                    assert found[0]["policies"][0]["file"] == "web.yaml"
                    assert found[0]["stage"] == stage
            assert len(list(yaml.safe_load_all(await site.cli("xds", "dump", "-o", "yaml")))) == 3
            name = found[0]["name"]
            named = msgspec.json.decode(await site.cli("xds", "dump", "--name", name, "-o", "json"))
            assert [one["type"] for one in named] == ["LDS", "RDS"]
            whole = await site.get("xds/resources")
            assert await site.get("xds/resources", contents="0") == [
                {key: value for key, value in one.items() if key != "resource"} for one in whole
            ]
            assert "has no resource 'nothing' at the stage desired" in await site.cli(
                "xds", "dump", "--name", "nothing", status=1
            )
            said = await site.cli("xds", "dump", "--node", "stranger", status=1)
            assert f"no node 'stranger' (there are {NODE})" in said

    with_site(tmp_path, body, web=web)


def test_a_nack_from_status_to_the_policy_and_back(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with proxy(site) as envoy:
            await settled(site, "SYNCED")
            envoy.refuse = "regex '/b' RE2 program size of 9999\n> max program size"
            site.write("web.yaml", HTTP.replace("/a", "/b"))
            await settled(site, "NACK")
            output = await site.cli("xds", "status", status=1)
            assert f"! {NODE}: RDS: NACK of rule-set-" in output
            assert f"refused: {envoy.refuse}" in output  # whole
            said = "refused: RDS rule-set-1: regex '/b' RE2 program size of 9999 > max program size"
            output = await site.cli("status", status=1)
            assert f"{said} ({TITLE} in web.yaml)" in output
            assert "revision 2 in force (1 rule set refused), " in output
            output = await site.cli("policy", "get", "default/server")
            assert " refused " in next(line for line in output.splitlines() if "/b" in line and line[0] != "!")
            assert f"! {TITLE} (web.yaml): {said}" in output
            (state,) = (await site.get("status"))["policy"]["notApplied"]
            assert (state["policy"], state["file"], state["state"]) == (TITLE, "web.yaml", "refused")
            assert "NACK" in await site.cli("xds", "dump", "--type", "rds")
            acked = msgspec.json.decode(
                await site.cli("xds", "dump", "--type", "rds", "--stage", "acked", "-o", "json")
            )
            assert "/a" in str(acked)
            assert "/b" not in str(acked)
            metrics = await asyncio.to_thread(_metrics, site)
            assert metrics['spliceway_policies_not_applied{state="refused"}'] == 1
            assert metrics['spliceway_policies_not_applied{state="waiting"}'] == 0
            assert metrics['spliceway_xds_nacks_total{type="RDS"}'] == 1
            assert metrics['spliceway_xds_not_in_sync{type="RDS"}'] == 1
            assert metrics['spliceway_xds_clients{protocol="delta"}'] == 1
            assert metrics['spliceway_xds_ack_duration_seconds_count{type="LDS"}'] >= 1

            envoy.refuse = ""
            site.write("web.yaml", HTTP.replace("/a", "/c"))
            await settled(site, "SYNCED")
            output = await site.cli("xds", "status")
            assert "was refused and is over" in output
            assert " applied " in next(line for line in (await site.cli("policy", "get")).splitlines() if "/c" in line)
            assert (await site.get("status"))["policy"]["notApplied"] == []

    with_site(tmp_path, body)


def test_watching(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        lines = AgentClient(site.socket).lines("xds/events", follow="1", last="100", type="routes")
        # Also what happened before the request was there: nobody knows which is first.
        first = asyncio.create_task(asyncio.to_thread(next, lines))
        async with proxy(site):
            assert (await first)["kind"] == "connected"
            kinds = [(await asyncio.to_thread(next, lines)) for _ in range(3)]
            assert [(one["kind"], one["type"]) for one in kinds] == [
                ("subscribe", "RDS"), ("push", "RDS"), ("ack", "RDS"),
            ]  # fmt: skip
            assert kinds[1]["resources"] == kinds[0]["resources"] == ["rule-set-1"]
            assert kinds[2]["ackSeconds"] > 0
            assert re.fullmatch(TIME, kinds[2]["time"])
            await settled(site, "SYNCED")
        assert (await asyncio.to_thread(next, lines))["kind"] == "disconnected"
        table, as_json = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spliceway.agent", "xds", "watch", "--socket", str(site.socket), *options),
                stdout=asyncio.subprocess.PIPE,
            )
            for options in (("--last", "100"), ("-n", "2", "--type", "LDS", "-o", "json"))
        ]
        assert table.stdout is not None
        assert f" connected {NODE} delta".encode() in await table.stdout.readline()
        assert as_json.stdout is not None
        assert json.loads(await as_json.stdout.readline())["kind"] == "ack"
        site.stop.set()  # the agent ends: so do those who watch
        assert await asyncio.to_thread(next, lines, None) is None
        assert f" push {NODE} delta RDS ".encode() in (await table.communicate())[0]
        assert json.loads((await as_json.communicate())[0])["kind"] == "disconnected"
        assert (table.returncode, as_json.returncode) == (0, 0)

    with_site(tmp_path, body)


@contextmanager
def envoy_admin(path: Path, answer: bytes) -> Iterator[None]:
    """An admin interface that answers /config_dump?include_eds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/config_dump?include_eds"
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_diff(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with proxy(site):
            await settled(site, "SYNCED")
            dump = await asyncio.to_thread(_get, site, f"/debug/config_dump?proxyID={NODE}&include_eds")
            for path in (tmp_path / "other.sock", site.config.state_dir / "proxy-admin.sock"):
                with envoy_admin(path, dump):
                    admin = ("--admin", str(path)) if path.parent == tmp_path else ()
                    assert f"{NODE}: 3 resources: 3 same" in await site.cli("xds", "diff", *admin)
            site.write("web.yaml", HTTP.replace("/a", "/b"))
            while "/b" not in await site.cli("xds", "dump", "--type", "rds", "--stage", "acked", "-o", "json"):
                pass
            with envoy_admin(tmp_path / "late.sock", dump):
                output = await site.cli("xds", "diff", "--admin", str(tmp_path / "late.sock"), status=1)
                (row,) = (line for line in output.splitlines() if "differs  " in line)
                assert row.split()[:3] == ["RDS", "rule-set-1", "differs"]
                assert '"/b"' in row
                assert '"/a"' in row
                assert "3 resources: 1 differs, 2 same" in output
                answer = msgspec.json.decode(
                    await site.cli("xds", "diff", "--admin", str(tmp_path / "late.sock"), "-o", "json", status=1)
                )
                assert [one["state"] for one in answer["resources"]].count("differs") == 1
            for name, odd in (("odd", b"<html>"), ("deep", b'{"configs":' + b"[" * 5000)):
                with envoy_admin(tmp_path / f"{name}.sock", odd):
                    said = await site.cli("xds", "diff", "--admin", str(tmp_path / f"{name}.sock"), status=1)
                    assert "that is no configuration of a proxy" in said
            async with proxy(site, proxy_node("other")):
                said = ""
                while "is not this agent's own proxy" not in said:
                    said = await site.cli("xds", "diff", "--node", "other", status=1)

    with_site(tmp_path, body)


@pytest.mark.parametrize("admin", ["http://10.0.0.1:9901", "https://127.0.0.1:1", "example.org:80", "x", "http://[::1"])
def test_only_a_socket_or_loopback_is_asked_for_a_configuration(admin: str) -> None:
    with pytest.raises(ClientError, match=r"is neither the path of a socket nor http://127\.0\.0\.1:PORT"):
        config_dump(admin)
    for path in ("/nowhere", "nowhere/admin.sock"):
        with pytest.raises(ClientError, match=f"no proxy answers at {path}"):
            config_dump(path)


def test_another_client_refusing_is_no_answer_of_the_proxy(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        async with proxy(site), proxy(site, proxy_node(cluster="elsewhere")):
            await settled(site, "SYNCED")
            status = await site.get("status")
            assert status["policy"]["notApplied"] == []
            assert status["proxy"]["clients"] == 2

    with_site(tmp_path, body)


def test_debug_over_loopback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def body(site: Site) -> None:
        async with proxy(site):
            await settled(site, "SYNCED")
            for path, status in (("/debug/syncz", b"200"), ("/v1/status", b"404"), ("/v1/xds/status", b"404")):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
                assert answer.split(b" ", 2)[1] == status
                writer.close()
                await writer.wait_closed()
        assert b"syncz" in await asyncio.to_thread(_get, site, "/debug/")

    with_site(tmp_path, body, f"debug: {{listen: 'localhost:{port}'}}")


def test_plain_tcp_is_warned_of(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def body(site: Site) -> None:
        output = await site.cli("status", status=1)
        assert f"(warning) xDS is served in plain TCP on 127.0.0.1:{port}: whoever can connect reads every" in output

    with_site(tmp_path, body, f"xds: {{listen: '127.0.0.1:{port}', insecure: true}}")


@pytest.mark.parametrize("mode", ["refuse", "warn"])
def test_an_envoy_with_known_holes(tmp_path: Path, mode: str) -> None:
    old = proxy_node()
    old.user_agent_build_version.version.major_number = 1
    old.user_agent_build_version.version.minor_number = 35

    async def body(site: Site) -> None:
        async with proxy(site, old):
            if mode == "warn":
                await settled(site, "SYNCED")
                assert f"{NODE}: Envoy 1.35.0 lets requests past path rules" in await site.cli("xds", "status")
            said = "lets requests past path rules"
            while "(warning)" not in (output := await site.cli("status", status=1)):
                pass
            served = "is not served: " if mode == "refuse" else ": "
            (line,) = (line for line in output.splitlines() if line.startswith(f"(warning) xDS client {NODE}"))
            assert said in line
            assert served in line
            assert len(await site.get("xds/status")) == (mode == "warn")
            output = await site.cli("xds", "status", status=int(mode == "refuse"))  # 1: no client is connected
            assert (f"(warning) {NODE} is not served: Envoy 1.35.0 lets" in output) == (mode == "refuse")
            assert (await asyncio.to_thread(_metrics, site))["spliceway_xds_rejected_total"] == (mode == "refuse")

    with_site(tmp_path, body, f"{ENVOY}\nxds: {{unsafeEnvoy: {mode}}}")


def test_a_refused_resource_of_ones_own_is_told_and_counts_against_no_policy(tmp_path: Path) -> None:
    extra = f"""
{ENVOY}
envoy:
  extraClusters:
  - {{name: mine, connect_timeout: 1s, type: STATIC, load_assignment: {{cluster_name: mine, endpoints: []}}}}
"""

    async def body(site: Site) -> None:
        async with dial(site.config.state_dir / "xds.sock") as channel:
            stream = DeltaStream(channel, proxy_node())
            await stream.ask(CLUSTER, "*")
            await stream.answer(await stream.read(), "Error adding/updating cluster(s) mine: I do not like it")
            while "proxy: refused CDS mine: " not in (output := await site.cli("status", status=1)):
                pass
            assert "I do not like it" in output
            dump = (await site.cli("xds", "dump", "--type", "clusters")).splitlines()
            assert next(line for line in dump if " mine " in line).endswith("(configuration)")
            (state,) = (await site.get("status"))["policy"]["notApplied"]
            assert state["state"] == "waiting"  # nobody has asked for listeners

    with_site(tmp_path, body, extra)


def _get(site: Site, path: str) -> bytes:
    connection = _UnixConnection(site.socket, 5.0)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer.read()
    finally:
        connection.close()


def _metrics(site: Site) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in _get(site, "/metrics").decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
