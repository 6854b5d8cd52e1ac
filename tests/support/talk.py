"""A pod's HTTP connection that stays open, and asks when it is told to."""

from __future__ import annotations

import subprocess
from types import TracebackType

from spliceway.agent.testbed.testbed import Testbed
from support.waiting import LIMIT

_CODE = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=float(sys.argv[3]))
connection.connect()
connection.auto_open = 0
for line in sys.stdin:
    try:
        connection.request("GET", line.strip())
        answer = connection.getresponse()
        answer.read()
        print(answer.status, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Talk:
    """One connection from `client` to `server`, a pod or an address.

    `ask` gives the status, or the name of what was raised in the pod.
    """

    def __init__(
        self, testbed: Testbed, client: str, server: str, *, version: int = 4, port: int = 80, patience: float = 20.0
    ) -> None:
        """`patience`: seconds after which an answer is given up."""
        address = server if set(".:") & set(server) else str(testbed.pod(server).address(version))
        argv = ["python", "-c", _CODE, address, str(port), str(patience)]
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[str] = testbed.spawn(client, argv, stdin=pipe, stdout=pipe, text=True)

    def ask(self, path: str = "/x") -> str:
        """Send one GET."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(path + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=LIMIT)
