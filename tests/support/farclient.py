"""A client for `farserver`: requests on one connection, checked to the byte, and how it ended.

`python farclient.py PLAN`, JSON: {"address", "port", "source" (a port, 0: any), "wait" (seconds), "requests":
[[method, target, size of the body], …], "end": "fin", "reset" or "wait" (for the server to end it)}.
It prints {"port": its own, "answers": [{"status", "seen", "whole", "sent"}, …], "end": how the server ended it, or ""}.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import struct
import sys
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.farserver import content


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return  # what was answered tells


def ask(sock: socket.socket, method: str, target: str, size: int) -> dict[str, Any]:
    """One request. The body is sent while the answer is read: either may be long."""
    body = content(target, size)
    length = f"Content-Length: {size}\r\n" if size else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: far\r\n{length}\r\n".encode()
    sender = threading.Thread(target=_send, args=(sock, head + body), daemon=True)
    sender.start()
    answer = http.client.HTTPResponse(sock, method=method)
    try:
        answer.begin()
        data = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return {"status": answer.status if isinstance(answer.status, int) else 0, "error": type(error).__name__}
    sender.join()
    wanted = int(parse_qs(urlsplit(target).query).get("size", ["0"])[0])
    return {
        "status": answer.status,
        "seen": json.loads(answer.headers.get("X-Seen", "{}")),
        "whole": answer.status != 200 or not wanted or data == content(target, wanted),
        "sent": hashlib.sha256(body).hexdigest(),
        "text": data[:4096].decode("latin-1") if not wanted else "",
    }


def ended(sock: socket.socket) -> str:
    """How the server ends the connection: fin, reset, or «open» when it does not in time."""
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return "open"
    except OSError:
        return "reset"
    return "fin"


def main() -> None:
    """Do what the plan says."""
    plan = json.loads(sys.argv[1])
    family = socket.AF_INET6 if ":" in plan["address"] else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(plan["wait"])
        if plan["source"]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", plan["source"]))
        answers: list[dict[str, Any]] = []
        try:
            sock.connect((plan["address"], plan["port"]))
        except OSError as error:
            answers.append({"status": 0, "error": type(error).__name__})
            print(json.dumps({"port": 0, "answers": answers, "end": ""}))
            return
        port = sock.getsockname()[1]
        answers += [ask(sock, *request) for request in plan["requests"]]
        how = ended(sock) if plan["end"] == "wait" else ""
        if plan["end"] == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    print(json.dumps({"port": port, "answers": answers, "end": how}))


if __name__ == "__main__":
    main()
