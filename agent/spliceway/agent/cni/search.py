"""Pods that were wired before anybody told us: found by their processes, or by their addresses. Blocking.

A pod with a uid is looked for in the kubelet's cgroups: which cgroup a process is in, no pod can choose. Its network
namespace is the one of these in which an interface has its other end on the node: that, too, no pod can make. Without a
uid (manifests in a directory) all namespaces of the node are looked through for the address. That could be claimed by a
pod that may configure its own interfaces, so where two namespaces have it, nobody gets it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import structlog

from spliceway.agent.cni.veth import OWN, HostSide, Inside, inode, inside, other_end
from spliceway.agent.cni.wirings import Wiring
from spliceway.agent.endpoints import Claim
from spliceway.bpf import linktable
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.linktable import Device
from spliceway.policy.model import Pod

#: Where runtimes keep namespaces; names there outlive the processes.
NAMED = Path("/run/netns")
_PROC = Path("/proc")
#: Most namespaces that one search looks into; most processes of a pod, and of one of its cgroups: a container with
#: thousands of them must not stand before the pod's others.
MAX_NAMESPACES, MAX_PROCESSES, MAX_TOGETHER = 4096, 4096, 64
#: Directories between the pods' cgroup and a pod's: the class of service.
_DEPTH = 2

log = structlog.get_logger(__name__)


class _End(NamedTuple):
    """An interface in a namespace, and the node's end of it, if it has one."""

    number: int
    path: Path
    device: Device | None
    has_address: bool


class Search:
    """One look at the node, for several pods. `released`: namespaces that count no more."""

    def __init__(self, cgroup: Path, released: frozenset[int]) -> None:
        self._cgroup = cgroup
        self._skip = released | {inode(OWN)}
        self._devices = linktable.devices()
        self._inside: dict[int, Inside | None] = {}
        self._named = dict(_inodes(NAMED.glob("*")))

    def find(self, wanted: Mapping[str, tuple[Pod, Claim]]) -> list[Wiring]:
        """The wirings of these pods, as far as they can be found."""
        found = []
        cgroups = _pod_cgroups(self._cgroup, {uid for _pod, claim in wanted.values() for uid in claim.uids})
        everywhere: dict[int, Path] | None = None
        for name, (pod, claim) in wanted.items():
            if claim.uids:
                places = {
                    number: path
                    for uid in claim.uids
                    for cgroup in cgroups.get(uid, ())
                    for number, path in _inodes(_namespaces(cgroup))
                }
            else:
                places = everywhere = everywhere if everywhere is not None else self._everywhere()
            if wiring := self._wiring(name, pod, claim, places):
                found.append(wiring)
        return found

    def _wiring(self, name: str, pod: Pod, claim: Claim, places: Mapping[int, Path]) -> Wiring | None:
        found = [end for number, path in places.items() for end in self._ends(number, path, pod, bool(claim.uids))]
        if not found:
            return None
        if not claim.uids and sum(end.device is not None for end in found) > 1:
            log.warning("several namespaces have the address of a pod, which is in none of them", pod=name)
            return None
        best = min(found, key=lambda end: (end.device is None, not end.has_address))
        interface, ifindex = (best.device.name, best.device.ifindex) if best.device else ("", 0)
        uid = claim.uids[0] if claim.uids else ""
        netns = self._named.get(best.number, best.path)
        side, ips = HostSide(interface, ifindex, best.number), tuple(map(str, pod.addresses))
        return Wiring(name, uid, "", "", netns, side, ips)

    def _ends(self, number: int, path: Path, pod: Pod, trusted: bool) -> Iterator[_End]:
        """Interfaces by which the pod may be reached; `trusted`: its processes are in that namespace."""
        content = self._look(number, path) if number not in self._skip else None
        if content is None:
            return
        for own in content.devices:
            has = any(index == own.ifindex and each in pod.addresses for index, each in content.addresses)
            if not has and (not trusted or not own.foreign):
                continue
            try:
                device = other_end(own, self._devices, path)
            except OSError:
                return  # it is going
            if device is not None or trusted:
                yield _End(number, path, device, has)

    def _look(self, number: int, path: Path) -> Inside | None:
        if number not in self._inside:
            self._inside[number] = None
            with contextlib.suppress(OSError, DatapathError):  # it may be going
                self._inside[number] = inside(path) if len(self._inside) <= MAX_NAMESPACES else None
        return self._inside[number]

    def _everywhere(self) -> dict[int, Path]:
        processes = (Path(entry.path, "ns/net") for entry in os.scandir(_PROC) if entry.name.isdigit())
        return {**dict(_inodes(processes)), **self._named}


def kept() -> frozenset[int]:
    """Inodes of the namespaces that have a name, as runtimes give them one."""
    return frozenset(number for number, _path in _inodes(NAMED.glob("*")))


def _inodes(paths: Iterable[Path]) -> Iterator[tuple[int, Path]]:
    for path in paths:
        try:
            yield inode(path), path
        except OSError:
            continue  # it went meanwhile


def _pod_cgroups(root: Path, uids: set[str]) -> dict[str, list[Path]]:
    """The cgroups of pods by uid: `pod<uid>`, or with the systemd driver `kubepods-burstable-pod<uid>.slice`.

    Several, where an empty one is left of another driver.
    """
    wanted = {f"pod{form}": uid for uid in uids for form in (uid, uid.replace("-", "_"))}
    found: dict[str, list[Path]] = {}
    level = [root]
    for _ in range(_DEPTH if wanted else 0):
        below: list[Path] = []
        for directory in level:
            try:
                entries = [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            for path in entries:
                short = path.name.removesuffix(".slice").rpartition("-")[2] if path.suffix == ".slice" else path.name
                uid = wanted.get(short)
                if uid is None:
                    below.append(path)
                else:
                    found.setdefault(uid, []).append(path)
        level = below
    return found


def _namespaces(cgroup: Path) -> Iterator[Path]:
    """Network namespaces of the processes in a cgroup and below it."""
    left = MAX_PROCESSES
    for directory, _names, _files in os.walk(cgroup):
        try:
            processes = Path(directory, "cgroup.procs").read_text().split()
        except OSError:
            continue
        some = processes[: min(left, MAX_TOGETHER)]
        for process in some:
            if process != "0":  # one of another pid namespace
                yield _PROC / process / "ns/net"
        left -= len(some)


def reported(unfound: Iterable[str], wirings: Iterable[Wiring]) -> tuple[str, ...]:
    """Pods of this node that no policy covers, with why. Pure."""
    without = (f"{one.pod}: no end of its interface is on the node" for one in wirings if not one.side.interface)
    return (*sorted(without), *(f"{name}: its interface was not found" for name in sorted(unfound)))
