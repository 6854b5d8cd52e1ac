"""What a pod's device must be, and which further interfaces of pods no policy covers.

Policy is enforced at one device of each pod, the one that its endpoint names. Multus and its like give a pod more of
them (net1): what passes there meets none of our programs. So it is said.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import structlog

from spliceway.bpf import linktable, tcx
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.linktable import Device
from spliceway.bpf.loaded import program_name
from spliceway.bpf.netns import call_in
from spliceway.bpf.rows import Attached

#: BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER (Linux 6.7)
_NETKIT_TYPES = (54, 55)
#: Seconds between two looks into the pods: an interface that is plugged in later is rare.
INTERVAL = 60.0

_log = structlog.get_logger(__name__)


def usable(index: int) -> Device:
    """The device for an endpoint. Raises DatapathError when our programs could not do their work there."""
    found = next((one for one in linktable.devices() if one.ifindex == index), None)
    if found is None:
        raise DatapathError(f"interface {index} is gone")
    told = f"interface {found.name}" + (f" ({found.kind})" if found.kind else "")
    if not found.ethernet:
        raise DatapathError(
            f"{told}: its packets have no Ethernet header (link type {found.hardware:#x}); a pod's device must be a "
            "veth or netkit, or something like them"
        )
    if found.kind == "netkit" and (others := _netkit_programs(index)):
        raise DatapathError(
            f"{told}: {', '.join(others)} runs inside of the device, before any program at its hooks: what it "
            "redirects would not be judged; end whoever attached it"
        )
    return found


def leads_elsewhere(device: Device, own: int) -> bool:
    """Whether packets leave a pod by this interface, and not by its device `own` or another one of the pod. Pure."""
    if device.hardware == linktable.LOOPBACK or device.ifindex == own:
        return False
    return device.foreign or not device.kind


class Uncovered:
    """Which further interfaces there are, as of the last look."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, ...]] = {}
        self._looked: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Uncovered({self._found})"

    @property
    def told(self) -> tuple[str, ...]:
        """«default/client: net1 (macvlan)», one for each pod that has such."""
        return tuple(f"{pod}: {', '.join(names)}" for pod, names in sorted(self._found.items()) if names)

    def look(self, endpoints: Iterable[Attached]) -> None:
        """Look at those of these endpoints that are new, or were looked at a while ago, and forget all others. Blocks.

        A pod that can't be looked into is going.
        """
        now, known = time.monotonic(), {one.endpoint.name: one for one in endpoints}
        self._found = {name: found for name, found in self._found.items() if name in known}
        self._looked = {name: seen for name, seen in self._looked.items() if name in known}
        due = [one for name, one in known.items() if now - self._looked.get(name, -INTERVAL) >= INTERVAL]
        if not due:
            return
        with contextlib.suppress(OSError):
            peers = {one.ifindex: one.peer for one in linktable.devices()}
            for one in due:
                self._looked[one.endpoint.name] = now
                with contextlib.suppress(DatapathError, OSError):
                    self._note(
                        one.endpoint.name, call_in(one.endpoint.netns, linktable.devices), peers.get(one.ifindex, 0)
                    )

    def _note(self, pod: str, devices: Iterable[Device], own: int) -> None:
        names = tuple(f"{one.name} ({one.kind or 'hardware'})" for one in devices if leads_elsewhere(one, own))
        if names and self._found.get(pod) != names:
            _log.warning("a pod has interfaces that no policy covers", pod=pod, interfaces=names)
        self._found[pod] = names


def _netkit_programs(index: int) -> list[str]:
    found = []
    for kind in _NETKIT_TYPES:
        try:
            found += [program_name(one.program) or f"program id {one.program}" for one in tcx.query(index, kind)]
        except KernelRefusedError:
            continue  # this end has none to ask for
    return found
