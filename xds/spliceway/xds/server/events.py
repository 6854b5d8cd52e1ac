"""What happened between the control plane and its clients, as values for people who watch."""

from __future__ import annotations

from enum import Enum

import msgspec

#: So many names are listed of a request or a response; `count` has the number.
MAX_NAMES = 20


class EventKind(Enum):
    """What happened."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    #: A stream that was not served: no node id, a wrong certificate, an Envoy that must not enforce policy, a limit.
    REJECTED = "rejected"
    PUSH = "push"
    ACK = "ack"
    NACK = "nack"
    SUBSCRIBE = "subscribe"


class XdsEvent(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One event.

    `time`: CLOCK_REALTIME in seconds. `protocol`: `sotw` or `delta`. `type`: short name of the type, empty where none
    is concerned. `version`, `nonce`: of the response that was pushed or answered. `resources`: names in a push, refused
    ones of a NACK, subscribed ones; at most MAX_NAMES of `count`. `removed`: names that a delta push withdraws.
    `size`: of the message in bytes. `error`: the client's message of a NACK, or why a stream was rejected. `seconds`:
    from the change to the answer, of an ACK or NACK.
    """

    time: float
    kind: EventKind
    node: str
    cluster: str
    stream: str
    protocol: str
    type: str = ""
    version: str = ""
    nonce: str = ""
    resources: tuple[str, ...] = ()
    count: int = 0
    removed: tuple[str, ...] = ()
    size: int = 0
    error: str = ""
    seconds: float | None = None
