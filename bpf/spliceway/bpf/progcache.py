"""Compiled programs that are kept, so that the compiler runs once for each kernel and each set of programs.

A file has a line with the checksum of what follows, then a `Compiled` as MessagePack. Where an instruction names a map
by its descriptor, the file has the map's name: with that, the programs can be loaded for any place below any bpffs.
What is read becomes the node's policy enforcement, so only this user's own files count (see `ownfiles`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from spliceway.bpf import ownfiles
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.source import digest, units

#: Files that stay, those that were used last, of 1 MB each: an agent and its self-test need one each, before and after
#: an upgrade or a change of sizes. Virtual nodes share a directory, each with sizes of its own.
KEPT = 32
_SUFFIX = ".programs"
_LOAD_WIDE, _MAP_BY_FD, _INSTRUCTION = 0x18, 1, 8  # BPF_LD | BPF_IMM | BPF_DW, BPF_PSEUDO_MAP_FD, bytes


class DamagedError(DatapathError):
    """A file, or a program, is not as it should be."""


class MapPlan(msgspec.Struct, frozen=True):
    """How to make a map. `source`: the file whose own it is; empty: pinned and shared.

    `types`: index in `Compiled.types`, -1 for none; `key_type` and `value_type`: numbers in that.
    """

    name: str
    source: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    types: int
    key_type: int
    value_type: int

    @property
    def label(self) -> str:
        """What programs call it."""
        return f"{self.source}/{self.name}" if self.source else self.name


class Code(msgspec.Struct, frozen=True):
    """A program's instructions; `maps`: the instruction's number → label of the map that it names."""

    name: str
    instructions: bytes
    maps: dict[int, str]


class Compiled(msgspec.Struct, frozen=True):
    """All programs and their maps; `types` are BTF objects."""

    key: str
    types: list[bytes]
    maps: list[MapPlan]
    programs: list[Code]


def key(defines: Mapping[str, str]) -> str:
    """What the compiled programs depend on: sources, definitions except for PIN_ROOT, compiler and kernel."""
    uname = os.uname()
    about = [
        digest({name: value for name, value in defines.items() if name != "PIN_ROOT"}),
        units(defines),
        _compiler(),
        uname.machine,
        uname.release,
        uname.version,
        hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    ]
    return hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]


def holds(directory: Path, wanted: str) -> bool:
    """Whether there is a file for this key: then the compiler has nothing to do, unless that file does not serve."""
    return _path(directory, wanted).exists()


def load(directory: Path, wanted: str) -> Compiled | None:
    """What is kept under this key; None when nothing is. Raises OSError and DamagedError: it must not be used."""
    path = _path(directory, wanted)
    try:
        ownfiles.prepare(directory)
        content = ownfiles.read(path)
    except FileNotFoundError:
        return None
    checksum, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise DamagedError("its checksum is wrong")
    try:
        found = msgspec.msgpack.decode(body, type=Compiled)
    except msgspec.MsgspecError as error:
        raise DamagedError(str(error)) from error
    if found.key != wanted:
        raise DamagedError("it is another one's")
    with contextlib.suppress(OSError):  # it goes last
        os.utime(path)
    return found


def store(directory: Path, compiled: Compiled) -> None:
    """Keep it, in one step; of all others the KEPT - 1 that were used last stay. Raises OSError."""
    body = msgspec.msgpack.encode(compiled)
    path = _path(directory, compiled.key)
    ownfiles.write(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    others = [(_used(each), each) for each in directory.glob(f"*{_SUFFIX}") if each != path]
    for _, old in sorted(others, reverse=True)[KEPT - 1 :]:
        old.unlink(missing_ok=True)


def unbind(name: str, instructions: bytes, labels: Mapping[int, str]) -> Code:
    """Put labels in the place of the maps' descriptors. Raises DamagedError: it names what can't be kept."""
    code, maps = bytearray(instructions), {}
    for number in _wide(code):
        at = number * _INSTRUCTION
        kind, descriptor = code[at + 1] >> 4, int.from_bytes(code[at + 4 : at + 8], "little")
        if not kind:
            continue
        if kind != _MAP_BY_FD or descriptor not in labels:
            raise DamagedError(f"instruction {number} of {name} names what is no map of its own")
        maps[number] = labels[descriptor]
        code[at + 4 : at + 8] = bytes(4)
    return Code(name, bytes(code), maps)


def bind(code: Code, descriptor: Callable[[str], int]) -> bytes:
    """The instructions with descriptors of maps, by their labels. Raises DamagedError: no such instruction."""
    bound, wide = bytearray(code.instructions), set(_wide(code.instructions))
    for number, label in code.maps.items():
        if number not in wide:
            raise DamagedError(f"instruction {number} of {code.name} names no map")
        at = number * _INSTRUCTION
        bound[at + 4 : at + 8] = descriptor(label).to_bytes(4, "little")
    return bytes(bound)


def _wide(code: bytes | bytearray) -> list[int]:
    """Numbers of the instructions that load 64 bits; each takes the room of two."""
    found, number = [], 0
    while number * _INSTRUCTION < len(code):
        wide = code[number * _INSTRUCTION] == _LOAD_WIDE
        if wide:
            found.append(number)
        number += 2 if wide else 1
    return found


def _path(directory: Path, wanted: str) -> Path:
    return directory / f"{wanted}{_SUFFIX}"


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _compiler() -> str:
    """BCC's version, without loading BCC: that would bring LLVM in."""
    found = importlib.util.find_spec("bcc")
    if found is None or not found.origin:
        return ""
    try:
        return (Path(found.origin).parent / "version.py").read_text()
    except OSError:
        return ""
