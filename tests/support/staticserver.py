"""A `spliceway xds serve` of a test's own, in a process, and a client of its admin API."""

from __future__ import annotations

import re
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from support import waiting

#: Seconds in which what must happen has happened, on a busy machine too.
PATIENCE = waiting.LIMIT
COMMAND = (str(Path(sys.executable).with_name("spliceway")), "xds", "serve")


class StaticServer:
    """The process; use as a context manager. `options` are further ones of the command line.

    `folder` must be short: a Unix socket's path has 107 bytes.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.files = folder / "files"
        self.files.mkdir(exist_ok=True)
        self.socket = folder / "xds.sock"
        self.admin_socket = folder / "admin.sock"
        self.log = folder / "log"
        self.greeting = ""
        sockets = ("--socket", str(self.socket), "--admin", str(self.admin_socket))
        self._arguments = (*COMMAND, "--static", str(self.files), *sockets, *options)
        self._process: subprocess.Popen[str] | None = None
        self._admin = httpx.Client(transport=httpx.HTTPTransport(uds=str(self.admin_socket)), base_url="http://admin")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admin.close()
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._arguments, stdout=subprocess.PIPE, stderr=log, text=True)
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE), f"does not start: {self.log.read_text()}"
        self.greeting = stdout.readline()
        assert self.greeting, f"has ended: {self.log.read_text()}"

    def stop(self) -> int:
        """End it as a service manager does; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(PATIENCE)
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()

    @property
    def port(self) -> int:
        """The TCP port, if it listens there."""
        found = re.search(r"\d+\.\d+\.\d+\.\d+:(\d+)", self.greeting)
        assert found is not None, self.greeting
        return int(found[1])

    def write(self, file: str, *resources: dict[str, Any]) -> None:
        """Write a file of resources as editors do: beside it, then renamed."""
        path = self.files / file
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(yaml.safe_dump_all(resources))
        fresh.rename(path)

    def ask(self, method: str, path: str, body: object = None, **query: str) -> httpx.Response:
        """A request to the admin API; `body` becomes a file of that resource, or of these."""
        resources = body if isinstance(body, list) else [body]
        content = yaml.safe_dump_all(resources) if body is not None else None
        return self._admin.request(method, path, params=query, content=content, timeout=PATIENCE)

    def answer(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """The same, which must succeed: the answer's JSON."""
        response = self.ask(method, path, body, **query)
        assert response.is_success, response.text
        return response.json()

    def status(self) -> Any:
        """What /v1/status says."""
        return self.answer("GET", "/v1/status")

    def until(self, right: Callable[[Any], object]) -> Any:
        """Wait until /v1/status is right, and return it."""
        return until(self.status, right)


def until(look: Callable[[], Any], right: Callable[[Any], object]) -> Any:
    """Look again and again until what is seen is right, and return it."""
    seen: list[Any] = []

    def is_right() -> bool:
        seen[:] = [look()]
        return bool(right(seen[0]))

    waiting.until(is_right, PATIENCE, lambda: seen[0])
    return seen[0]
