"""What others may take away while the agent runs, and what is put back then: devices, route, rules of netfilter."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import netfilter, node, steering
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.hookorder import Place
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.repeated import Repeated
from spliceway.bpf.types import DatapathSettings

#: Seconds between two looks.
INTERVAL = 5.0

_log = structlog.get_logger(__name__)


class Upkeep:
    """Keeps the way from the hooks to the proxy in place. `problems` are sentences about what could not be put back.

    The program at the receiving device is one of `Hooks`, and watched with the others.
    """

    def __init__(
        self, settings: DatapathSettings, hooks: Hooks, set_steering: Callable[[tuple[int, int]], None]
    ) -> None:
        """`set_steering` is told the indexes of the devices."""
        self._settings, self._hooks, self._set_steering = settings, hooks, set_steering
        self._known = (0, 0)
        self._repeated, self._runs = Repeated("upkeep", self._look, INTERVAL), False
        self.problems: tuple[str, ...] = ()

    async def begin(self) -> None:
        """Make the devices, before anything is sent to them. Raises DatapathError."""
        async with AsyncIPRoute() as ipr:
            self._known = await steering.ensure(ipr)
            await self._attach(ipr)
        self._set_steering(self._known)

    async def mend(self) -> None:
        """Look once. Raises DatapathError or OSError."""
        async with AsyncIPRoute() as ipr:
            found = await steering.ensure(ipr)
            fresh = found != self._known
            if fresh:
                self._known = found
                await self._attach(ipr)
            missing = await node.mend(ipr, self._settings)
        if fresh:
            self._set_steering(found)
        if fresh or missing:
            _log.warning("somebody removed devices or rules for steered packets; they are back")
        put, problems = await netfilter.mend(self._settings)
        if put and self._runs:
            _log.info("rules of netfilter put back", rules=[str(rule) for rule in put])
        self.problems = tuple(problems)

    def start(self) -> None:
        """Look now and then from now on."""
        self._runs = True
        self._repeated.start()

    async def stop(self) -> None:
        """Return when it does not look any more."""
        await self._repeated.stop()

    async def _look(self) -> None:
        try:
            await self.mend()
        except (DatapathError, NetlinkError, OSError) as error:
            self.problems = (f"the way of steered packets to the proxy can't be looked after: {error}",)
            _log.warning("the way of steered packets could not be looked after, trying again", error=str(error))

    async def _attach(self, ipr: AsyncIPRoute) -> None:
        await self._hooks.put(ipr, Place(self._known[1], "steered"), steering.RECEIVING)
