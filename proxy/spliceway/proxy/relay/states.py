"""Where the two machines of a connection are, and the numbers that they go by."""

from __future__ import annotations

from enum import Enum

#: Bytes of pipelined requests that wait for their turn; then the client must wait, too.
MAX_HELD = 16384
#: The longest body of a denied request that is read and thrown away to keep the connection.
MAX_SKIPPED = 65536
#: How long a client may still send, after our FIN, what is thrown away: seconds.
LINGER = 2.0
#: How often a client that has half-closed is looked at while it waits for an answer: seconds.
LOOK = 5.0
NEVER = float("inf")


class Asking(Enum):
    """Where the client's bytes are.

    HEAD → BODY | CHUNKS → ASKED → HEAD …; SKIP is the body of a denied request, REST what the server did not want to
    have of a body, LINGER what comes after our FIN.
    """

    HEAD = "head"
    BODY = "body"
    CHUNKS = "chunks"
    ASKED = "asked"
    SKIP = "skip"
    REST = "rest"
    TUNNEL = "tunnel"
    LINGER = "linger"
    CLOSED = "closed"


class Answering(Enum):
    """Where the server's bytes are: NONE → HEAD → BODY | CHUNKS | TO_END → NONE …; TUNNEL after an upgrade."""

    NONE = "none"
    HEAD = "head"
    BODY = "body"
    CHUNKS = "chunks"
    TO_END = "to the end"
    TUNNEL = "tunnel"


#: What goes on to the server as it comes.
RELAYED = frozenset((Asking.BODY, Asking.CHUNKS, Asking.TUNNEL))
