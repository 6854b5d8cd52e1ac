"""Calls /spliceway.test.Who/Who through a channel of Python's gRPC, as told on standard input.

A process of its own: gRPC reads GRPC_XDS_BOOTSTRAP when it is loaded. Each line is a command, answered by one of JSON:
`call [SECONDS]` calls once: {"answer": …} or {"code": …, "details": …}; `start` calls again and again until `stop`;
`stop` and `count` answer {"answers": {answer: number of calls}, "failures": [{"code": …, "details": …}]}.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import grpc


class Caller:
    """One channel, and what its calls came to."""

    def __init__(self, target: str) -> None:
        self._call: Any = grpc.insecure_channel(target).unary_unary("/spliceway.test.Who/Who")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._many, daemon=True)
        self._answers: dict[str, int] = {}
        self._failures: list[dict[str, str]] = []

    def obey(self, word: str, argument: str) -> dict[str, Any]:
        """Carry out a command."""
        if word == "call":
            return self._once(float(argument or 10))
        if word == "start":
            self._thread.start()
            return {}
        if word == "stop":
            self._stop.set()
            self._thread.join()
        return {"answers": dict(self._answers), "failures": list(self._failures)}

    def _once(self, seconds: float) -> dict[str, str]:
        try:
            return {"answer": self._call(b"", timeout=seconds).decode()}
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": str(error.details())}

    def _many(self) -> None:
        while not self._stop.wait(0.002):
            found = self._once(10)
            if "code" in found:
                self._failures.append(found)
            else:
                self._answers[found["answer"]] = self._answers.get(found["answer"], 0) + 1


if __name__ == "__main__":
    caller = Caller(sys.argv[1])
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        print(json.dumps(caller.obey(command, rest)), flush=True)
