"""What this process lacks to build virtual nodes and load BPF programs."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError

_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY = 2
#: Number of bpf(2) by machine, from the kernel's unistd.h.
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}


def missing_rights() -> str | None:
    """One line that says why virtual nodes can't be had here, or None when they can."""
    if os.geteuid() != 0:
        return "not root"
    return _no_namespaces() or _no_file_systems() or _no_bpf()


def _no_namespaces() -> str | None:
    probe = netns.DIRECTORY / f"spliceway-probe-{os.getpid()}"
    try:
        netns.create(probe, lambda: None)
    except (TestbedError, OSError) as error:
        return f"no network namespaces: {error}"
    finally:
        netns.delete(probe)
    return None


def _no_file_systems() -> str | None:
    known = Path("/proc/filesystems").read_text().split()
    for kind in ("bpf", "cgroup2"):
        if kind not in known:
            return f"the kernel has no {kind} file system"
    return None


def _no_bpf() -> str | None:
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return f"machine {platform.machine()} is not known"
    # union bpf_attr for BPF_MAP_CREATE: type, key size, value size, entries, flags, …
    attributes = (ctypes.c_uint32 * 16)(_BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, _BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd < 0:
        return f"no BPF rights: bpf(BPF_MAP_CREATE): {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return None
