"""The CNI side of an agent as the composition root sees it, and the one of an agent that has none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from prometheus_client.registry import Collector

from spliceway.agent.cni.left import LeftPods, are_left
from spliceway.agent.cni.metrics import CniMetrics
from spliceway.agent.cni.network import Force, PodNetwork
from spliceway.agent.cni.place import Chain, Place, take_out
from spliceway.agent.cni.server import CniServer
from spliceway.agent.config import Config
from spliceway.agent.inventory import Inventory
from spliceway.agent.listening import unix_listener
from spliceway.agent.manifests import Key
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import Object, Pod


class CniStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What `status` says. `found`: pods that were there before; `without`: those that no policy covers."""

    enabled: bool = False
    wired: int = 0
    found: int = 0
    without: tuple[str, ...] = ()
    chain: Chain = Chain()


class CniSide(Protocol):
    """See `PodNetwork`."""

    def use(self, force: Force, attached: Callable[[LocalEndpoint], object], submit: Callable[[], int]) -> None:
        """Who brings pods into force."""

    async def start(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> None:
        """Listen, and have the plugin's binary in place. Raises AgentError."""

    async def prepare(self) -> None:
        """Find out what is wired."""

    def open(self) -> None:
        """Answer runtimes."""

    def changes(self) -> dict[Key, Object | None]:
        """What changed since this was asked last."""

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """This node's pods that are wired."""

    @property
    def is_blank(self) -> bool:
        """Whether the source may be one that is not there yet: it has nothing that the kernel should know of."""

    def passed(self) -> None:
        """A pass of reconciliation has ended."""

    def tasks(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What must run, by name."""

    def collectors(self) -> tuple[Collector, ...]:
        """What is to be exported."""

    async def leave(self) -> None:
        """Take the plugin out of the chain: nobody will answer it any more. Raises AgentError."""

    def status(self) -> CniStatus:
        """Where things are now."""


class NoCni:
    """Pods say themselves how they are wired, or are in no way."""

    def __init__(self, inventory: Inventory, state_dir: Path, *, cluster: bool = False) -> None:
        """`cluster`: the source is a cluster's, whose pods say nothing of their wiring."""
        self._cluster = cluster
        self._inventory = inventory
        self._state_dir = state_dir

    def use(self, force: Force, attached: Callable[[LocalEndpoint], object], submit: Callable[[], int]) -> None:
        """Nobody is wired."""

    async def start(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> None:
        """Nothing listens; what an agent before put into the chain would wait for that."""
        await asyncio.to_thread(take_out, self._state_dir)

    async def prepare(self) -> None:
        """Nothing is looked for."""

    def open(self) -> None:
        """Nobody asks."""

    def changes(self) -> dict[Key, Object | None]:
        """Those of the source."""
        return dict(self._inventory.changes())

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """Those of the source."""
        return self._inventory.endpoints

    @property
    def is_blank(self) -> bool:
        """Whether it has no pods."""
        return not self._inventory.endpoints

    def passed(self) -> None:
        """Nobody waits for it."""

    def tasks(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """None."""
        return {}

    def collectors(self) -> tuple[Collector, ...]:
        """None."""
        return ()

    async def leave(self) -> None:
        """Nothing is there to be taken out."""

    def status(self) -> CniStatus:
        """Off. Pods of a cluster that nobody has wired for us pass by every policy: that must not go unsaid."""
        return CniStatus(without=unwired(self._inventory, frozenset()) if self._cluster else ())


class Left(LeftPods):
    """Without CNI, on a node that has pods of a time with it."""

    def __init__(self, config: Config, inventory: Inventory) -> None:
        """Wire it to the configuration."""
        cluster = config.source.kubernetes is not None
        super().__init__(config, inventory, lambda wired: unwired(inventory, wired) if cluster else ())

    def status(self) -> CniStatus:
        """Off; `wired` are those that are left."""
        return CniStatus(wired=self.wired[0], without=self.without)


class Cni(PodNetwork):
    """The plugin's server, its place on the node, and the pods that are wired."""

    def __init__(self, config: Config, inventory: Inventory) -> None:
        """Wire it to the configuration."""
        super().__init__(inventory, config.state_dir, config.pods_cgroup, config.cni.timeout)
        self._config = config
        self._place = Place(config.cni, config.state_dir)
        self._metrics = CniMetrics(lambda: bool(self._place.chain.file))

    async def start(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> None:
        """Listen, and have the plugin's binary in place. Raises AgentError."""
        await asyncio.to_thread(self._place.install)
        socket = self._config.cni.socket
        self._server = CniServer(stack.enter_context(unix_listener(socket, "cni.socket")), self.answer, self._metrics)
        stack.callback(socket.unlink, missing_ok=True)

    @property
    def is_blank(self) -> bool:
        """Whether it has no objects: pods are wired and taken back by runtimes, and none may be left."""
        return not self._inventory.objects

    def tasks(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What must run, by name."""
        return {"cni": self._server.run(), "cni chain": self._placing(), "wirings": self.watch()}

    def collectors(self) -> tuple[Collector, ...]:
        """What is to be exported."""
        return (self._metrics,)

    async def _placing(self) -> None:
        await self.opened()  # what is in the chain must be answered
        await self._place.run()

    async def leave(self) -> None:
        """Take the plugin out of the chain: nobody will answer it any more. Raises AgentError."""
        await asyncio.to_thread(self._place.leave)

    def status(self) -> CniStatus:
        """Where things are now."""
        wired, found = self.wired
        return CniStatus(True, wired, found, self.without, self._place.chain)


def unwired(inventory: Inventory, wired: frozenset[str]) -> tuple[str, ...]:
    """That there are pods of a cluster that nobody has wired for us, beside those that somebody has."""
    pods = (inventory.entry(("Pod", name)) for name in inventory.claims if name not in wired)
    count = sum(isinstance(one.item, Pod) and bool(one.item.addresses) for one in pods if one is not None)
    why = f"{count} pods of this node: cni.enabled is false, and nothing else says how they are wired"
    return (why,) if count else ()


def cni_side(config: Config, inventory: Inventory) -> CniSide:
    """As the configuration says, and what an agent before has left. Raises StateError."""
    if config.cni.enabled:
        return Cni(config, inventory)
    if are_left(config):
        return Left(config, inventory)
    return NoCni(inventory, config.state_dir, cluster=config.source.kubernetes is not None)
