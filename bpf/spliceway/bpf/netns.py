"""Network namespace cookies: the kernel's own name of a namespace, which no pod can choose (Linux 5.14)."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spliceway.bpf.errors import DatapathError

T = TypeVar("T")
_SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000


def current_cookie() -> int:
    """Cookie of the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def cookie_of(path: Path) -> int:
    """Cookie of the namespace that `path` names. Raises DatapathError when it can't be entered."""
    return call_in(path, current_cookie)


def call_in(path: Path, work: Callable[[], T]) -> T:
    """Call `work` in the namespace that `path` names, and raise what it raises. DatapathError: it can't be entered.

    setns(2) moves the calling thread, so it happens in one that ends afterwards.
    """
    result: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(descriptor)
        except OSError as error:
            failed.append(DatapathError(f"network namespace {path}: {error.strerror}"))
            return
        try:
            result.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns-call")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]
