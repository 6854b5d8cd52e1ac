"""Interfaces by which packets for pods come from outside, as the agent takes them, and those that it would miss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from spliceway.agent.nodecheck.model import Check, Target, ok, warn
from spliceway.agent.nodecheck.reading import Unreadable
from spliceway.bpf import linktable, record
from spliceway.bpf.devicechoice import Choice, Wanted, choose, missing
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.libbpf import BpfMap
from spliceway.bpf.linktable import Device
from spliceway.bpf.netns import current_cookie


def devices(target: Target) -> Iterator[Check]:
    """What `datapath.devices` means on this node now."""
    found = _all()
    try:
        checks = list(judge(found, target.settings.devices, linktable.leads_out, _endpoints(target.settings.bpffs)))
    except OSError as error:
        raise Unreadable(f"routes can't be listed: {error}") from error
    yield from checks


def judge(
    found: Sequence[Device], wanted: Wanted, leads_out: Callable[[int], bool], endpoints: Collection[int] = ()
) -> Iterator[Check]:
    """From all interfaces; `endpoints`: indexes of those that an agent has as endpoints' own."""
    name = "devices"
    taken = [one for one in choose(found, wanted, endpoints, leads_out) if one.program]
    if taken:
        yield ok(name, ", ".join(map(told, taken)))
    else:
        todo = "set datapath.devices to the interfaces by which other nodes and the world reach this one"
        yield warn(name, "none: what comes from outside is judged and steered at the pods only", todo)
    for pattern in missing(found, wanted):
        yield warn(name, f"no interface is called {pattern}", "correct datapath.devices, or leave it at auto")
    names = {one.device.name for one in taken}
    for one in choose(found, "auto", endpoints, leads_out):
        if one.program and one.device.name not in names:
            what = f"{told(one)} is not in datapath.devices: what comes by it is judged and steered at the pods only"
            yield warn(name, what, f"add {one.device.name} to datapath.devices, or leave it at auto")


def told(choice: Choice) -> str:
    """«flannel.1 (vxlan)», «wg0 (wireguard, no Ethernet header)»."""
    notes = [choice.device.kind] if choice.device.kind else []
    notes += [] if choice.device.ethernet else ["no Ethernet header"]
    return choice.device.name + (f" ({', '.join(notes)})" if notes else "")


def kinds() -> dict[str, str]:
    """Name → kind (bridge, vxlan, veth …), empty for hardware. Raises Unreadable."""
    return {one.name: one.kind for one in _all()}


def _endpoints(bpffs: Path) -> frozenset[int]:
    """Interfaces of endpoints, as the agent has them that runs or has been here; none before the first one."""
    try:
        root = record.live(bpffs)
        if root is None or record.netns(bpffs) != current_cookie():
            return frozenset()
        opened = BpfMap.open(root / "maps" / "endpoints", "endpoints")
    except (DatapathError, OSError):  # as for others than root
        return frozenset()
    try:
        return frozenset(int.from_bytes(key, "little") for key in list(opened.keys()))
    finally:
        opened.close()


def _all() -> list[Device]:
    """By netlink: /sys shows interfaces of the namespace of whoever mounted it."""
    try:
        return linktable.devices()
    except OSError as error:
        raise Unreadable(f"interfaces can't be listed: {error}") from error
