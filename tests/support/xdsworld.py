"""One client of a control plane without a server: what it shall have, was sent and has answered, as a DebugView."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spliceway.xds.debug.csds import client_config
from spliceway.xds.debug.nodeview import NodeView, nodes_of
from spliceway.xds.debug.status import (
    Client,
    ClientStatus,
    Held,
    StreamRecord,
    TypeStatus,
    client_status,
    held_of,
    type_status,
)
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.protocol.typeurls import TYPES, URLS
from support.xdsclient import body

CLIENT = Client("node-1", "here", "envoy", "1.40.0", ("feature",))


class World:
    """One client with one stream, as the views of a server."""

    def __init__(self, *, delta: bool = False) -> None:
        self.record = StreamRecord(CLIENT, AdsStream("s", delta=delta), 1.0)
        self.snapshot: Snapshot | None = None
        self.texts: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"<World {self.record.stream}>"

    def serve(self, version: str, **types: str) -> None:
        """From now on it shall have exactly these: `RDS="a b:2"` are two routes, b with other content."""
        bodies: dict[str, dict[str, bytes]] = {}
        for short, text in types.items():
            named = (item.partition(":") for item in text.split())
            bodies[URLS[short]] = {name: body(URLS[short], name, revision) for name, _, revision in named}
        self.snapshot = Snapshot.of(version, bodies, self.snapshot)

    def ask(self, url: str, *names: str) -> None:
        """It asks for these."""
        self.record.stream.receive(Request(url, names))

    def push(self, error: str | None = None) -> None:
        """Send what is due and answer it."""
        assert self.snapshot is not None
        for response in self.record.stream.responses(self.snapshot):
            names = tuple(self.record.stream.subscriptions[response.type_url].names)
            self.record.stream.receive(Request(response.type_url, names, response.version, response.nonce, error))
            timing = self.record.timings[response.type_url]
            timing.sent_at, timing.acked_at = 10.0, 11.5

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """The stream."""
        return (client_status(self.record, self.snapshot, True, resources=resources),)

    def current(self, node: str) -> Mapping[str, TypeStatus]:
        """Its types."""
        subscriptions = self.record.stream.subscriptions.items()
        return {
            TYPES[url].short: type_status(item, self.snapshot, self.record.timings[url])
            for url, item in subscriptions
            if item.active and node == CLIENT.node
        }

    def held(self, node: str, stage: str) -> Mapping[str, Mapping[str, Held]]:
        """Its resources."""
        if stage == "desired":
            assert self.snapshot is not None
            return {url: held_of(of.resources) for url, of in self.snapshot.types.items()}
        return {url: held_of(getattr(item, stage)) for url, item in self.record.stream.subscriptions.items()}

    def secrets(self, node: str) -> Mapping[str, frozenset[str]]:
        """What must not be shown."""
        return self.texts

    def nodes(self) -> frozenset[str]:
        """Its name."""
        return frozenset({CLIENT.node})

    def view(self) -> NodeView:
        """All that is known of it."""
        [(client, streams)] = nodes_of(self.status(resources=False)).values()
        return NodeView(self, client, streams)

    def found(self, **arguments: bool) -> dict[tuple[str, str], Any]:
        """(short type, name) -> GenericXdsConfig."""
        config = client_config(self.view(), **arguments)
        return {(TYPES[item.type_url].short, item.name): item for item in config.generic_xds_configs}
