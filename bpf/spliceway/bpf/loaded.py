"""What is loaded in the kernel, whoever loaded it: programs and maps by id, what is attached to a cgroup.

Looking changes nothing: a descriptor is opened for the moment, and closed.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import msgspec

from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.libbpf import library

_QUERY_EFFECTIVE = 1
_ROOM = 256
_IDS = re.compile(r"^(prog_id|map_id):\s*(\d+)$", re.MULTILINE)


class ProgramType(IntEnum):
    """Types of programs that can meet ours on a socket (`enum bpf_prog_type`)."""

    SOCK_OPS = 13
    SK_SKB = 14
    SK_MSG = 16

    @property
    def label(self) -> str:
        """As bpftool says it."""
        return self.name.lower()


class MapType(IntEnum):
    """Types of maps that hold sockets (`enum bpf_map_type`)."""

    SOCKMAP = 15
    SOCKHASH = 18

    @property
    def label(self) -> str:
        """As bpftool says it."""
        return self.name.lower()


class LoadedProgram(msgspec.Struct, frozen=True):
    """A program. `maps`: ids of the maps that it uses."""

    id: int
    kind: ProgramType
    name: str
    maps: tuple[int, ...]


class LoadedMap(msgspec.Struct, frozen=True):
    """A map of sockets."""

    id: int
    kind: MapType
    name: str


class _ProgramInfo(ctypes.Structure):
    # struct bpf_prog_info (linux/bpf.h), as far as it is asked for
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_len", ctypes.c_uint32),
        ("xlated_len", ctypes.c_uint32),
        ("jited", ctypes.c_uint64),
        ("xlated", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class _MapInfo(ctypes.Structure):
    # struct bpf_map_info (linux/bpf.h), as far as it is asked for
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("sizes", ctypes.c_uint32 * 4),
        ("name", ctypes.c_char * 16),
    )


def programs() -> list[LoadedProgram]:
    """All programs of the types above. Raises KernelRefusedError (CAP_SYS_ADMIN is needed to walk through the ids)."""
    found = []
    for descriptor in _walk("prog"):
        info = _program_info(descriptor)
        if info is not None:
            found.append(info)
    return found


def socket_maps() -> list[LoadedMap]:
    """All sockmaps and sockhashes. Raises KernelRefusedError."""
    found = []
    kinds = set(MapType)
    for descriptor in _walk("map"):
        info = _MapInfo()
        if _info(descriptor, info) and info.type in kinds:
            found.append(LoadedMap(info.id, MapType(info.type), info.name.decode(errors="replace")))
    return found


def pinned_id(path: Path) -> tuple[str, int] | None:
    """(«prog» or «map», id) of a pinned object; None for what is no such pin, or can't be opened."""
    descriptor = library().bpf_obj_get(str(path).encode())
    if descriptor < 0:
        return None
    try:
        found = _IDS.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text())
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return (found[1].removesuffix("_id"), int(found[2])) if found else None


def program_name(number: int) -> str:
    """Name of a program by its id; empty when it has none, is gone, or may not be looked at (CAP_SYS_ADMIN)."""
    with _closing(library().bpf_prog_get_fd_by_id(number)) as descriptor:
        info = _ProgramInfo()
        return info.name.decode(errors="replace") if descriptor >= 0 and _info(descriptor, info) else ""


def pins(directory: Path, limit: int = 10_000) -> Iterator[tuple[Path, str, int]]:
    """What is pinned below a directory: path, «prog» or «map» (also what a link has attached), id."""
    count = 0
    for parent, _, files in os.walk(directory):
        for name in files:
            count += 1
            if count > limit:
                return
            path = Path(parent) / name
            if not path.is_symlink() and (found := pinned_id(path)):
                yield path, *found


def name_of(number: int) -> str:
    """A program's name by its id; empty when it has gone."""
    info = _ProgramInfo()
    with _closing(library().bpf_prog_get_fd_by_id(number)) as descriptor:
        return info.name.decode(errors="replace") if descriptor >= 0 and _info(descriptor, info) else ""


def of_cgroup(directory: Path, attach_type: int, *, effective: bool) -> list[int]:
    """Ids of the programs of that attach type at a cgroup; `effective`: with those of its parents.

    Raises KernelRefusedError.
    """
    return _query(directory, attach_type, _QUERY_EFFECTIVE if effective else 0)


def _query(target: Path, attach_type: int, flags: int) -> list[int]:
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelRefusedError(f"open {target}", error.errno or 0) from error
    try:
        ids, count = (ctypes.c_uint32 * _ROOM)(), ctypes.c_uint32(_ROOM)
        if library().bpf_prog_query(descriptor, attach_type, flags, None, ids, ctypes.byref(count)) < 0:
            raise KernelRefusedError(f"ask for programs at {target}", ctypes.get_errno(), "needs CAP_NET_ADMIN")
        return list(ids[: count.value])
    finally:
        os.close(descriptor)


def _walk(kind: str) -> Iterator[int]:
    """Descriptors of all objects, one after the other, each closed when the next is asked for."""
    following: Callable[..., int] = getattr(library(), f"bpf_{kind}_get_next_id")
    opened: Callable[..., int] = getattr(library(), f"bpf_{kind}_get_fd_by_id")
    number = ctypes.c_uint32(0)
    while following(number, ctypes.byref(number)) >= 0:
        with _closing(opened(number)) as descriptor:
            if descriptor >= 0:  # it may have gone
                yield descriptor
    if (error := ctypes.get_errno()) != errnos.ENOENT:
        raise KernelRefusedError(f"list what is loaded ({kind})", error, "needs CAP_SYS_ADMIN")


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _info(descriptor: int, info: ctypes.Structure) -> bool:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    return bool(library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)) >= 0)


def _program_info(descriptor: int) -> LoadedProgram | None:
    ids, info = (ctypes.c_uint32 * _ROOM)(), _ProgramInfo()
    info.nr_map_ids, info.map_ids = _ROOM, ctypes.addressof(ids)
    if not _info(descriptor, info) or info.type not in set(ProgramType):
        return None
    maps = tuple(ids[: min(info.nr_map_ids, _ROOM)])
    return LoadedProgram(info.id, ProgramType(info.type), info.name.decode(errors="replace"), maps)
