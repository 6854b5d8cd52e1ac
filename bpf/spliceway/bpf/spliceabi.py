"""Python mirror of `c/spliceabi.h`, the part of the ABI (`abi.py`) that is about splices."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum


class End(IntEnum):
    """`splice_key.end`."""

    POD = 0
    PROXY = 1


class Why(IntEnum):
    """Why a connection is not spliced, or not any more (`splice_state.why`)."""

    NONE = 0
    OFF = 1
    DATA_IN_SYN = 2
    SENT_FIRST = 3
    NO_ACTIVE = 4
    MAP_ERROR = 5
    PEER_GONE = 6
    KERNEL = 7
    MAP_FULL = 8
    OTHER_OWNER = 9
    OPTED_OUT = 10
    EXCLUDED_PORT = 11
    SMALL_WRITES = 12
    UNREAD_LIMIT = 13
    UNREAD_BUDGET = 14
    HALF_CLOSED = 15
    READER_STUCK = 16
    NOT_SIDECAR = 17
    OTHER_SOCKET = 18

    @property
    def label(self) -> str:
        """What to tell people; empty when there is nothing to tell."""
        return "" if self is Why.NONE else self.name.lower().replace("_", "-")


#: Reasons of connections that were spliced until then; all others never were.
LEFT = frozenset(
    (Why.SMALL_WRITES, Why.UNREAD_LIMIT, Why.UNREAD_BUDGET, Why.HALF_CLOSED, Why.READER_STUCK, Why.PEER_GONE)
)


class Addr(ctypes.Structure):
    """16 bytes in network order."""

    _fields_ = (("w", c_uint8 * 16),)


class SpliceKey(ctypes.Structure):
    """struct splice_key."""

    _fields_ = (
        ("netns_cookie", c_uint64),
        ("pod", Addr),
        ("peer", Addr),
        ("pod_port", c_uint16),
        ("peer_port", c_uint16),
        ("end", c_uint32),
    )


class SpliceEnd(ctypes.Structure):
    """struct splice_end: kernel address and cookie of a socket."""

    _fields_ = (("address", c_uint64), ("cookie", c_uint64))


class SpliceWay(ctypes.Structure):
    """struct splice_way: one direction of a connection."""

    _fields_ = (
        ("bytes", c_uint64),
        ("messages", c_uint64),
        ("unread", c_uint64),
        ("charged", c_uint64),
        ("mark_bytes", c_uint64),
        ("mark_messages", c_uint64),
        ("read_messages", c_uint64),
        ("behind", c_uint32),
        ("pad", c_uint32),
    )


class SpliceState(ctypes.Structure):
    """struct splice_state; `sock` and `way` by End, `born` is CLOCK_MONOTONIC in nanoseconds."""

    _fields_ = (
        ("word", c_uint64),
        ("nonce", c_uint64),
        ("generation", c_uint64),
        ("born", c_uint64),
        ("ends", c_uint64),
        ("pod_in", c_uint64),
        ("sock", SpliceEnd * 2),
        ("way", SpliceWay * 2),
        ("rule_set", c_uint32),
        ("isn", c_uint32),
        ("port", c_uint16),
        ("leg", c_uint8),
        ("why", c_uint8),
        ("reason", c_uint8),
        ("has_hole", c_uint8),
        ("asks", c_uint8),
        ("stuck", c_uint8),
        ("hole", c_uint32),
        ("held", c_uint32),
        ("answer", c_uint32),
        ("pad", c_uint32),
    )


class Question(ctypes.Structure):
    """struct question."""

    _fields_ = (("key", SpliceKey), ("rule_set", c_uint32), ("port", c_uint16), ("leg", c_uint8), ("note", c_uint8))


class SidecarPod(ctypes.Structure):
    """struct sidecar_pod."""

    _fields_ = (("uid", c_uint32), ("ifindex", c_uint32), ("unspliced", c_uint8), ("pad", c_uint8 * 7))


class Unread(ctypes.Structure):
    """struct unread."""

    _fields_ = (("bytes", c_int64),)


class SockTag(ctypes.Structure):
    """struct sock_tag."""

    _fields_ = (("nonce", c_uint64), ("key", SpliceKey))


class SpliceCounters(ctypes.Structure):
    """struct splice_counters."""

    _fields_ = (
        ("redirected_bytes", c_uint64),
        ("redirected_messages", c_uint64),
        ("tcp_bytes", c_uint64),
        ("tcp_messages", c_uint64),
        ("spliced", c_uint64),
        ("tcp_only", c_uint64),
        ("revoked", c_uint64),
        ("left", c_uint64),
        ("leave_waits", c_uint64),
        ("lost_events", c_uint64),
        ("sidecar_spliced", c_uint64),
        ("sidecar_tcp_only", c_uint64),
        ("by_why", c_uint64 * len(Why)),
    )
