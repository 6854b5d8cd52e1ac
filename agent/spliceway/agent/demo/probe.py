"""One request from inside a pod: `python -m spliceway.agent.demo.probe '{"address": …}'`.

It prints what it got as one line of JSON and keeps its socket open until stdin ends, so that whoever started it can
look the connection up meanwhile. It uses the standard library alone: one is started for every request.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from typing import Any

#: Between two datagrams of one question, in seconds.
RESEND = 0.2


def ask(question: dict[str, Any]) -> tuple[dict[str, Any], socket.socket]:
    """Ask, and return the answer and the open socket.

    Question: `address`, `port`, `protocol` (TCP or UDP), `timeout` in seconds and, for TCP, `method` and `path`.
    Answer: `answer` (HTTP status, «echo», «no answer», «refused», or the error's name), `body`, and the own `address`
    and `port`.
    """
    kind = socket.SOCK_STREAM if question["protocol"] == "TCP" else socket.SOCK_DGRAM
    found = socket.socket(socket.AF_INET6 if ":" in question["address"] else socket.AF_INET, kind)
    try:
        answer, body = (_http if kind is socket.SOCK_STREAM else _udp)(found, question)
    except TimeoutError:
        answer, body = "no answer", ""
    except ConnectionRefusedError:
        answer, body = "refused", ""
    except (OSError, http.client.HTTPException) as error:
        answer, body = type(error).__name__, str(error)
    address, port = found.getsockname()[:2]
    return {"answer": answer, "body": body, "address": address, "port": port}, found


def _http(found: socket.socket, question: dict[str, Any]) -> tuple[str, str]:
    found.settimeout(question["timeout"])
    found.connect((question["address"], question["port"]))
    connection = http.client.HTTPConnection(question["address"])
    connection.sock = found.dup()  # http.client closes its own when the server wants to close
    # Without a body: a proxy that refuses a request before all of it is there must close the connection.
    connection.request(question["method"], question["path"])
    reply = connection.getresponse()
    return str(reply.status), reply.read(1000).decode("latin-1").strip()


def _udp(found: socket.socket, question: dict[str, Any]) -> tuple[str, str]:
    found.connect((question["address"], question["port"]))
    deadline = time.monotonic() + question["timeout"]
    while (left := deadline - time.monotonic()) > 0:
        found.settimeout(min(RESEND, left))
        found.send(b"spliceway")
        try:
            return "echo", found.recv(1000).decode("latin-1")
        except TimeoutError:
            continue
    raise TimeoutError


def main() -> None:
    """Entry point of the module."""
    answer, found = ask(json.loads(sys.argv[1]))
    print(json.dumps(answer), flush=True)
    sys.stdin.read()
    found.close()


if __name__ == "__main__":
    main()
