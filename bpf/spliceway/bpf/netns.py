"""Network namespace cookies: the kernel's own name of a namespace, which no pod can choose (Linux 5.14)."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

from spliceway.bpf.errors import DatapathError

_SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000


def current_cookie() -> int:
    """Cookie of the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def cookie_of(path: Path) -> int:
    """Cookie of the namespace that `path` names. Raises DatapathError when it can't be entered.

    setns(2) moves the calling thread, so it happens in one that ends afterwards.
    """
    result: list[int | OSError] = []

    def enter() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
                result.append(current_cookie())
            finally:
                os.close(descriptor)
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=enter, name="netns-cookie")
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise DatapathError(f"network namespace {path}: {result[0].strerror}") from result[0]
    return result[0]
