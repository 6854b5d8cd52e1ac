"""Making maps and loading programs from bytes, without a compiler: libbpf's system call wrappers by ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.libbpf import library

_LICENSE = b"GPL"
_INFO_WORDS = 22  # struct bpf_map_info, 88 bytes
_BTF_ID = 16  # its word btf_id; btf_key_type_id and btf_value_type_id follow


class MapTypes(NamedTuple):
    """What the kernel knows of the types of a map's keys and values: a BTF object and two numbers in it; 0: nothing."""

    btf: int = 0
    key: int = 0
    value: int = 0


class _BtfInfo(ctypes.Structure):
    # struct bpf_btf_info
    _fields_ = (
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    )


class _MapOptions(ctypes.Structure):
    # struct bpf_map_create_opts
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _ProgramOptions(ctypes.Structure):
    # The beginning of struct bpf_prog_load_opts: `sz` tells libbpf how much of it there is.
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
    )


def map_types(fd: int) -> MapTypes:
    """Of an open map."""
    info, size = (ctypes.c_uint32 * _INFO_WORDS)(), ctypes.c_uint32(4 * _INFO_WORDS)
    _checked(library().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)), "look at a map")
    return MapTypes(*info[_BTF_ID : _BTF_ID + 3])


def btf_bytes(number: int) -> bytes:
    """A BTF object as it was loaded, by the kernel's number."""
    fd = _checked(library().bpf_btf_get_fd_by_id(number), "open BTF")
    try:
        info = _BtfInfo()
        _look(fd, info)
        buffer = ctypes.create_string_buffer(info.btf_size)
        info = _BtfInfo(btf=ctypes.addressof(buffer), btf_size=len(buffer))
        _look(fd, info)
        return buffer.raw[: info.btf_size]
    finally:
        os.close(fd)


def load_btf(content: bytes) -> int:
    """Descriptor of a new BTF object."""
    return _checked(library().bpf_btf_load(content, ctypes.c_size_t(len(content)), None), "load BTF")


def create_map(
    name: str, kind: int, key_size: int, value_size: int, max_entries: int, flags: int, types: MapTypes
) -> int:
    """Descriptor of a new map; `types.btf` is a descriptor here."""
    options = _MapOptions(
        sz=ctypes.sizeof(_MapOptions),
        btf_fd=types.btf,
        btf_key_type_id=types.key,
        btf_value_type_id=types.value,
        map_flags=flags,
    )
    result = library().bpf_map_create(
        kind, name.encode()[:15], key_size, value_size, max_entries, ctypes.byref(options)
    )
    return _checked(result, f"make map {name}")


def load_program(name: str, kind: int, attach_type: int, code: bytes) -> int:
    """Descriptor of a new program; `attach_type` is the expected one, -1 for none."""
    options = _ProgramOptions(sz=ctypes.sizeof(_ProgramOptions), expected_attach_type=max(attach_type, 0))
    result = library().bpf_prog_load(
        kind, name.encode()[:15], _LICENSE, code, ctypes.c_size_t(len(code) // 8), ctypes.byref(options)
    )
    return _checked(result, f"load program {name}")


def _look(fd: int, info: _BtfInfo) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(_BtfInfo))
    _checked(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "look at BTF")


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise KernelRefusedError(what, ctypes.get_errno() or -result)
    return result
