"""Both ends of the services benchmark: `serve PORT` accepts and closes, `dial` measures connect() as stdin asks.

`dial` reads lines {"targets": [[address, port], …], "count": n, "seed": s} and answers with the nanoseconds that each
of n connect() calls took, to targets by chance. Connections end by a reset, so that no port stays in TIME_WAIT.

Servers have the last CPU and diallers the first: where they are by chance would say more than what is measured.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import struct
import sys
import time

_LINGER = struct.pack("ii", 1, 0)


def serve(port: int) -> None:
    """Accept for ever; clients end their connections themselves."""
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(4096)
    while True:
        listener.accept()[0].close()


def dial() -> None:
    """Measure as told, until stdin ends."""
    for line in sys.stdin:
        told = json.loads(line)
        chosen = random.Random(told["seed"]).choices(told["targets"], k=told["count"])
        family = socket.AF_INET6 if ":" in told["targets"][0][0] else socket.AF_INET
        took = []
        for address, port in chosen:
            made = socket.socket(family)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            made.settimeout(None)
            target = (address, port)
            begin = time.perf_counter_ns()
            made.connect(target)
            took.append(time.perf_counter_ns() - begin)
            made.close()
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    cpus = sorted(os.sched_getaffinity(0))
    if sys.argv[1] == "serve":
        os.sched_setaffinity(0, cpus[-1:])
        serve(int(sys.argv[2]))
    os.sched_setaffinity(0, cpus[:1])
    gc.disable()
    dial()
