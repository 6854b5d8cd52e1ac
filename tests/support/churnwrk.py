"""wrk as load that counts statuses and broken connections, and nginx as many servers that say who they are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from support.churnload import Spawn

_MARK = "churn-result "

#: Paths in turn, a pause after each answer, a count of each status. `done` is in another Lua state than `response`.
_SCRIPT = """
local paths = {{ {paths} }}
local threads, number = {{}}, 0
counts = {{}}
function setup(thread) table.insert(threads, thread) end
function delay() return {pause} end
function request()
  number = number % #paths + 1
  return wrk.format("GET", paths[number])
end
function response(status) counts[status] = (counts[status] or 0) + 1 end
function done(summary)
  local e, parts = summary.errors, {{}}
  for key, count in pairs(threads[1]:get("counts")) do table.insert(parts, '"' .. key .. '":' .. count) end
  io.write(string.format('{mark}{{"requests":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"statuses":{{%s}}}}\\n',
    summary.requests, e.connect, e.read, e.write, e.timeout, table.concat(parts, ",")))
end
"""


class Result(msgspec.Struct, frozen=True):
    """What wrk counted; `statuses` by status."""

    requests: int
    connect: int
    read: int
    write: int
    timeout: int
    statuses: dict[int, int]

    @property
    def errors(self) -> int:
        """Connections that failed in some way."""
        return self.connect + self.read + self.write + self.timeout


class Wrk:
    """One wrk with one thread, in the namespace that `enter` says, until `stop`."""

    def __init__(
        self,
        directory: Path,
        spawn: Spawn,
        url: str,
        paths: Sequence[str],
        *,
        connections: int = 4,
        pause: int = 2,
    ) -> None:
        """`pause`: milliseconds after each answer."""
        script = directory / f"wrk-{abs(hash(url)):x}.lua"
        script.write_text(_SCRIPT.format(paths=", ".join(map(json.dumps, paths)), pause=pause, mark=_MARK))
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", "3600s"]
        command += ["--timeout", "30s", "--script", str(script), url]
        self._process = spawn(command, stdout=subprocess.PIPE, text=True)

    def stop(self) -> Result:
        """Interrupt it, and return what it counted."""
        self._process.send_signal(2)  # SIGINT: wrk reports at once
        out, _ = self._process.communicate(timeout=20)
        lines = [line.removeprefix(_MARK) for line in out.splitlines() if line.startswith(_MARK)]
        assert len(lines) == 1, f"wrk did not report: {out[-500:]}"
        return msgspec.json.decode(lines[0], type=Result)

    def kill(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


#: Each server answers with one line: its name, method and target, and the two headers that rules ask for.
_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  default_type text/plain;
  client_body_temp_path {directory}/nginx.tmp;
  proxy_temp_path {directory}/nginx.tmp;
  fastcgi_temp_path {directory}/nginx.tmp;
  uwsgi_temp_path {directory}/nginx.tmp;
  scgi_temp_path {directory}/nginx.tmp;
{servers}
}}
"""
_SERVER = """
  server {{
    listen {port} backlog=4096;
    listen [::]:{port} ipv6only=on backlog=4096;
    location / {{ return 200 "{name} $request_method $request_uri x-team=$http_x_team x-role=$http_x_role\\n"; }}
  }}
"""


def start_nginx(directory: Path, spawn: Spawn, servers: Mapping[str, int]) -> subprocess.Popen[bytes]:
    """One nginx that is a server for each name, on its port. The caller ends it."""
    config = directory / "nginx.conf"
    each = "".join(_SERVER.format(name=name, port=port) for name, port in servers.items())
    config.write_text(_NGINX.format(directory=directory, servers=each))
    command = ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(config)]
    return spawn(command)
