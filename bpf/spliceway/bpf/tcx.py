"""TCX links (Linux 6.6): programs at an interface's ingress and egress, in an order, before all clsact filters.

A link is pinned below `<pin root>/tcx`, one for each interface and hook, and outlives the agent; a new program takes
its place behind the link, in one step. It dies with its interface: then the pin is all that is left. The same program
can't be at one hook twice. Everything blocks (attaching and detaching wait for an RCU grace period) and works in the
calling thread's network namespace. Source: `linux/bpf.h`, `kernel/bpf/tcx.c`, `kernel/bpf/mprog.c`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from spliceway.bpf import libbpf
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.standin import stand_in

INGRESS, EGRESS = 46, 47  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
BEFORE, AFTER = 1 << 3, 1 << 4  # BPF_F_BEFORE, BPF_F_AFTER; relative to nothing: the head, the tail
_LINK_CREATE, _PROG_QUERY = 28, 16
_BPF = {"x86_64": 321, "aarch64": 280}  # system call numbers
_ROOM = 64  # BPF_MPROG_MAX
_LOOPBACK = 1  # in every network namespace
#: How kernels without TCX answer: an attach type, or a part of `union bpf_attr`, that they don't know.
_UNKNOWN = (errno.EINVAL, errno.E2BIG, errno.ENOSYS, errno.EOPNOTSUPP)


class Attachment(NamedTuple):
    """One program at a hook: its id and that of its link (0: attached without one)."""

    program: int
    link: int


class Pinned(NamedTuple):
    """A pinned link of ours, dead or alive."""

    path: Path
    ifindex: int
    program: str


class _Query(ctypes.Structure):
    # `query` of union bpf_attr
    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("programs", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("program_flags", ctypes.c_uint64),
        ("links", ctypes.c_uint64),
        ("link_flags", ctypes.c_uint64),
        ("revision", ctypes.c_uint64),
    )


class _Create(ctypes.Structure):
    # `link_create` of union bpf_attr, its part for TCX
    _fields_ = (
        ("program", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("relative", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("revision", ctypes.c_uint64),
    )


@cache
def supported() -> bool:
    """Whether this kernel has TCX: asked, once, what is at the loopback device. Raises KernelRefusedError (rights)."""
    if platform.machine() not in _BPF:
        return False
    try:
        query(_LOOPBACK, INGRESS)
    except KernelRefusedError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    return True


def query(ifindex: int, attach_type: int) -> list[Attachment]:
    """What is attached, in the order in which it runs. Raises KernelRefusedError: ENODEV when the interface is gone."""
    programs, links = (ctypes.c_uint32 * _ROOM)(), (ctypes.c_uint32 * _ROOM)()
    asked = _Query(
        ifindex=ifindex,
        attach_type=attach_type,
        programs=ctypes.addressof(programs),
        count=_ROOM,
        links=ctypes.addressof(links),
    )
    _bpf(_PROG_QUERY, asked, f"ask for TCX programs at interface {ifindex}")
    return [Attachment(programs[number], links[number]) for number in range(asked.count)]


def create_link(program: int, ifindex: int, attach_type: int, flags: int = BEFORE) -> int:
    """Descriptor of a new link; without a pin it ends with its last descriptor. Raises KernelRefusedError."""
    asked = _Create(program=program, ifindex=ifindex, attach_type=attach_type, flags=flags)
    return _bpf(_LINK_CREATE, asked, f"attach a TCX program to interface {ifindex}")


def put(root: Path, ifindex: int, attach_type: int, name: str, former: str = "") -> bool:
    """Have the program `name` of that pin root at a hook: behind the link that is there, else by a new one in front.

    `former`: a program of ours whose link it takes over where that is the first one: each packet meets one of the two,
    and there is no grace period to wait for. Returns whether it did. Raises KernelRefusedError.
    """
    pin = _pin(root, ifindex, name)
    program = libbpf.open_pin(root / "programs" / name)
    try:
        _end_move(pin, ifindex, attach_type)
        inherited = bool(former) and not pin.exists() and _inherit(pin, _pin(root, ifindex, former), attach_type)
        if _is_alive(pin, ifindex, attach_type):
            with _opened(pin) as link:
                libbpf.update_link(link, program)
            return inherited
        pin.unlink(missing_ok=True)
        pin.parent.mkdir(exist_ok=True)
        try:
            link = create_link(program, ifindex, attach_type)
        except KernelRefusedError as error:
            if error.errno == errno.EEXIST:
                return False  # this very program runs there, by a link that somebody else holds
            raise
        try:
            libbpf.pin(link, pin)
        finally:
            os.close(link)
    finally:
        os.close(program)
    return False


def to_front(root: Path, ifindex: int, attach_type: int, name: str) -> None:
    """Have it at the head of that hook, by a new link. At no moment it is not there. Raises KernelRefusedError.

    Whoever dies in between leaves a link that judges or drops; `put` sets it right.
    """
    pin = _pin(root, ifindex, name)
    program = libbpf.open_pin(root / "programs" / name)
    try:
        with stand_in(program) as standing:
            try:
                _end_move(pin, ifindex, attach_type)
                link = create_link(standing, ifindex, attach_type)
                try:
                    libbpf.pin(link, _moving(pin))
                    take_off(pin)
                    libbpf.update_link(link, program)
                finally:
                    os.close(link)
                _moving(pin).rename(pin)
            except BaseException:
                put(root, ifindex, attach_type, name)
                raise
    finally:
        os.close(program)


def take_off(pin: Path) -> None:
    """Detach a pinned link, whoever holds it, and remove the pin. Nothing happens when it is gone."""
    try:
        libbpf.detach_pinned_link(pin)
    except KernelRefusedError as error:
        # Its interface is gone, or it is no link at all: then the pin is all there is.
        if error.errno not in (errno.ENOLINK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            raise
    pin.unlink(missing_ok=True)


def remove(root: Path, ifindex: int, name: str) -> None:
    """Take off what is pinned for that interface and program, if anything is."""
    pin = _pin(root, ifindex, name)
    for each in (pin, _moving(pin)):
        if each.exists():
            take_off(each)


def is_pinned(root: Path, ifindex: int, name: str) -> bool:
    """Whether there is a link for that interface and program, alive or dead."""
    return _pin(root, ifindex, name).exists()


def pinned(root: Path) -> list[Pinned]:
    """Links of that pin root, also those whose interface is gone."""
    found = []
    for path in sorted((root / "tcx").iterdir()) if (root / "tcx").is_dir() else []:
        number, _, name = path.name.partition("-")
        if number.isdigit() and name:
            found.append(Pinned(path, int(number), name))
    return found


def adopt(root: Path, other: Path) -> None:
    """Take over the links of another version's root, with the programs that they have."""
    for one in pinned(other):
        target = _pin(root, one.ifindex, one.program)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            take_off(one.path)  # a version in between had one of its own
        else:
            one.path.rename(target)


def _pin(root: Path, ifindex: int, name: str) -> Path:
    # No interface's name: that may have a dot, which bpffs doesn't take.
    return root / "tcx" / f"{ifindex}-{name}"


def _moving(pin: Path) -> Path:
    """Where the link is pinned that will take the place of this one."""
    return pin.with_name(f"{pin.name}-moving")


def _inherit(pin: Path, former: Path, attach_type: int) -> bool:
    """Have the former program's link under this pin, where packets meet it first: a new one would be there.

    It still has the former program then. Whoever dies now leaves it to `put`, which finds the link under its new pin.
    """
    if not former.exists() or _moving(former).exists():
        return False
    found = query(int(former.name.partition("-")[0]), attach_type)
    with _opened(former) as link:
        if not found or found[0].link != libbpf.link_id(link):
            return False
    former.rename(pin)
    return True


def _end_move(pin: Path, ifindex: int, attach_type: int) -> None:
    """Settle what somebody left who died in `to_front`."""
    if not (moving := _moving(pin)).exists():
        return
    if _is_alive(pin, ifindex, attach_type):
        take_off(moving)
    else:
        moving.rename(pin)


def _is_alive(pin: Path, ifindex: int, attach_type: int) -> bool:
    """Whether the pinned link is attached there, in this network namespace."""
    if not pin.exists():
        return False
    with _opened(pin) as link:
        number = libbpf.link_id(link)
    return any(one.link == number for one in query(ifindex, attach_type))


@contextlib.contextmanager
def _opened(pin: Path) -> Iterator[int]:
    descriptor = libbpf.open_pin(pin)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@cache
def _libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None, use_errno=True)
    found.syscall.restype = ctypes.c_long
    return found


def _bpf(command: int, attributes: ctypes.Structure, what: str) -> int:
    """bpf(2) itself: Debian 12's libbpf knows nothing of TCX."""
    number = _BPF.get(platform.machine())
    if number is None:
        raise KernelRefusedError(what, errno.ENOSYS)
    result = _libc().syscall(number, command, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if result < 0:
        error = ctypes.get_errno()
        raise KernelRefusedError(what, error, "needs CAP_NET_ADMIN" if error == errno.EPERM else "")
    return int(result)
