"""Programs from the cache are those that the compiler makes, wherever they are pinned; a bad file is compiled anew."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from spliceway.bpf import libbpf, progcache
from spliceway.bpf.install import measuring
from spliceway.bpf.loader import LoadReply, LoadRequest, load
from spliceway.bpf.progcache import Code

pytestmark = pytest.mark.kernel

_SIZES = dict.fromkeys(("MAX_ENDPOINTS", "MAX_IPCACHE", "MAX_ROWS", "MAX_PAIRS", "MAX_CONNECTIONS"), "64")
_SIZES |= dict.fromkeys(("MAX_FRONTENDS", "MAX_BACKENDS", "MAX_AFFINITIES"), "64")
_TAG = slice(8, 16)  # of struct bpf_prog_info


class Place:
    """A bpffs and a cache. `expected`: what the compiler made, which is in the cache now."""

    def __init__(self, bpffs: Path, cache: Path) -> None:
        self.bpffs, self.cache = bpffs, cache
        self.first, self.compiled = self.load("compiled")

    def load(self, name: str) -> tuple[LoadReply, Path]:
        root = self.bpffs / name
        root.mkdir()
        defines = {"PIN_ROOT": f'"{root}"', **_SIZES, "EVENT_BYTES": "4096", "SOCKET_LB": "1", **measuring()[0]}
        return asyncio.run(load(LoadRequest(str(root), defines, str(self.cache)))), root

    @property
    def file(self) -> Path:
        (path,) = self.cache.glob("*.programs")
        return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    bpffs = tmp_path_factory.mktemp("bpf")
    subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)
    try:
        yield Place(bpffs, tmp_path_factory.mktemp("cache") / "programs")
    finally:
        subprocess.run(["umount", str(bpffs)], check=True)


def tags(root: Path) -> dict[str, bytes]:
    """The kernel's digests of the instructions, maps left out."""
    found = {}
    for pin in (root / "staging").iterdir():
        fd, info, size = libbpf.open_pin(pin), (ctypes.c_uint8 * 232)(), ctypes.c_uint32(232)
        assert libbpf.library().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)) >= 0
        os.close(fd)
        found[pin.name] = bytes(info[_TAG])
    return found


def shapes(root: Path) -> dict[str, libbpf.MapInfo]:
    return {pin.name: libbpf.info_of(pin)._replace(id=0) for pin in (root / "maps").iterdir()}


def test_another_place_gets_the_same_programs_and_maps(place: Place) -> None:
    reply, root = place.load("again")
    assert (place.first.compiled, reply.compiled) == (True, False)
    assert (place.first.note, reply.note, reply.programs) == ("", "", place.first.programs)
    assert tags(root) == tags(place.compiled)
    assert shapes(root) == shapes(place.compiled)
    ids = [libbpf.info_of(where / "maps" / "policy").id for where in (root, place.compiled)]
    assert ids[0] != ids[1]


def test_maps_that_are_there_are_used(place: Place) -> None:
    _, root = place.load("used")
    before = libbpf.info_of(root / "maps" / "policy").id
    defines = {"PIN_ROOT": f'"{root}"', **_SIZES, "EVENT_BYTES": "4096", "SOCKET_LB": "1", **measuring()[0]}
    reply = asyncio.run(load(LoadRequest(str(root), defines, str(place.cache))))
    assert not reply.compiled
    assert libbpf.info_of(root / "maps" / "policy").id == before


def test_a_damaged_file_is_compiled_anew_and_replaced(place: Place) -> None:
    content = place.file.read_bytes()
    place.file.write_bytes(content[:-1])
    reply, root = place.load("damaged")
    assert reply.compiled
    assert reply.note == "compiled anew: its checksum is wrong"
    assert tags(root) == tags(place.compiled)
    assert not place.load("replaced")[0].compiled


def test_programs_that_the_kernel_refuses_are_compiled_anew(place: Place) -> None:
    """A whole file with a program that doesn't end: none of what it made before stays."""
    kept = progcache.load(place.cache, place.file.stem)
    assert kept is not None
    last = msgspec.structs.replace(kept.programs[-1], instructions=kept.programs[-1].instructions[:-8])
    maps = [msgspec.structs.replace(plan, max_entries=plan.max_entries and 8192) for plan in kept.maps]
    bad: list[Code] = [*kept.programs[:-1], last]
    progcache.store(place.cache, msgspec.structs.replace(kept, programs=bad, maps=maps))
    reply, root = place.load("refused")
    assert reply.compiled
    assert reply.note.startswith(f"compiled anew: load program {last.name}: ")
    assert tags(root) == tags(place.compiled)
    assert shapes(root) == shapes(place.compiled)
