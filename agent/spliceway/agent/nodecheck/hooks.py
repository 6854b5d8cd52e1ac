"""Programs and filters of others at the interfaces' TCX and clsact hooks, and which of them come before ours.

Behind ours they get what ours has passed. At pods' devices that matters more than at the node's: nobody looks again at
what is changed or sent elsewhere there, behind the last program of ours that a packet meets.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from spliceway.agent.nodecheck.model import Check, Status, Target, fail, info, ok, skipped, warn
from spliceway.bpf import linktable, loaded, tcx
from spliceway.bpf.attach import EGRESS, INGRESS, is_ours
from spliceway.bpf.devicechoice import NETWORK_PROGRAMS, choose
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.hookorder import CLSACT, TCX

_OURS = frozenset({"from_pod", "to_pod", "steered"}) | NETWORK_PROGRAMS
#: The priority of our filters.
_OUR_PRIORITY = 1
_SHOWN = 8
_FIRST = (Status.FAIL, Status.WARN, Status.INFO)
#: Devices whose other end a pod has.
_PAIRS = frozenset({"veth", "netkit"})
#: Beginnings of programs' names (the kernel keeps 15 characters) → whose they are.
_DATAPATHS = {"cil_": "Cilium's datapath", "calico_tc": "Calico's eBPF data plane"}
_WATCHERS = {f"{hook}_{side}_flow": "NetObserv" for hook in ("tc", "tcx") for side in ("ingress", "egress")}
#: What a program behind ours may do at a pod's device, by side.
_MAY = {
    "ingress": "what it rewrites is not judged again before the other end, what it redirects into a pod "
    "(bpf_redirect_peer) not at all; what goes to the proxy it does not see",
    "egress": "what it rewrites, the pod gets unjudged",
}


class Other(msgspec.Struct, frozen=True, order=True):
    """Somebody's at a hook. `kind`: tcx or clsact; `what`: of a filter its kind, else bpf; `priority` of a filter.

    `pods`: at pods' devices.
    """

    kind: str
    side: str
    what: str
    name: str
    priority: int = 0
    pods: bool = False

    def __str__(self) -> str:
        if self.kind == TCX:
            return f"TCX program {self.name or '(no name)'} at {self.side}"
        named = f" {self.name}" if self.name else ""
        return f"{self.what} filter{named} of priority {self.priority} at {self.side}"


def tc_programs(target: Target) -> Iterator[Check]:
    """Whose they are, and whether they come before ours."""
    try:
        has_tcx = tcx.supported()
        found = read(of_pods(target), has_tcx=has_tcx)
    except DatapathError as error:
        yield skipped("tc-programs", str(error))
        return
    yield from judge(found, by_tcx=has_tcx and target.settings.tcx == "auto", has_tcx=has_tcx)


def of_pods(target: Target) -> frozenset[str]:
    """Names of the devices whose other end is in another network namespace, and by which nothing comes from outside.

    Of containers that are no pods of ours, too. None where interfaces can't be listed.
    """
    try:
        found = linktable.devices()
        kinds = (choose(found, wanted, (), linktable.leads_out) for wanted in (target.settings.devices, "auto"))
        taken = {one.device.name for choices in kinds for one in choices if one.program}
    except OSError:
        return frozenset()
    return frozenset(one.name for one in found if one.kind in _PAIRS and one.foreign) - taken


def read(pods: Collection[str], *, has_tcx: bool) -> dict[Other, list[str]]:
    """All that are not ours → the interfaces of this network namespace that have them. Raises KernelRefusedError."""
    found: dict[Other, list[str]] = {}
    for index, device in socket.if_nameindex():
        for each in _at(index, has_tcx=has_tcx):
            there = found.setdefault(msgspec.structs.replace(each, pods=device in pods), [])
            if device not in there:
                there.append(device)
    return found


def judge(found: Mapping[Other, Sequence[str]], *, by_tcx: bool, has_tcx: bool) -> Iterator[Check]:
    """From who is where. `by_tcx`: ours are, or would be, attached by TCX; `has_tcx`: the kernel has it."""
    name = "tc-programs"
    results = [_judge(name, one, devices, by_tcx=by_tcx) for one, devices in sorted(found.items())]
    results.sort(key=lambda check: _FIRST.index(check.status))
    yield from results[:_SHOWN]
    if len(results) > _SHOWN:
        yield info(name, f"{len(results) - _SHOWN} more", "bpftool net; tc filter show dev DEVICE ingress (egress)")
    if not results:
        how = "TCX" if by_tcx else "clsact filters" if has_tcx else "clsact filters (Linux 6.6 has TCX)"
        yield ok(name, f"nobody else has programs or filters at interfaces; ours are attached by {how}")


def _judge(name: str, one: Other, devices: Sequence[str], *, by_tcx: bool) -> Check:
    owner = _owner(one.name, _DATAPATHS | _WATCHERS)
    where = f"pods' devices: {_some(devices)}" if one.pods else _some(devices)
    told = f"{one} ({owner}), {where}" if owner else f"{one}, {where}"
    if one.kind == TCX and not by_tcx:
        todo = "set datapath.tcx to auto: until then it comes before ours, and what it accepts is not judged"
        return warn(name, told, todo)
    if one.kind == CLSACT and not by_tcx and one.priority <= _OUR_PRIORITY and one.what != "bpf":
        todo = "give it another priority: ours can't be attached beside it (Linux 6.6 and datapath.tcx: auto can)"
        return fail(name, told, todo)
    if one.pods:
        return _behind_at_pods(name, one, told)
    if one.kind == TCX:
        return info(name, told, "nothing: ours goes in front of it, and it gets what ours passes")
    if by_tcx or one.priority > _OUR_PRIORITY:
        return info(name, told, "nothing: ours comes before it, and it gets what ours passes")
    return info(name, told, "nothing: ours goes in front of it; with priority 2 or more it would stay behind")


def _behind_at_pods(name: str, one: Other, told: str) -> Check:
    """Of one that gets what ours has passed at a pod's device."""
    if _owner(one.name, _WATCHERS):
        seen = "; what goes to the proxy it does not see" if one.side == "ingress" else ""
        return info(name, told, f"nothing: it only looks, at what ours passes{seen}")
    if _owner(one.name, _DATAPATHS):
        return warn(name, told, f"switch it off for these pods: {_MAY[one.side]}")
    if one.what == "bpf":
        return info(name, told, f"ask its owner what it does besides looking and dropping: {_MAY[one.side]}")
    return info(name, told, f"see its actions (tc filter show): {_MAY[one.side]}")


def _owner(program: str, known: Mapping[str, str]) -> str:
    return next((owner for start, owner in known.items() if program.startswith(start)), "")


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
