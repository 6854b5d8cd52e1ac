"""Network namespaces with a name: a file in /run/netns that keeps a namespace, as iproute2 does it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.syscalls import MS_BIND, mount, mount_detached, setns, unmount, unshare

DIRECTORY = Path("/run/netns")

T = TypeVar("T")


def create(path: Path, setup: Callable[[], T]) -> T:
    """Make a namespace, keep it at `path`, run `setup` inside it and return what that returns.

    A thread is the vehicle: namespaces of the network belong to threads, so that the caller never moves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def inside() -> T:
        try:
            unshare()
        except OSError as error:
            raise TestbedError(f"{path}: can't make a network namespace (needs root): {error.strerror}") from error
        path.touch(exist_ok=False)
        mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", path, flags=MS_BIND)
        return setup()

    return _in_thread(inside)


def call(path: Path, function: Callable[[], T]) -> T:
    """Run `function` in a thread that is inside the namespace at `path`; sockets it opens stay in that namespace."""

    def inside() -> T:
        enter(path)
        return function()

    return _in_thread(inside)


def enter(path: Path) -> None:
    """Move the calling thread into the namespace at `path`, for good."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TestbedError(
            f"{path}: no such network namespace ({error.strerror}); was the testbed taken down?"
        ) from None
    try:
        setns(fd)
    finally:
        os.close(fd)


def delete(path: Path) -> None:
    """Give up the name; the namespace and its interfaces go with its last process. Nothing there is no error."""
    with contextlib.suppress(OSError):  # not mounted: the run died between making the file and mounting on it
        unmount(path)
    path.unlink(missing_ok=True)


def sysctl(name: str, value: int) -> None:
    """Set net.<name> (slashes for dots) in the calling thread's namespace: /proc/sys/net shows the caller's own.

    Raises TestbedError.
    """
    path = Path("/proc/sys/net", name)
    try:
        path.write_text(str(value))
    except OSError as error:
        hint = "; is IPv6 turned off (ipv6.disable=1)?" if name.startswith("ipv6") else ""
        raise TestbedError(f"{path}: can't be set to {value}: {error.strerror}{hint}") from error


def set_rps(cpus: int, *, loopback: bool = False) -> None:
    """Receive packet steering to the CPUs of a bit mask (0: none), on every interface of this namespace but `lo`.

    `loopback`: on `lo` alone instead.

    sysfs shows the interfaces of the namespace that mounted it, so it is mounted anew, at no path: nothing has to be
    undone, and it works where the root is no mount point. Source: Documentation/networking/scaling.rst. Raises
    TestbedError.
    """
    try:
        root = mount_detached("sysfs")
        try:
            for queue in Path(f"/proc/self/fd/{root}/class/net").glob("*/queues/rx-*/rps_cpus"):
                if (queue.parts[-4] == "lo") == loopback:
                    queue.write_text(f"{cpus:x}")
        finally:
            os.close(root)
    except OSError as error:
        raise TestbedError(f"can't set receive packet steering: {error}") from error


def listening_ports() -> set[int]:
    """TCP ports that are listened on in the calling thread's namespace, both families."""
    ports: set[int] = set()
    for table in ("tcp", "tcp6"):
        file = Path("/proc/thread-self/net", table)
        if not file.exists():
            continue
        for line in file.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN, include/net/tcp_states.h
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def _in_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C: what the thread has begun must be complete before anyone takes it down
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]
