"""Bytes that the kernel has before the connection is there: `python -m support.earlybytes MODE ADDRESS COUNT`.

`fast-open`: with the SYN, which is lost and comes again without them. `waiting`: send() waits for the connection. A
body follows at once, in a send() of its own. Prints what came back, and how often, as JSON.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

_BODY = bytes(range(256)) * 3
_HEAD = b"POST /echo HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
#: Longer than any SYN without data.
_EMPTY_SYN = 90
_TABLE = "table inet early {\n chain output {\n type filter hook output priority 0;\n }\n}\n"


def nft(text: str) -> None:
    """Change the packet filter of this namespace."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def fast_open(sock: socket.socket, address: tuple[str, int]) -> None:
    """The head goes with the SYN."""
    sock.setblocking(False)
    try:
        taken = sock.sendto(_HEAD, socket.MSG_FASTOPEN, address)
    except BlockingIOError:
        taken = 0
    select.select([], [sock], [], 10)
    sock.settimeout(10)
    sock.sendall(_HEAD[taken:] + _BODY)


def waiting(sock: socket.socket, address: tuple[str, int]) -> None:
    """The head is sent by a send() that waits for the connection."""
    sock.setblocking(False)
    sock.connect_ex(address)
    sock.setblocking(True)
    sock.send(_HEAD)
    sock.send(_BODY)
    sock.settimeout(10)


def one(mode: str, address: str) -> str:
    """One connection."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        try:
            (fast_open if mode == "fast-open" else waiting)(sock, (address, 80))
            while piece := sock.recv(65536):
                data += piece
        except OSError as error:
            return repr(error)
    return "ok" if data.endswith(b"\r\n\r\n" + _BODY) else data[:40].decode("latin-1")


def main() -> None:
    """All of them side by side."""
    mode, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    found: list[str] = []
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("5")  # with the SYN, without a cookie
    nft(_TABLE)
    condition = f"meta length > {_EMPTY_SYN} " if mode == "fast-open" else ""
    nft(f"add rule inet early output tcp flags & (syn|ack) == syn {condition}drop\n")
    threads = [threading.Thread(target=lambda: found.append(one(mode, address))) for _ in range(count)]
    for thread in threads:
        thread.start()
    if mode == "waiting":
        time.sleep(0.3)  # all of them wait by then; the first SYN comes again after 1 s
        nft("flush chain inet early output\n")
    for thread in threads:
        thread.join()
    nft("delete table inet early\n")
    print(json.dumps(Counter(found)))


if __name__ == "__main__":
    main()
