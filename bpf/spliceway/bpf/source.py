"""The C source of the programs: flattened, and named by a digest.

BCC rewrites map calls in a compilation's main file only, so each `*.bpf.c` is turned into one text, its own headers
put in where they are included (once each), with `#line` directives so that a compiler's message names the real file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent / "c"
STUBS = ROOT / "stubs"
_INCLUDE = re.compile(r'#include "([\w./]+)"')


class ProgramSpec(msgspec.Struct, frozen=True):
    """One kernel program: its C function and the kernel's numbers of its type and attach type (-1: none)."""

    name: str
    program_type: int
    attach_type: int = -1


SCHED_CLS, CGROUP_SOCK, SOCK_OPS, SK_MSG, CGROUP_SOCK_ADDR, CGROUP_SOCKOPT, SK_LOOKUP = 3, 9, 13, 16, 18, 25, 30

#: Source file to the programs in it, all that there are.
PROGRAMS: dict[str, tuple[ProgramSpec, ...]] = {
    "policy.bpf.c": (
        ProgramSpec("from_pod", SCHED_CLS),
        ProgramSpec("to_pod", SCHED_CLS),
        ProgramSpec("from_network", SCHED_CLS),
        ProgramSpec("from_network_l3", SCHED_CLS),
        ProgramSpec("to_network", SCHED_CLS),
        ProgramSpec("to_network_l3", SCHED_CLS),
        ProgramSpec("steered", SCHED_CLS),
        ProgramSpec("sidecar_lo", SCHED_CLS),
        ProgramSpec("guard", SK_LOOKUP, 36),
        ProgramSpec("judge", SCHED_CLS),
    ),
    "redirect.bpf.c": (
        ProgramSpec("sockops_pod", SOCK_OPS),
        ProgramSpec("sockops_proxy", SOCK_OPS),
        ProgramSpec("splice_message", SK_MSG),
        ProgramSpec("splice_room", CGROUP_SOCKOPT, 21),
        ProgramSpec("proxy_destination", CGROUP_SOCKOPT, 21),
        ProgramSpec("guard_ulp", CGROUP_SOCKOPT, 22),
        ProgramSpec("release_pod", CGROUP_SOCK, 34),
        ProgramSpec("release_proxy", CGROUP_SOCK, 34),
        ProgramSpec("measure_splice", SCHED_CLS),
    ),
    "services.bpf.c": (
        ProgramSpec("lb_connect4", CGROUP_SOCK_ADDR, 10),
        ProgramSpec("lb_connect6", CGROUP_SOCK_ADDR, 11),
        ProgramSpec("lb_sendmsg4", CGROUP_SOCK_ADDR, 14),
        ProgramSpec("lb_sendmsg6", CGROUP_SOCK_ADDR, 15),
        ProgramSpec("lb_recvmsg4", CGROUP_SOCK_ADDR, 19),
        ProgramSpec("lb_recvmsg6", CGROUP_SOCK_ADDR, 20),
        ProgramSpec("lb_getpeername4", CGROUP_SOCK_ADDR, 29),
        ProgramSpec("lb_getpeername6", CGROUP_SOCK_ADDR, 30),
        ProgramSpec("lb_release", CGROUP_SOCK, 34),
    ),
}

#: Source files that only some definitions ask for: the file → the definition.
_OPTIONAL = {"services.bpf.c": "SOCKET_LB"}


def units(defines: Mapping[str, str]) -> dict[str, tuple[ProgramSpec, ...]]:
    """What of PROGRAMS is compiled and loaded with these definitions."""
    return {name: programs for name, programs in PROGRAMS.items() if _OPTIONAL.get(name, "") in ("", *defines)}


def program_names(defines: Mapping[str, str]) -> tuple[str, ...]:
    """Of all programs that are loaded with these definitions."""
    return tuple(spec.name for programs in units(defines).values() for spec in programs)


def flatten(name: str, seen: set[str] | None = None) -> str:
    """The text of `c/<name>` with its own headers included. Raises OSError when a file is missing."""
    seen = seen if seen is not None else set()
    out = [f'#line 1 "{name}"']
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            out.append("" if line.startswith("#pragma once") else line)
            continue
        if include[1] not in seen:
            seen.add(include[1])
            out.append(flatten(include[1], seen))
        out.append(f'#line {number + 1} "{name}"')
    return "\n".join(out)


def digest(defines: Mapping[str, str]) -> str:
    """Names what the programs are compiled from: sources, stub headers and definitions. 16 hex digits."""
    h = hashlib.sha256()
    for name in units(defines):
        h.update(flatten(name).encode())
    for header in sorted(STUBS.rglob("*.h")):
        h.update(header.read_bytes())
    h.update(msgspec.json.encode(sorted(defines.items())))
    return h.hexdigest()[:16]
