"""What this process, and so an agent started like it, may do: capabilities, lockdown, limits, libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from spliceway.agent.nodecheck import texts
from spliceway.agent.nodecheck.model import Check, Status, Target, fail, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, output, text

#: capability(7): name, number, what for; the chart names the same. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
NEEDED = (
    ("CAP_NET_ADMIN", 12, "filters, routes, transparent sockets", Status.FAIL),
    ("CAP_SYS_ADMIN", 21, "entering pods' network namespaces", Status.FAIL),
    ("CAP_BPF", 39, "programs and maps", Status.FAIL),
    ("CAP_PERFMON", 38, "measuring what a reader has not read yet, which splicing needs", Status.WARN),
    ("CAP_NET_RAW", 13, "telling pods that were behind of the end of their connections", Status.WARN),
    ("CAP_SYS_PTRACE", 19, "knowing again a proxy with other rights; from a container, its cgroup", Status.WARN),
)
_SYS_ADMIN = 1 << 21
#: Files that an embedded worker or Envoy wants: two for each connection through it.
_FILES = 65_536


def user(_target: Target) -> Iterator[Check]:
    """Root, or most of what follows can't be looked at."""
    uid = os.geteuid()
    if uid:
        yield fail("user", f"user id {uid}: much of this node can't be looked at", "run it, and the agent, as root")
    else:
        yield ok("user", "root")


def capabilities(_target: Target) -> Iterator[Check]:
    """Each capability that is needed, and for what."""
    yield from judge_capabilities(texts.capabilities(text(Path("/proc/self/status"))))


def judge_capabilities(mask: int) -> Iterator[Check]:
    """From the effective set. One result for all that are there, one for each that is missing."""
    missing = []
    for name, number, purpose, status in NEEDED:
        includes = name in ("CAP_BPF", "CAP_PERFMON") and mask & _SYS_ADMIN
        if not (mask >> number & 1 or includes):
            missing.append(name)
            yield Check("capabilities", status, f"no {name}: {purpose}", f"add {name} to the agent's securityContext")
    if not missing:
        yield ok("capabilities", ", ".join(name for name, *_ in NEEDED))


def lockdown(_target: Target) -> Iterator[Check]:
    """Kernel lockdown in mode «confidentiality» takes reading kernel memory away from programs."""
    try:
        mode = texts.lockdown(text(Path("/sys/kernel/security/lockdown")))
    except Unreadable as error:
        yield skipped("lockdown", f"{error} (no lockdown, or securityfs is not mounted)")
        return
    if mode == "confidentiality":
        todo = "boot with lockdown=integrity, or leave splicing off: policy is enforced all the same"
        yield warn("lockdown", "confidentiality: a reader's queue can't be measured, so nothing is spliced", todo)
    else:
        yield ok("lockdown", mode)


def limits(_target: Target) -> Iterator[Check]:
    """How many files the proxy may open."""
    found = texts.limits(text(Path("/proc/self/limits")))
    yield judge_files(found.get("Max open files", ("", ""))[1])


def judge_files(hard: str) -> Check:
    """From the hard limit of open files, which the proxy raises its own limit to."""
    if hard.isdigit() and int(hard) < _FILES:
        todo = f"LimitNOFILE={_FILES} or more: every proxied connection takes two files"
        return warn("limits", f"at most {hard} open files", todo)
    return ok("limits", f"open files: {hard or 'unknown'}")


def libraries(_target: Target) -> Iterator[Check]:
    """Libbpf, and BCC with its LLVM, which is loaded by a child alone: LLVM stays out of this process."""
    for name, code, package in (
        ("libbpf", "import ctypes; ctypes.CDLL('libbpf.so.1')", "libbpf1"),
        ("bcc", "import bcc; print(getattr(bcc, '__version__', ''))", "python3-bpfcc (PyPI's bcc is another one)"),
    ):
        try:
            version = output((sys.executable, "-P", "-c", code)).strip()
        except Unreadable as error:
            yield fail(name, str(error).rpartition(": ")[2], f"apt install {package}")
        else:
            yield ok(name, version or "can be loaded")


def agent_runs(target: Target) -> Iterator[Check]:
    """Whether an agent runs on this node: the checks then look at what it has set up."""
    from spliceway.bpf.leftovers import runs

    bpffs = target.settings.bpffs
    yield info("agent", f"one runs on {bpffs}" if runs(bpffs) else f"none runs on {bpffs}")
