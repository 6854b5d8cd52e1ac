"""Errors of the datapath. Foreign exceptions are translated where they arise; the message says what to do."""

from __future__ import annotations


class DatapathError(Exception):
    """The kernel part can't do what was asked; nothing was changed unless the message says so."""


class KernelRefusedError(DatapathError):
    """A system call failed. `errno` is the kernel's number."""

    def __init__(self, what: str, errno: int, hint: str = "") -> None:
        """`what`: the operation and its object; `hint`: the likely cause and what to do."""
        import os

        self.errno = errno
        super().__init__(f"{what}: {os.strerror(errno)}" + (f" ({hint})" if hint else ""))


class LoadError(DatapathError):
    """The programs could not be compiled or loaded; the loader's own words follow."""
