"""A pod that asks without end, one request after the other on one connection (a new one after a failure)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Self

from spliceway.agent.testbed.testbed import Testbed
from support.waiting import until

_REQUESTS = """
import http.client, sys, time
address, path, pause, patience = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
connection = None
while True:
    try:
        connection = connection or http.client.HTTPConnection(address, 80, timeout=patience)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        said = response.status
    except OSError:
        connection.close()
        connection, said = None, 0
    print(time.monotonic(), said, flush=True)
    time.sleep(pause)
"""


class Asking:
    """Asks while this is entered. `results`: time.monotonic() of each answer, and its status; 0: there was none."""

    def __init__(
        self, testbed: Testbed, client: str, server: str, path: str, *, pause: float = 0.002, patience: float = 5.0
    ) -> None:
        """`pause`: after each answer, and `patience`: with an answer, in seconds."""
        self.results: list[tuple[float, int]] = []
        argv = [sys.executable, "-c", _REQUESTS, str(testbed.pod(server).address(4)), path, str(pause), str(patience)]
        self._process: subprocess.Popen[str] = testbed.spawn(client, argv, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            when, said = line.split()
            self.results.append((float(when), int(said)))

    def first(self, wanted: Callable[[int], bool] | int, after: float) -> float:
        """Seconds from `after` to the first result that is wanted, or this one."""

        def found() -> float | None:
            for when, said in self.results[-5000:]:
                if when > after and (wanted(said) if callable(wanted) else said == wanted):
                    return when
            return None

        return until(found, told=lambda: f"nothing of that kind: {self.results[-5:]}") - after

    def since(self, when: float) -> set[int]:
        """What it was told since."""
        return {said for at, said in list(self.results) if at > when}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
