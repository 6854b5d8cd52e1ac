"""Python mirror of `c/abi.h`: the layout of every map key, map value and event.

Keep the two in step; `tests/kernel/test_abi.py` compares every offset, size and enumerator with what the compiler
makes of the header. Addresses are as in `addresses.py`; ports are in network order unless a field says otherwise.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

from spliceway.bpf.spliceabi import LEFT as LEFT
from spliceway.bpf.spliceabi import Addr as Addr
from spliceway.bpf.spliceabi import End as End
from spliceway.bpf.spliceabi import Question as Question
from spliceway.bpf.spliceabi import SidecarPod as SidecarPod
from spliceway.bpf.spliceabi import SockTag as SockTag
from spliceway.bpf.spliceabi import SpliceCounters as SpliceCounters
from spliceway.bpf.spliceabi import SpliceEnd as SpliceEnd
from spliceway.bpf.spliceabi import SpliceKey as SpliceKey
from spliceway.bpf.spliceabi import SpliceState as SpliceState
from spliceway.bpf.spliceabi import SpliceWay as SpliceWay
from spliceway.bpf.spliceabi import Unread as Unread
from spliceway.bpf.spliceabi import Why as Why

ABI_VERSION = 5
REASON_SLOTS = 128
VERDICTS = 4
HOOKS = 6
RULE_SET_AUDIT = 0x4000_0000
#: `ipcache_value.endpoint` of an address that a process of the node answers by: the index that loopback always has.
SERVED_BY_NODE = 1
#: The same of an address that Services are dialled by: no interface has this index.
SERVICE_ADDRESS = 0xFFFF_FFFF
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
UNTRACKED_PRIORITY = 0x2480_0000
SOCKOPT_LEVEL = 0x5317
SOCKOPT_ROOM = 1
#: Send buffer (SO_SNDBUF) of a proxy that does not ask for room, once its connection has left; wmem_max bounds it.
HELD_BACK = 1 << 20
#: With this bit, a key of `unread` is for the sum of such buffers.
HELD_SUMS = 1 << 63
#: With this bit, a network namespace's cookie is for connections inside of it, between application and sidecar.
SIDECAR_LEG = 1 << 62
#: Where Istio's sidecars accept what applications dial, and what comes for them.
SIDECAR_OUTBOUND, SIDECAR_INBOUND = 15001, 15006


class ConfigFlag(IntFlag):
    """`config.flags`."""

    SPLICE_CLIENTS = 1
    SPLICE_SERVERS = 2
    SPLICE_OFF = 4
    AUDIT = 8
    DISABLED = 16
    LENIENT = 32
    NOTES_STAY = 64


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
    STOP = 4


class Judgement(IntEnum):
    """`enum judgement`: the answer to a question."""

    DENIED = 0
    MAY_GO_ON = 1
    NO_QUESTION = 2
    DENIED_NOW = 3
    DENIED_BEFORE = 4


class Side(IntEnum):
    """`ct_key.side`: whose end the entry is kept for."""

    POD = 0
    NETWORK = 1
    TRANSLATED = 2


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


#: C name of every shared struct → its class, named alike: `ct_key`, CtKey. The test walks it.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): found
    for name, found in list(globals().items())
    if isinstance(found, type) and issubclass(found, ctypes.Structure)
}
