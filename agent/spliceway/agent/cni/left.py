"""An agent without CNI on a node that has pods of a time with it: they keep their policy for as long as they live.

`cni.enabled` is switched off for pods to come. Those that run have been promised a policy, and what an agent has
written down says how they are wired (`wirings.json`). Nobody asks us any more, so that their ends are seen within
seconds, by their interfaces; pods that come now are as without CNI, and none is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from prometheus_client.registry import Collector

from spliceway.agent.cni.network import PodNetwork
from spliceway.agent.cni.place import take_out
from spliceway.agent.cni.wirings import Wirings
from spliceway.agent.config import Config
from spliceway.agent.endpoints import Claim
from spliceway.agent.inventory import Inventory
from spliceway.policy.model import Pod


def are_left(config: Config) -> bool:
    """Whether an agent with CNI has left pods on this node. Blocks. Raises StateError."""
    wirings = Wirings(config.state_dir)
    wirings.load()
    return bool(wirings.all)


class LeftPods(PodNetwork):
    """See the module. What runtimes ask is never asked."""

    def __init__(
        self, config: Config, inventory: Inventory, uncovered: Callable[[frozenset[str]], tuple[str, ...]]
    ) -> None:
        """`uncovered`: what is to be told of pods that are wired by nobody; it gets those that are."""
        super().__init__(inventory, config.state_dir, config.pods_cgroup, config.cni.timeout, only=False)
        self._state_dir = config.state_dir
        self._uncovered = uncovered

    async def start(self, stack: contextlib.ExitStack | contextlib.AsyncExitStack) -> None:
        """Nothing listens; what an agent before put into the chain would wait for that. Raises AgentError."""
        await asyncio.to_thread(take_out, self._state_dir)

    @property
    def is_blank(self) -> bool:
        """Whether it has no objects: the pods that are left are found there."""
        return not self._inventory.objects

    def tasks(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """What must run, by name."""
        return {"wirings": self.watch()}

    def collectors(self) -> tuple[Collector, ...]:
        """None: nobody asks."""
        return ()

    async def leave(self) -> None:
        """Nothing is in the chain."""

    @property
    def without(self) -> tuple[str, ...]:
        """Pods of this node that no policy covers, with why."""
        return self._uncovered(frozenset(self._wirings.all))

    def _unwired(self) -> dict[str, tuple[Pod, Claim]]:
        return {}
