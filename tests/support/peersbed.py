"""Proxies on the node of three namespaces in a row, on the same work: how each is started, checked and measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from spliceway.agent.bench import wrk
from spliceway.agent.bench.errors import BenchError
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.resources.names import RUNTIME_LOG_ALLOWED
from support import peers
from support.embeddednode import EmbeddedNode
from support.envoy import EnvoyNode, port_of
from support.peersfigures import BODY, DENIED, LARGE, RULES, SMALL, Load, figures, wrk_script
from support.steered import PROXY_MARK, SERVER, Reply, SteeredNet, dial, read_reply

#: Path -> port; below 24000 connections are steered there, from there on the client dials the node.
PORTS = {
    "embedded": 23001,
    "embedded-h11": 23002,
    "bytes": 23003,
    "bytes-asyncio": 23004,
    "embedded-whole": port_of(6),
    "envoy": port_of(5),
    "mitmproxy": 24001,
    "proxy.py": 24002,
}
#: Those that take their rules from the agent's xDS server, and the ids of their rule sets.
SERVED = {"envoy": 5, "embedded-whole": 6}
#: Those that have no rules.
UNFILTERED = ("bytes", "bytes-asyncio")
_NODE = "10.241.1.1"
ORIGIN, _UPSTREAM = 81, f"{SERVER[4]}:23000"
_OTHERS, _PROXY = 0, 1
#: Of a million allowed requests so many leave a record, as the agent has it on a node this busy.
_SHARE = 50_000
_BENCH = Path(__file__).parent.parent / "bench"

_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  default_type text/plain;
  client_body_temp_path {directory}/tmp;
  proxy_temp_path {directory}/tmp;
  fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp;
  scgi_temp_path {directory}/tmp;
  server {{
    listen {port} backlog=4096;
    location = /small {{ return 200 "{small}"; }}
    location = /post {{ return 200 "{small}"; }}
    location = /large {{ root {directory}; }}
    location = /status {{ stub_status; }}
    location / {{ return 404; }}
  }}
}}
"""


class _Pinned(EnvoyNode):
    """A node whose proxy has one worker, and the CPU of the proxies for all it does."""

    def command(self) -> list[str]:
        """What is run."""
        return ["taskset", "--cpu-list", str(_PROXY), *super().command()]

    @property
    def pid(self) -> int:
        """The proxy's process, which leads a session."""
        assert self._envoy is not None
        return self._envoy.pid


class _PinnedEmbedded(_Pinned, EmbeddedNode):
    """The same with `spliceway proxy`."""


class Bed:
    """The namespaces, nginx, and each proxy that was started: `sessions` has the ids of their sessions."""

    def __init__(self, directory: Path, net: SteeredNet) -> None:
        self.directory, self.net = directory, net
        self.sessions: dict[str, int] = {}
        self._nodes: list[_Pinned] = []
        self._running: list[subprocess.Popen[bytes]] = []

    def start_nginx(self) -> subprocess.Popen[bytes]:
        """One worker, on the CPU of the others."""
        (self.directory / "large").write_bytes(b"l" * LARGE)
        config = self.directory / "nginx.conf"
        config.write_text(_NGINX.format(directory=self.directory, port=ORIGIN, small="s" * SMALL))
        return self.spawn(
            self.net.server, _OTHERS, ["nginx", "-e", "stderr", "-p", str(self.directory), "-c", str(config)]
        )

    async def start(self, path: str) -> None:
        """Start a proxy; returns when it answers as it must. Raises BenchError or PeerError."""
        if path in SERVED:
            await self._start_node(path)
        else:
            self.sessions[path] = await asyncio.to_thread(self._start, path)
        await self._answers(path)

    def spawn(
        self, namespace: Path, cpu: int, argv: list[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Run something in a namespace on one CPU, in a session of its own, until the end."""
        inside = ["nsenter", f"--net={namespace}", "taskset", "--cpu-list", str(cpu), *argv]
        made = subprocess.Popen(
            inside, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | (environment or {}),
        )  # fmt: skip
        self._running.append(made)
        return made

    async def stop(self) -> None:
        """End everything."""
        for node in self._nodes:
            await node.stop()
        for one in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()

    def address(self, path: str) -> tuple[str, int]:
        """Where the client dials."""
        port = PORTS[path]
        return (_NODE if port >= 24000 else SERVER[4]), port

    def ask(self, path: str, request: bytes) -> Reply:
        """One request on a new connection."""
        with dial(self.net.client, self.address(path)) as connection:
            connection.sendall(request)
            return read_reply(connection)

    def _start(self, path: str) -> int:
        port = PORTS[path]
        if path in peers.REQUIREMENTS:
            scratch = self.directory / path
            scratch.mkdir()
            made = peers.command(path, peers.environment(path), (_NODE, port), _UPSTREAM, RULES, scratch)
            return self.spawn(self.net.node, _PROXY, list(made.argv), made.environment).pid
        if path in UNFILTERED:
            kind = "sockets" if path == "bytes" else "protocols"
            argv = [sys.executable, str(_BENCH / "bench_proxy_bytes.py"), str(port), str(PROXY_MARK), kind]
        else:
            settings = {"port": port, "mark": PROXY_MARK, "rules": RULES, "share": _SHARE}
            settings["head_cache"] = path == "embedded"
            argv = [sys.executable, str(_BENCH / "bench_proxy_relay.py"), json.dumps(settings)]
        return self.spawn(self.net.node, _PROXY, argv).pid

    async def _start_node(self, path: str) -> None:
        directory = self.directory / path
        directory.mkdir()
        node = (_Pinned if path == "envoy" else _PinnedEmbedded)(directory, self.net)
        node.upstream.__exit__()  # nginx is the server here, and the next node has one, too
        self._nodes.append(node)
        await node.start()
        self.sessions[path] = node.pid
        pairs = (rule.split(" ") for rule in RULES)
        made = tuple(HttpRule(number, method, target) for number, (method, target) in enumerate(pairs, 1))
        await node.apply(RuleSet(SERVED[path], "bench", made))
        target = f"/runtime_modify?{RUNTIME_LOG_ALLOWED}={_SHARE}"
        await admin_get(node.bootstrap.admin_socket, target, method="POST")

    async def _answers(self, path: str) -> None:
        """Wait until it listens, then check that it does its work: replies whole, and what no rule allows refused."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                (await asyncio.to_thread(dial, self.net.client, self.address(path))).close()
                break
            await asyncio.sleep(0.1)
        body = b"x" * BODY
        asked = {
            b"GET /small?n=1 HTTP/1.1\r\nHost: server\r\n\r\n": (200, SMALL),
            b"GET /large HTTP/1.1\r\nHost: server\r\n\r\n": (200, LARGE),
            b"POST /post HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n%b" % (BODY, body): (200, SMALL),
            b"GET %b HTTP/1.1\r\nHost: server\r\n\r\n" % DENIED.encode(): (404 if path in UNFILTERED else 403, None),
        }
        for request, (status, length) in asked.items():
            reply = await asyncio.to_thread(self.ask, path, request)
            if reply.status != status or length not in (None, len(reply.body)):
                line = request.split(b"\r\n")[0].decode()
                raise BenchError(f"{path}: {line} gave {reply.status} with {len(reply.body)} bytes, not {status}")


class Meter:
    """Runs wrk on a path and says what it came to."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._runs = 0
        self._status = dial(bed.net.server, (SERVER[4], ORIGIN))

    async def run(self, path: str, load: Load, seconds: float) -> dict[str, float]:
        """One run. Raises BenchError when it is void."""
        self._runs += 1
        script = self._bed.directory / "wrk.lua"
        script.write_text(wrk_script(load, self._runs * 10**9))
        host, port = self._bed.address(path)
        argv = wrk.command(str(script), f"http://{host}:{port}/", load.connections, seconds)
        inside = ["nsenter", f"--net={self._bed.net.client}", "taskset", "--cpu-list", str(_OTHERS), *argv]
        session = self._bed.sessions[path]
        accepted, cpu = self._accepted(), peers.cpu_seconds(session)
        done = await asyncio.to_thread(partial(subprocess.run, inside, capture_output=True, text=True, check=False))
        cpu, accepted = peers.cpu_seconds(session) - cpu, self._accepted() - accepted
        try:
            result = wrk.parse(done.stdout + done.stderr)
        except BenchError as error:
            raise BenchError(f"{path}, {load.name}: {error}") from error
        if accepted > 3 * load.connections:  # wrk tries the address before it begins, and Envoy may connect twice
            raise BenchError(f"{path}, {load.name}: {accepted} connections to the server, {load.connections} clients")
        return figures(result, cpu)

    def _accepted(self) -> int:
        """Connections that nginx has accepted so far."""
        self._status.sendall(b"GET /status HTTP/1.1\r\nHost: server\r\n\r\n")
        lines = read_reply(self._status).body.split(b"\n")
        return int(lines[2].split()[0])
