"""Python mirror of `c/lbabi.h`: what the socket load balancer and user space share. See `abi.py`."""

from __future__ import annotations

import ctypes
import re
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from spliceway.bpf.abi import Addr

LB_ROW = 15
LB_TALKS = 16


class LbKey(ctypes.Structure):
    """struct lb_key; the port is in network order."""

    _fields_ = (("addr", Addr), ("port", c_uint16), ("protocol", c_uint8), ("pad", c_uint8))


class LbFrontend(ctypes.Structure):
    """struct lb_frontend: set | seconds of affinity << 32."""

    _fields_ = (("word", c_uint64),)


class LbRowKey(ctypes.Structure):
    """struct lb_row_key."""

    _fields_ = (("set", c_uint32), ("block", c_uint32))


class LbRow(ctypes.Structure):
    """struct lb_row."""

    _fields_ = (("count", c_uint32), ("number", c_uint32 * LB_ROW))


class LbBackendKey(ctypes.Structure):
    """struct lb_backend_key."""

    _fields_ = (("set", c_uint32), ("number", c_uint32))


class LbBackend(ctypes.Structure):
    """struct lb_backend; the port is in network order."""

    _fields_ = (("addr", Addr), ("port", c_uint16), ("pad", c_uint16))


class LbAffinityKey(ctypes.Structure):
    """struct lb_affinity_key."""

    _fields_ = (("netns_cookie", c_uint64), ("set", c_uint32), ("pad", c_uint32))


class LbAffinity(ctypes.Structure):
    """struct lb_affinity."""

    _fields_ = (("seen", c_uint64), ("number", c_uint32), ("pad", c_uint32))


class LbPeer(ctypes.Structure):
    """struct lb_peer: in the storage of a connected socket."""

    _fields_ = (("frontend", LbKey), ("backend", LbBackend), ("set", c_uint32), ("number", c_uint32))


class LbTalks(ctypes.Structure):
    """struct lb_talks: in the storage of a UDP socket that is not connected."""

    _fields_ = (("next", c_uint32), ("last", c_uint32), ("talk", LbPeer * LB_TALKS))


#: C name of every struct → its class, as `abi.STRUCTS`.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): found
    for name, found in list(globals().items())
    if name.startswith("Lb")
}
