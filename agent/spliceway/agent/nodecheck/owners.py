"""Other owners of sockets: programs on our cgroups, and everything that is a sockmap or works on one."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from spliceway.agent.nodecheck.model import Check, Target, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, directories_below, text
from spliceway.agent.nodecheck.texts import fdinfo, mounts
from spliceway.bpf import libbpf, loaded
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.loaded import LoadedMap, LoadedProgram
from spliceway.bpf.source import PROGRAMS
from spliceway.bpf.views import other_owner_count

#: Names of ours: those that are pinned nowhere we know are another node's, or of a version before.
_OUR_NAMES = {spec.name[:15] for specs in PROGRAMS.values() for spec in specs} | {"socks"}
#: How many cgroups below that of the pods are looked at.
_CGROUPS = 4096
_SHOWN = 8
_BPF_FILES = ("anon_inode:bpf-prog", "anon_inode:bpf-map", "anon_inode:bpf_link")
_HARM = "a socket has one sockmap program only: such connections stay on TCP (other-owner)"


class Holders:
    """Who pins or holds an object: («prog» or «map», id) → words for people."""

    def __init__(self, places: Mapping[tuple[str, int], Collection[str]]) -> None:
        self._places = places

    def of(self, kind: str, number: int) -> str:
        """« (pinned at …, held by …)», or nothing."""
        found = list(self._places.get((kind, number), ()))
        return f" ({', '.join(found[:4])})" if found else ""


class Seen(msgspec.Struct, frozen=True):
    """All that is loaded. `ours`: what is pinned below our root; `ours` and `held` by («prog» or «map», id)."""

    programs: tuple[LoadedProgram, ...]
    maps: tuple[LoadedMap, ...]
    ours: frozenset[tuple[str, int]]


def owners(target: Target) -> Iterator[Check]:
    """Programs on our two cgroups, then all sockmaps."""
    try:
        seen, holders = read(target.settings.bpffs)
    except DatapathError as error:
        yield skipped("sockmaps", str(error))
        return
    if target.configured:
        try:
            yield from judge_cgroups(_attached(target), seen, holders)
        except DatapathError as error:
            yield skipped("cgroup-programs", str(error))
    yield from judge_sockmaps(seen, holders)
    yield from _counted(target.settings.bpffs)


def judge_cgroups(attached: Mapping[int, str], seen: Seen, holders: Holders) -> Iterator[Check]:
    """From the ids of sock_ops programs that run for our cgroups, and where. With a sockmap they take sockets."""
    known = {each.id: each for each in seen.programs}
    sockmaps = {each.id: each for each in seen.maps}
    name, clean = "cgroup-programs", True
    for number, where in attached.items():
        program = known.get(number)
        if ("prog", number) in seen.ours or program is None:
            continue
        clean = False
        told = f"sock_ops program {program.name} (id {number}) at {where}{holders.of('prog', number)}"
        uses = [sockmaps[each] for each in program.maps if each in sockmaps]
        if uses:
            of = ", ".join(f"{each.kind.label} {each.name}" for each in uses)
            todo = "keep it from the pods' and the proxy's cgroup; connections that it takes stay on TCP (other-owner)"
            yield warn(name, f"{told} puts sockets into {of}", todo)
        else:
            yield info(name, told, "nothing, as long as it puts no sockets into a sockmap")
    if clean:
        yield ok(name, "no sock_ops program but ours")


def judge_sockmaps(seen: Seen, holders: Holders) -> Iterator[Check]:
    """From all programs and maps of sockets that are not ours."""
    name = "sockmaps"
    theirs: list[Check] = []
    strangers = 0
    everything: tuple[LoadedMap | LoadedProgram, ...] = (*seen.maps, *seen.programs)
    for each in everything:
        kind = "map" if isinstance(each, LoadedMap) else "prog"
        if (kind, each.id) in seen.ours or each.kind is loaded.ProgramType.SOCK_OPS:
            continue  # of sock_ops is told where they run
        if each.name in _OUR_NAMES:
            strangers += 1
            continue
        told = f"{each.kind.label} {each.name} (id {each.id}){holders.of(kind, each.id)}"
        theirs.append(warn(name, told, f"if it takes sockets of pods, take it out: {_HARM}"))
    yield from theirs[:_SHOWN]
    if len(theirs) > _SHOWN:
        yield warn(name, f"{len(theirs) - _SHOWN} more", "bpftool prog list; bpftool map list")
    if strangers:
        found = f"{strangers} with Spliceway's names and not pinned below our root"
        yield info(name, found, "nothing: another node's agent on this machine, or sockets of before an upgrade")
    if not theirs:
        yield ok(name, "nobody else has sockmaps")


def read(bpffs: Path) -> tuple[Seen, Holders]:
    """What is loaded, and by whom as far as it is visible. Raises KernelRefusedError."""
    programs, maps = loaded.programs(), loaded.socket_maps()
    wanted = {("prog", each.id) for each in programs} | {("map", each.id) for each in maps}
    places: dict[tuple[str, int], dict[str, None]] = {}
    ours = set()
    for mount in _bpf_mounts():
        for path, kind, number in loaded.pins(mount):
            if (kind, number) in wanted:
                places.setdefault((kind, number), {})[f"pinned at {path}"] = None
                if path.is_relative_to(bpffs / "spliceway"):
                    ours.add((kind, number))
    for key, who in _descriptors():
        if key in wanted:
            places.setdefault(key, {})[f"held by {who}"] = None
    return Seen(tuple(programs), tuple(maps), frozenset(ours)), Holders(places)


def _attached(target: Target) -> dict[int, str]:
    """Ids of sock_ops programs → where they are: above, at or below our cgroups."""
    found: dict[int, str] = {}
    for path in target.cgroups.values():
        if not path.is_dir():
            continue
        for number in loaded.of_cgroup(path, libbpf.BPF_CGROUP_SOCK_OPS, effective=True):
            found.setdefault(number, f"{path} or above")
        for below in directories_below(path, _CGROUPS):
            try:
                numbers = loaded.of_cgroup(below, libbpf.BPF_CGROUP_SOCK_OPS, effective=False)
            except DatapathError:
                continue  # it has gone
            for number in numbers:
                if number not in found or below == path:
                    found[number] = str(below)
    return found


def _counted(bpffs: Path) -> Iterator[Check]:
    """How many connections stayed on TCP for it, as our own programs counted."""
    name = "other-owner"
    try:
        count = other_owner_count(bpffs)
    except KernelRefusedError as error:
        none = error.errno == errno.ENOENT
        yield skipped(name, "no agent of this version has counted here yet" if none else str(error))
        return
    if count:
        yield warn(name, f"{count} connections stayed on TCP", "see cgroup-programs and sockmaps: who it is")
    else:
        yield ok(name, "no connection stayed on TCP for another program's sockmap")


def _bpf_mounts() -> list[Path]:
    try:
        return list(
            dict.fromkeys(each.path for each in mounts(text(Path("/proc/self/mountinfo"))) if each.kind == "bpf")
        )
    except Unreadable:
        return []


def _descriptors() -> Iterator[tuple[tuple[str, int], str]]:
    """Programs and maps that processes have open: («prog» or «map», id), «NAME (pid N)»."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            for one in (process / "fd").iterdir():
                if not str(one.readlink()).startswith(_BPF_FILES):
                    continue
                ids = fdinfo((process / "fdinfo" / one.name).read_text())
                who = f"{(process / 'comm').read_text().strip()} (pid {process.name})"
                for kind in ("prog", "map"):
                    if f"{kind}_id" in ids:
                        yield (kind, ids[f"{kind}_id"]), who
        except OSError:
            continue  # it has ended, or is not ours to see
