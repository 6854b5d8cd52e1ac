"""Errors of the datapath. Foreign exceptions are translated where they arise; the message says what to do."""

from __future__ import annotations

from errno import ENOSPC


class DatapathError(Exception):
    """The kernel part can't do what was asked; nothing was changed unless the message says so."""


class KernelRefusedError(DatapathError):
    """A system call failed. `errno` is the kernel's number."""

    def __init__(self, what: str, errno: int, hint: str = "") -> None:
        """`what`: the operation and its object; `hint`: the likely cause and what to do."""
        import os

        self.errno = errno
        super().__init__(f"{what}: {os.strerror(errno)}" + (f" ({hint})" if hint else ""))


_SIZES = {
    "endpoints": "maxEndpoints",
    "ipcache": "maxIpcache",
    "classes": "maxRows",
    "policy": "maxRows",
    "lb_frontends": "maxFrontends",
    "lb_rows": "maxBackends",
    "lb_backends": "maxBackends",
}


class MapFullError(KernelRefusedError):
    """A revision doesn't fit. Nothing was written."""

    def __init__(self, name: str, need: int, together: int, room: int, configured: int | None = None) -> None:
        """`need`: elements of the new revision; `together`: with those that go only after it is live.

        `configured`: the size that the configuration gives a map that is made now.
        """
        beside = f", {together} while the old revision is still there" if together > need else ""
        raising = f": raise datapath.{_SIZES[name]}" if name in _SIZES else ""
        if configured not in (None, room):  # raising alone changes nothing
            raising = (
                f": it was made with {room}, {configured} are configured: `spliceway cleanup` and a start make it anew"
            )
        super().__init__(
            f"map {name}: {need} elements needed{beside}, room for {room}", ENOSPC, f"the map is full{raising}"
        )


class LoadError(DatapathError):
    """The programs could not be compiled or loaded; the loader's own words follow."""
