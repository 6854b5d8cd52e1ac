"""Memory whose pages come when they are told to: what a slow file system does to who writes into a mapped file."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

_USERFAULTFD = 323  # x86-64
_API, _REGISTER, _ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
_VERSION, _MISSING = 0xAA, 1
_SIZE = mmap.PAGESIZE


class LatePage:
    """One page. Who reads or writes it waits, also inside of the kernel, until `come`."""

    def __init__(self) -> None:
        """Needs CAP_SYS_PTRACE."""
        self._fd = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD, os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, _API, bytearray(struct.pack("QQQ", _VERSION, 0, 0)))
        self._memory = mmap.mmap(-1, _SIZE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        fcntl.ioctl(self._fd, _REGISTER, bytearray(struct.pack("QQQQ", self.address, _SIZE, _MISSING, 0)))

    def wait_wanted(self) -> None:
        """Until somebody waits for the page."""
        os.read(self._fd, 32)

    def come(self) -> None:
        """Let it be there, and end waiting for good."""
        fcntl.ioctl(self._fd, _ZEROPAGE, bytearray(struct.pack("QQQq", self.address, _SIZE, 0, 0)))
        os.close(self._fd)
