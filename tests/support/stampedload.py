"""Starting `stamped.py` on a virtual node: client, proxy workers and server, and what they report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from spliceway.agent.testbed.testbed import Testbed

_SCRIPT = str(Path(__file__).with_name("stamped.py"))
#: A process may have 20,000 files, and a worker of the proxy needs two for a connection.
_CONNECTIONS_OF_A_WORKER = 6000


class Program:
    """One of the programs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def line(self) -> dict[str, Any]:
        """The next that it says."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, f"it ended with status {self._process.wait(10)}"
        found: dict[str, Any] = json.loads(text)
        return found

    def report(self) -> dict[str, Any]:
        """Tell it to end, and take its last line."""
        out, _ = self._process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def kill(self) -> None:
        """Should the test have failed."""
        self._process.kill()
        self._process.communicate()


class StampedLoad:
    """`connections` from the pod `client` to the pod `server`, half by IPv4 and half by IPv6."""

    def __init__(self, testbed: Testbed, connections: int, talkers: int, ports: tuple[int, ...]) -> None:
        self._testbed, self.connections, self._talkers = testbed, connections, talkers
        self._options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = -(-connections // _CONNECTIONS_OF_A_WORKER)
        self.programs: list[Program] = []
        self.server = self._start("server", "server", {})
        self.proxies = [self._start("", "proxy", {"ports": ports}) for _ in range(workers)]
        for one in self.programs:
            assert "listening" in one.line()

    def _start(self, pod: str, role: str, plan: dict[str, Any]) -> Program:
        command = [sys.executable, _SCRIPT, role, json.dumps(plan)]
        if pod:
            process = self._testbed.spawn(pod, command, **self._options)
        else:
            process = self._testbed.node.spawn_on_node(command, "proxy", **self._options)
        self.programs.append(Program(process))
        return self.programs[-1]

    def connect(self, connections: int | None = None) -> Program:
        """Start a client and wait until all of its connections have exchanged a message."""
        addresses = [str(self._testbed.pod("server").address(version)) for version in (4, 6)]
        wanted = self.connections if connections is None else connections
        plan = {"addresses": addresses, "connections": wanted, "talkers": self._talkers}
        started = self._start("client", "client", plan)
        assert started.line() == {"up": wanted}
        return started

    def reports(self) -> dict[str, Any]:
        """End all programs. Their counts together: `how`, `newest` and `messages` by leg, `last` of the clients."""
        how: Counter[str] = Counter()
        newest: Counter[str] = Counter()
        messages: Counter[str] = Counter()
        last = 0
        for one in reversed(self.programs):  # clients first
            report = one.report()
            how.update(report["how"])
            messages.update(report["messages"])
            newest |= Counter(report["newest"])
            if "client" in report["messages"]:
                last = max(last, report["last"])
        self.programs.clear()
        return {"how": how, "newest": newest, "messages": messages, "last": last}

    def __enter__(self) -> StampedLoad:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.programs:
            one.kill()
