"""A UDP server for pods that sends every datagram back: `python -m spliceway.agent.bench.udpecho --port 80`."""

from __future__ import annotations

import argparse
import socket


def serve(port: int) -> None:
    """Answer on every address of both families, one datagram after another, for ever."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        while True:
            data, client = server.recvfrom(65_535)
            server.sendto(data, client)


def main() -> None:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=80, help="UDP port (default: 80)")
    serve(parser.parse_args().port)


if __name__ == "__main__":
    main()
