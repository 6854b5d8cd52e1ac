"""Programs and filters of others at the interfaces' TCX and clsact hooks, and which of them come before ours."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn
from spliceway.bpf import loaded, tcx
from spliceway.bpf.attach import EGRESS, INGRESS, is_ours
from spliceway.bpf.devicechoice import NETWORK_PROGRAMS
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.hookorder import CLSACT, TCX

_OURS = frozenset({"from_pod", "to_pod", "steered"}) | NETWORK_PROGRAMS
#: The priority of our filters.
_OUR_PRIORITY = 1
_SHOWN = 8


class Other(msgspec.Struct, frozen=True, order=True):
    """Somebody's at a hook. `kind`: tcx or clsact; `what`: of a filter its kind, else bpf; `priority` of a filter."""

    kind: str
    side: str
    what: str
    name: str
    priority: int = 0

    def __str__(self) -> str:
        if self.kind == TCX:
            return f"TCX program {self.name or '(no name)'} at {self.side}"
        named = f" {self.name}" if self.name else ""
        return f"{self.what} filter{named} of priority {self.priority} at {self.side}"


def tc_programs(target: Target) -> Iterator[Check]:
    """Whose they are, and whether they come before ours."""
    try:
        has_tcx = tcx.supported()
        found = read(has_tcx=has_tcx)
    except DatapathError as error:
        yield skipped("tc-programs", str(error))
        return
    yield from judge(found, by_tcx=has_tcx and target.settings.tcx == "auto", has_tcx=has_tcx)


def read(*, has_tcx: bool) -> dict[Other, list[str]]:
    """All that are not ours → the interfaces of this network namespace that have them. Raises KernelRefusedError."""
    found: dict[Other, list[str]] = {}
    for index, device in socket.if_nameindex():
        for each in _at(index, has_tcx=has_tcx):
            there = found.setdefault(each, [])
            if device not in there:
                there.append(device)
    return found


def judge(found: Mapping[Other, Sequence[str]], *, by_tcx: bool, has_tcx: bool) -> Iterator[Check]:
    """From who is where. `by_tcx`: ours are, or would be, attached by TCX; `has_tcx`: the kernel has it."""
    name = "tc-programs"
    results = [_judge(name, one, devices, by_tcx=by_tcx) for one, devices in sorted(found.items())]
    yield from results[:_SHOWN]
    if len(results) > _SHOWN:
        yield info(name, f"{len(results) - _SHOWN} more", "bpftool net; tc filter show dev DEVICE ingress (egress)")
    if not results:
        how = "TCX" if by_tcx else "clsact filters" if has_tcx else "clsact filters (Linux 6.6 has TCX)"
        yield ok(name, f"nobody else has programs or filters at interfaces; ours are attached by {how}")


def _judge(name: str, one: Other, devices: Sequence[str], *, by_tcx: bool) -> Check:
    told = f"{one}, {_some(devices)}"
    if one.kind == TCX and not by_tcx:
        todo = "set datapath.tcx to auto: until then it comes before ours, and what it accepts is not judged"
        return warn(name, told, todo)
    if one.kind == TCX:
        return info(name, told, "nothing: ours goes in front of it, and it gets what ours passes")
    if by_tcx or one.priority > _OUR_PRIORITY:
        return info(name, told, "nothing: ours comes before it, and it gets what ours passes")
    if one.what != "bpf":
        todo = "give it another priority: ours can't be attached beside it (Linux 6.6 and datapath.tcx: auto can)"
        return fail(name, told, todo)
    return info(name, told, "nothing: ours goes in front of it; with priority 2 or more it would stay behind")


def _at(index: int, *, has_tcx: bool) -> Iterator[Other]:
    for side, attach_type, parent in (("ingress", tcx.INGRESS, INGRESS), ("egress", tcx.EGRESS, EGRESS)):
        try:
            programs = tcx.query(index, attach_type) if has_tcx else []
        except KernelRefusedError as error:
            if error.errno != errno.ENODEV:  # it went meanwhile
                raise
            continue
        for one in programs:
            if (name := loaded.program_name(one.program)) not in _OURS:
                yield Other(TCX, side, "bpf", name)
        for each in filters(index, parent):
            if not is_ours(each):
                yield Other(CLSACT, side, each.kind, each.name, each.priority)


def _some(devices: Sequence[str]) -> str:
    shown = ", ".join(devices[:4])
    return shown if len(devices) <= 4 else f"{shown} and {len(devices) - 4} more"
