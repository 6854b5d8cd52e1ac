"""Thin binding of Debian's libbpf (1.0 or newer) by ctypes: maps, pins, links, test runs and ring buffers.

libbpf, not libbcc: libbcc brings LLVM into the process. Every function raises KernelRefusedError with the errno.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from spliceway.bpf.errors import DatapathError, KernelRefusedError

BPF_ANY = 0
BPF_CGROUP_SOCK_OPS = 3
BPF_CGROUP_GETSOCKOPT = 21
BPF_CGROUP_SETSOCKOPT = 22
BPF_CGROUP_INET_SOCK_RELEASE = 34
BPF_SK_MSG_VERDICT = 7
BPF_SK_LOOKUP = 36

_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@cache
def library() -> ctypes.CDLL:
    """The loaded libbpf; DatapathError when it is not installed."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise DatapathError(f"libbpf.so.1 can't be loaded: {error} (install Debian's libbpf1)") from error
    lib.ring_buffer__new.restype = ctypes.c_void_p
    lib.ring_buffer__new.argtypes = [ctypes.c_int, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p]
    lib.ring_buffer__epoll_fd.argtypes = [ctypes.c_void_p]
    lib.ring_buffer__consume.argtypes = [ctypes.c_void_p]
    lib.ring_buffer__free.argtypes = [ctypes.c_void_p]
    lib.ring_buffer__free.restype = None
    return lib


def _checked(result: int, what: str, hint: str = "") -> int:
    if result >= 0:
        return int(result)
    number = ctypes.get_errno() or -result
    if number == errnos.EPERM and not hint:
        hint = "BPF needs CAP_BPF and CAP_NET_ADMIN, or root"
    raise KernelRefusedError(what, number, hint)


def open_pin(path: Path) -> int:
    """File descriptor of a pinned map, program or link."""
    hint = "" if path.exists() else "the pin was removed: start the agent again, it loads and attaches what is missing"
    return _checked(library().bpf_obj_get(str(path).encode()), f"open {path}", hint)


def pin(fd: int, path: Path) -> None:
    """Pin an object below a bpffs mount."""
    _checked(library().bpf_obj_pin(fd, str(path).encode()), f"pin {path}", "is the directory on a bpffs?")


def open_map(number: int) -> int:
    """File descriptor of the map with this id."""
    return _checked(library().bpf_map_get_fd_by_id(number), f"open the map with the id {number}")


class MapInfo(NamedTuple):
    """What the kernel says of a map; `struct bpf_map_info` begins like this."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_info(fd: int) -> MapInfo:
    """Of an open map."""
    info, size = (ctypes.c_uint32 * 22)(), ctypes.c_uint32(88)
    _checked(library().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)), "look at a map")
    return MapInfo(*info[:6])


def info_of(path: Path) -> MapInfo:
    """Of a pinned map."""
    fd = open_pin(path)
    try:
        return map_info(fd)
    finally:
        os.close(fd)


class BpfMap:
    """One map by file descriptor; keys and values are bytes of `key_size` and `value_size`.

    `per_cpu`: values are lists with one element for each possible CPU.
    """

    def __init__(self, fd: int, name: str, key_size: int, value_size: int, *, per_cpu: bool = False) -> None:
        """Take over the descriptor `fd`."""
        self.fd, self.name, self.key_size, self.value_size, self.per_cpu = fd, name, key_size, value_size, per_cpu
        self._stride = (value_size + 7) // 8 * 8
        self._room = self._stride * possible_cpus() if per_cpu else value_size

    @classmethod
    def open(cls, path: Path, name: str, *, per_cpu: bool = False) -> BpfMap:
        """A pinned map, with the sizes that it was made with."""
        fd = open_pin(path)
        info = map_info(fd)
        return cls(fd, name, info.key_size, info.value_size, per_cpu=per_cpu)

    @cached_property
    def max_entries(self) -> int:
        """How many elements the map takes: as it was made, whatever the configuration says by now."""
        return map_info(self.fd).max_entries

    def __repr__(self) -> str:
        return f"BpfMap({self.name!r}, fd={self.fd})"

    def close(self) -> None:
        """Give the descriptor back; a pinned map stays."""
        os.close(self.fd)

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. For a per-CPU map: the values of all CPUs, `stride` apart."""
        buffer = ctypes.create_string_buffer(self._room)
        if library().bpf_map_lookup_elem(self.fd, key, buffer) < 0:
            if ctypes.get_errno() == errnos.ENOENT:
                return None
            _checked(-1, f"look up in map {self.name}")
        return buffer.raw

    def lookup_cpus(self, key: bytes) -> list[bytes]:
        """A per-CPU map's values, one for each CPU."""
        raw = self.lookup(key) or b""
        return [raw[i : i + self.value_size] for i in range(0, len(raw), self._stride)]

    def update(self, key: bytes, value: bytes) -> None:
        """Insert or replace one element."""
        _checked(
            library().bpf_map_update_elem(self.fd, key, value, ctypes.c_uint64(BPF_ANY)),
            f"write map {self.name}",
            _full(),
        )

    def update_many(self, items: list[tuple[bytes, bytes]]) -> None:
        """Insert or replace many in one system call (falls back to one by one where the kernel has no batch)."""
        if len(items) < 8:
            for key, value in items:
                self.update(key, value)
            return
        keys, values = b"".join(k for k, _ in items), b"".join(v for _, v in items)
        count = ctypes.c_uint32(len(items))
        if library().bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None) >= 0:
            return
        if ctypes.get_errno() not in (errnos.EINVAL, 524):  # 524: ENOTSUPP, which has no name in user space
            _checked(-1, f"write {len(items)} elements to map {self.name}", _full())
        for key, value in items:
            self.update(key, value)

    def delete(self, key: bytes) -> bool:
        """Remove one element; False when it was not there."""
        if library().bpf_map_delete_elem(self.fd, key) >= 0:
            return True
        if ctypes.get_errno() == errnos.ENOENT:
            return False
        raise KernelRefusedError(f"delete from map {self.name}", ctypes.get_errno())

    def keys(self) -> Iterator[bytes]:
        """All keys; those that come or go meanwhile may be missed."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while library().bpf_map_get_next_key(self.fd, key, following) >= 0:
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All elements, by batch where the kernel has it."""
        yield from self._items_by_batch() if not self.per_cpu else self._items_by_key()

    def _items_by_key(self) -> Iterator[tuple[bytes, bytes]]:
        for key in list(self.keys()):
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def batches(self, size: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """All elements as bytes, many keys and their values at a time (one by one where the kernel has no batch).

        Not for per-CPU maps. What comes or goes meanwhile may be missed.
        """
        position: Any = None
        # A hash map's position is 4 bytes, an LPM trie's a key.
        following = ctypes.create_string_buffer(max(self.key_size, 8))
        while True:
            keys = ctypes.create_string_buffer(self.key_size * size)
            values = ctypes.create_string_buffer(self.value_size * size)
            count = ctypes.c_uint32(size)
            result = library().bpf_map_lookup_batch(
                self.fd, position, following, keys, values, ctypes.byref(count), None
            )
            number = 0 if result >= 0 else ctypes.get_errno()
            if number == errnos.ENOSPC and size < 1 << 20:  # one bucket holds more than `size`
                size *= 4
                continue
            if number not in (0, errnos.ENOENT):
                if position is not None:
                    raise KernelRefusedError(f"read map {self.name}", number)
                yield from self._items_by_key()
                return
            yield keys.raw[: count.value * self.key_size], values.raw[: count.value * self.value_size]
            if number == errnos.ENOENT:
                return
            position = ctypes.create_string_buffer(following.raw, len(following.raw))

    def _items_by_batch(self) -> Iterator[tuple[bytes, bytes]]:
        for keys, values in self.batches():
            for i in range(len(keys) // self.key_size):
                yield (
                    keys[i * self.key_size : (i + 1) * self.key_size],
                    values[i * self.value_size : (i + 1) * self.value_size],
                )


def _full() -> str:
    number = ctypes.get_errno()
    if number in (errnos.E2BIG, errnos.ENOSPC):
        return "the map is full: raise its size in the configuration"
    return "out of kernel memory" if number == errnos.ENOMEM else ""


@cache
def possible_cpus() -> int:
    """Number of possible CPUs, as per-CPU map values count them."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def create_link(program: int, target: int, attach_type: int) -> int:
    """A bpf_link of a program to a cgroup or network namespace."""
    return _checked(library().bpf_link_create(program, target, attach_type, None), f"attach (type {attach_type})")


def update_link(link: int, program: int) -> None:
    """Put another program behind a link, atomically."""
    _checked(library().bpf_link_update(link, program, None), "replace the program of a link")


def detach_pinned_link(path: Path) -> None:
    """Take the program of a pinned link off what it is attached to, at once, whoever holds the link; the pin stays."""
    descriptor = open_pin(path)
    try:
        _checked(library().bpf_link_detach(descriptor), f"detach {path}")
    finally:
        os.close(descriptor)


class _LinkInfo(ctypes.Structure):
    # struct bpf_link_info, as far as a cgroup link fills it; where that has the cgroup, a TCX link has its interface
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64),
        ("attach_type", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 60),
    )


def linked_cgroup(link: int) -> int:
    """The cgroup that a cgroup link is attached to: the inode number of its directory; 0 when that is gone."""
    return int(_link_info(link).cgroup_id)


def linked_interface(link: int) -> int:
    """Index of the interface that a TCX link is attached to, in that one's namespace; 0 when it was taken off."""
    return ctypes.c_uint32.from_buffer(_link_info(link), _LinkInfo.cgroup_id.offset).value


def link_id(link: int) -> int:
    """The kernel's number of a link."""
    return int(_link_info(link).id)


def _link_info(link: int) -> _LinkInfo:
    info, size = _LinkInfo(), ctypes.c_uint32(ctypes.sizeof(_LinkInfo))
    _checked(library().bpf_obj_get_info_by_fd(link, ctypes.byref(info), ctypes.byref(size)), "look at a link")
    return info


def attach_to_map(program: int, map_fd: int, attach_type: int) -> None:
    """Attach an sk_msg program to a sockhash, replacing what is there."""
    _checked(library().bpf_prog_attach(program, map_fd, attach_type, 0), "attach the sk_msg program to the sockhash")


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def run_on_packet(
    program: int, packet: bytes, *, ifindex: int = 0, ingress_ifindex: int = 0, gso_size: int = 0, repeat: int = 1
) -> tuple[int, int]:
    """Run a TC program on a packet (BPF_PROG_TEST_RUN): its return value (signed) and nanoseconds for one run.

    `ifindex` sets `__sk_buff.ifindex`; the device must be in the current network namespace. `gso_size`: bytes of a
    segment, of which the packet has several.
    """
    context = bytearray(192)  # struct __sk_buff, as far as the kernel lets it be set
    context[40:44] = ifindex.to_bytes(4, "little")
    context[176:180] = gso_size.to_bytes(4, "little")
    context[36:40] = ingress_ifindex.to_bytes(4, "little")
    data, ctx = ctypes.create_string_buffer(packet, len(packet)), (ctypes.c_char * 192).from_buffer(context)
    opts = _TestRun(
        sz=ctypes.sizeof(_TestRun),
        data_in=ctypes.cast(data, ctypes.c_void_p),
        data_size_in=len(packet),
        ctx_in=ctypes.cast(ctx, ctypes.c_void_p),
        ctx_size_in=192,
        repeat=repeat,
    )
    _checked(library().bpf_prog_test_run_opts(program, ctypes.byref(opts)), "test run of a program")
    return ctypes.c_int32(opts.retval).value, opts.duration


def asker(program: int) -> Callable[[bytes], int]:
    """A function that runs a TC program on a packet and returns what that returns: for many runs in a row."""
    data = ctypes.create_string_buffer(256)
    opts = _TestRun(sz=ctypes.sizeof(_TestRun), data_in=ctypes.cast(data, ctypes.c_void_p), repeat=1)
    run, reference = library().bpf_prog_test_run_opts, ctypes.byref(opts)

    def ask(packet: bytes) -> int:
        ctypes.memmove(data, packet, len(packet))
        opts.data_size_in = len(packet)
        _checked(run(program, reference), "test run of a program")
        return int(opts.retval)

    return ask


class RingBuffer:
    """Consumer of a ring buffer map: `handle` gets each record; `fileno()` is readable when there are any."""

    def __init__(self, map_fd: int, handle: Callable[[bytes], None]) -> None:
        """Map the buffer into this process."""

        def sample(_context: int, data: int, size: int) -> int:
            handle(ctypes.string_at(data, size))
            return 0

        self._callback = _SAMPLE(sample)  # kept alive as long as the buffer
        self._buffer = library().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._buffer:
            raise KernelRefusedError("map the ring buffer", ctypes.get_errno())

    def fileno(self) -> int:
        """Epoll descriptor."""
        return int(library().ring_buffer__epoll_fd(self._buffer))

    def consume(self) -> int:
        """Handle all records that are there; returns their number."""
        return _checked(library().ring_buffer__consume(self._buffer), "read the ring buffer")

    def close(self) -> None:
        """Unmap it."""
        if self._buffer:
            library().ring_buffer__free(self._buffer)
            self._buffer = None
