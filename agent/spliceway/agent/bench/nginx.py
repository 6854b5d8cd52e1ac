"""nginx as the server of a pod: one worker, keep-alive, static files of set sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

#: As Debian configures it, but for what would end a keep-alive connection and for logs.
_CONFIG = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/{name}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  default_type application/octet-stream;
  client_body_temp_path {directory}/{name}.tmp;
  proxy_temp_path {directory}/{name}.tmp;
  fastcgi_temp_path {directory}/{name}.tmp;
  uwsgi_temp_path {directory}/{name}.tmp;
  scgi_temp_path {directory}/{name}.tmp;
  server {{
    listen 80 backlog=4096;
    listen [::]:80 ipv6only=on backlog=4096;
    root {directory}/files;
  }}
}}
"""


def prepare(directory: Path, files: Mapping[str, int]) -> None:
    """Write the files that every server of this directory serves; values are sizes in bytes."""
    (directory / "files").mkdir(parents=True, exist_ok=True)
    for name, size in files.items():
        line = (f"{name} ".encode() * 16)[:63] + b"\n"
        (directory / "files" / name).write_bytes((line * (size // len(line) + 1))[:size])


def command(directory: Path, name: str) -> Sequence[str]:
    """Write the configuration of the server `name` into `directory`, and return its command line."""
    config = directory / f"{name}.conf"
    config.write_text(_CONFIG.format(directory=directory, name=name))
    return ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(config)]
