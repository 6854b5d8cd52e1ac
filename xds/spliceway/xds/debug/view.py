"""What the tools in this package ask of a control plane, and an XdsServer in that shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from spliceway.xds.debug.status import ClientStatus, Held, TypeStatus

#: What of a client's resources is meant: what it shall have, was sent last, or has acknowledged.
Stage = Literal["desired", "sent", "acked"]
STAGES: tuple[Stage, ...] = ("desired", "sent", "acked")

#: Resource name -> texts in it that must not be shown.
Secrets = Mapping[str, frozenset[str]]


class DebugView(Protocol):
    """What is asked. To be called in the event loop; what is returned are values, good in any thread."""

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """Every open stream, newest last; without `resources` only sums."""

    def current(self, node: str) -> Mapping[str, TypeStatus]:
        """Short type -> its status on the newest stream of that node that has asked for the type."""

    def held(self, node: str, stage: Stage) -> Mapping[str, Mapping[str, Held]]:
        """Type URL -> name -> resource. What a node that isn't known shall have is what everybody gets."""

    def secrets(self, node: str) -> Secrets:
        """What must not be shown of the node's resources."""

    def nodes(self) -> frozenset[str]:
        """Node ids that are connected, or that something is there for."""


class _NodeKey(Protocol):
    @property
    def id(self) -> str: ...


class _Server(Protocol):
    """What is used of `XdsServer`."""

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]: ...

    def current(self, node: str) -> Mapping[str, TypeStatus]: ...

    def held(self, node: str, stage: Stage) -> Mapping[str, Mapping[str, Held]]: ...

    def nodes(self) -> tuple[_NodeKey, ...]: ...


class ServerView:
    """An XdsServer as DebugView."""

    def __init__(self, server: _Server, any_node: str = "*") -> None:
        """`any_node`: node id of the snapshot for everybody."""
        self._server = server
        self._any = any_node

    def __repr__(self) -> str:
        return f"<ServerView of {self._server!r}>"

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """Every open stream, newest last; without `resources` only sums."""
        return self._server.status(resources=resources)

    def current(self, node: str) -> Mapping[str, TypeStatus]:
        """Short type -> its status on the newest stream of that node that has asked for the type."""
        return self._server.current(node)

    def held(self, node: str, stage: Stage) -> Mapping[str, Mapping[str, Held]]:
        """Type URL -> name -> resource. What a node that isn't known shall have is what everybody gets."""
        return self._server.held(node, stage)

    def secrets(self, node: str) -> Secrets:
        """Of every resource that the node shall have, was sent or has acknowledged, by name."""
        found: dict[str, frozenset[str]] = {}
        for stage in STAGES:
            for named in self._server.held(node, stage).values():
                for name, held in named.items():
                    if held.resource is not None and held.resource.secrets:
                        found[name] = found.get(name, frozenset()) | held.resource.secrets
        return found

    def nodes(self) -> frozenset[str]:
        """Node ids that are connected, or that have a snapshot of their own."""
        own = {key.id for key in self._server.nodes()} - {self._any}
        return frozenset(own | {client.client.node for client in self._server.status(resources=False)})
