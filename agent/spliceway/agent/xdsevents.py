"""What happened on xDS streams, kept for people who look and who watch. A slow follower loses some, and is told.

The server is never held up: publishing is an append, and each follower has a queue of its own with a bound.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from spliceway.agent.ring import FOLLOWER_QUEUE, Ring
from spliceway.agent.xdstypes import short_type
from spliceway.xds.server.events import XdsEvent

#: How many of the latest events are kept.
EVENTS = 4096
#: Longest message of a client that is kept, in characters. Clients say what they like.
LONGEST_ERROR = 8192

Match = Callable[[XdsEvent], bool]


class XdsEvents(Ring[XdsEvent]):
    """The latest events, and who follows them."""

    def __init__(self, size: int = EVENTS, *, follower_queue: int = FOLLOWER_QUEUE) -> None:
        super().__init__(size, follower_queue=follower_queue)

    def add(self, event: XdsEvent) -> None:
        """Keep an event, and hand it to everybody who follows."""
        if len(event.error) > LONGEST_ERROR:
            shown = f"{event.error[:LONGEST_ERROR]}… ({len(event.error)} characters)"
            event = msgspec.structs.replace(event, error=shown)
        self.publish(lambda: event)


def event_filter(query: dict[str, str]) -> Match:
    """Make a predicate of `node` and `type` (events of whole connections pass it). Raises ValueError."""
    unknown = query.keys() - {"node", "type"}
    if unknown:
        raise ValueError(f"unknown filter {', '.join(sorted(unknown))} (there are node, type)")
    node = query.get("node")
    types = (short_type(query["type"]), "") if "type" in query else None
    return lambda event: (node is None or event.node == node) and (types is None or event.type in types)
