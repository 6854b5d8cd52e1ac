"""Python mirror of `c/abi.h`: the layout of every map key, map value and event.

Keep the two in step; `tests/kernel/test_abi.py` compares every offset, size and enumerator with what the compiler
makes of the header. Addresses are as in `addresses.py`; ports are in network order unless a field says otherwise.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

ABI_VERSION = 4
REASON_SLOTS = 128
VERDICTS = 4
HOOKS = 6
RULE_SET_AUDIT = 0x4000_0000
POLICY_PREFIX_ANY = 72
POLICY_PREFIX_PROTOCOL = 80
UNREAD_FLOOR = 81920
MESSAGE_COST = 33792
#: Key of a state that made room for another one (`splice_key.end`).
REMAINS = 0x4000_0000
#: Bit of `splice_state.ends`: the proxy's socket is in the sockhash no more.
PROXY_LEFT = 64
#: What `measure_splice` returns of a pod that has to be told of the end.
FORSAKEN = 2
SOCKOPT_LEVEL = 0x5317
SOCKOPT_ROOM = 1
#: Send buffer (SO_SNDBUF) of a proxy that does not ask for room, once its connection has left; wmem_max bounds it.
HELD_BACK = 1 << 20
#: With this bit, a key of `unread` is for the sum of such buffers.
HELD_SUMS = 1 << 63


class ConfigFlag(IntFlag):
    """`config.flags`."""

    SPLICE_CLIENTS = 1
    SPLICE_SERVERS = 2
    SPLICE_OFF = 4


class Enforce(IntFlag):
    """`endpoint.enforce`: which directions a policy selects; without READY everything is dropped."""

    INGRESS = 1
    EGRESS = 2
    READY = 4


class CtFlag(IntFlag):
    """`ct_value.flags`."""

    CLIENT = 1
    FIN_OUT = 2
    FIN_IN = 4
    RESET = 8
    REPLIED = 16
    TRANSLATED = 32
    UNSEEN = 64


class Note(IntFlag):
    """`question.note`."""

    ENDED = 1
    WHY = 2


class Side(IntEnum):
    """`ct_key.side`: whose end the entry is kept for."""

    POD = 0
    NETWORK = 1
    TRANSLATED = 2


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


class Generation(ctypes.Structure):
    """struct generation."""

    _fields_ = (("number", c_uint64),)


class Config(ctypes.Structure):
    """struct config."""

    _fields_ = (
        ("node_cookie", c_uint64),
        ("mark", c_uint32),
        ("mark_mask", c_uint32),
        ("flags", c_uint32),
        ("first_port", c_uint16),
        ("last_port", c_uint16),
        ("unread_connection", c_uint32),
        ("unread_endpoint", c_uint64),
        ("unread_node", c_uint64),
        ("steering", c_uint32),
        ("delivery", c_uint32),
        ("proxy_mark", c_uint32),
        ("pad", c_uint32),
    )


class IpcacheKey(ctypes.Structure):
    """struct ipcache_key."""

    _fields_ = (("prefixlen", c_uint32), ("addr", Addr))


class IpcacheValue(ctypes.Structure):
    """struct ipcache_value."""

    _fields_ = (("identity", c_uint32 * 2), ("endpoint", c_uint32 * 2))


class Endpoint(ctypes.Structure):
    """struct endpoint."""

    _fields_ = (
        ("netns_cookie", c_uint64),
        ("v4", Addr),
        ("v6", Addr),
        ("identity", c_uint32 * 2),
        ("policy", c_uint32 * 2),
        ("enforce", c_uint8 * 2),
        ("unspliced", c_uint8),
        ("pad", c_uint8),
        ("bridge", c_uint32),
    )


class UnsplicedKey(ctypes.Structure):
    """struct unspliced_key; ifindex 0: every endpoint; the port is in network order."""

    _fields_ = (("ifindex", c_uint32), ("port", c_uint16), ("pad", c_uint16))


class ClassKey(ctypes.Structure):
    """struct class_key."""

    _fields_ = (("policy", c_uint32), ("identity", c_uint32), ("direction", c_uint32))


class ClassValue(ctypes.Structure):
    """struct class_value."""

    _fields_ = (("class_id", c_uint32 * 2),)


class PolicyKey(ctypes.Structure):
    """struct policy_key."""

    _fields_ = (
        ("prefixlen", c_uint32),
        ("policy", c_uint32),
        ("class_id", c_uint32),
        ("direction", c_uint8),
        ("protocol", c_uint8),
        ("port", c_uint16),
    )


class PolicyValue(ctypes.Structure):
    """struct policy_value."""

    _fields_ = (
        ("rule", c_uint32 * 2),
        ("rule_set", c_uint32 * 2),
        ("verdict", c_uint8 * 2),
        ("reason", c_uint8 * 2),
    )


class PairKey(ctypes.Structure):
    """struct pair_key."""

    _fields_ = (("egress", c_uint32), ("ingress", c_uint32))


class PairValue(ctypes.Structure):
    """struct pair_value."""

    _fields_ = (("rule_set", c_uint32),)


class Listener(ctypes.Structure):
    """struct listener; the port is in host order."""

    _fields_ = (("port", c_uint16),)


class CtKey(ctypes.Structure):
    """struct ct_key."""

    _fields_ = (
        ("local", Addr),
        ("remote", Addr),
        ("local_port", c_uint16),
        ("remote_port", c_uint16),
        ("protocol", c_uint8),
        ("side", c_uint8),
        ("pad", c_uint16),
    )


class CtValue(ctypes.Structure):
    """struct ct_value."""

    _fields_ = (
        ("seen", c_uint64),
        ("packets", c_uint64),
        ("bytes", c_uint64),
        ("judged", c_uint64),
        ("rule", c_uint32),
        ("rule_set", c_uint32),
        ("peer_identity", c_uint32),
        ("peer_ifindex", c_uint32),
        ("leg", c_uint8),
        ("flags", c_uint8),
        ("reason", c_uint8),
        ("pad", c_uint8 * 5),
    )


class Counter(ctypes.Structure):
    """struct counter."""

    _fields_ = (("packets", c_uint64), ("bytes", c_uint64))


class Event(ctypes.Structure):
    """struct event; ports are in host order."""

    _fields_ = (
        ("time", c_uint64),
        ("src", Addr),
        ("dst", Addr),
        ("src_identity", c_uint32),
        ("dst_identity", c_uint32),
        ("rule", c_uint32),
        ("rule_set", c_uint32),
        ("length", c_uint32),
        ("sport", c_uint16),
        ("dport", c_uint16),
        ("protocol", c_uint8),
        ("hook", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("leg", c_uint8),
        ("reply", c_uint8),
        ("revoked", c_uint8),
        ("ended", c_uint8),
    )


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
    )


class Question(ctypes.Structure):
    """struct question."""

    _fields_ = (("key", SpliceKey), ("rule_set", c_uint32), ("port", c_uint16), ("leg", c_uint8), ("note", c_uint8))


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
        ("by_why", c_uint64 * len(Why)),
    )


#: C name of every shared struct → its class, named alike: `ct_key`, CtKey. The test walks it.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): found
    for name, found in list(globals().items())
    if isinstance(found, type) and issubclass(found, ctypes.Structure)
}
