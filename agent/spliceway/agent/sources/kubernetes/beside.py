"""Following some kinds for somebody other than the source: who writes, say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.reflector import Reflector, Sink
from spliceway.agent.sources.kubernetes.resources import Resource


def reflectors(
    resources: Iterable[Resource],
    connection: Connection,
    sink: Sink,
    *,
    node: str,
    timing: Timing,
    woken: asyncio.Event,
) -> tuple[Reflector, ...]:
    """One for each, which hands on what it finds as it comes; `woken` is set when one of them has another state."""
    discovery = Discovery(connection)

    def on_state(one: Reflector) -> None:
        woken.set()
        if not one.error:
            for other in found:
                other.wake()

    found = tuple(
        Reflector(
            resource,
            connection,
            discovery,
            sink,
            node=node,
            wired=True,
            timing=timing,
            whole=lambda: False,
            on_state=on_state,
        )
        for resource in resources
    )
    return found
