"""Pods' wiring for the composition root: what runtimes ask of the plugin, and what of the node's pods is in force.

ADD: the kernel is asked whose device it is → written down → the source has the pod → reconciliation has brought it into
force → answered. So the pod's first packet meets its policy. DEL is answered when the kernel knows neither pod nor
addresses any more: only then does the address go back to be another pod's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol

import structlog

from spliceway.agent.cni import search, veth
from spliceway.agent.cni.changed import Signal
from spliceway.agent.cni.netconf import (
    BAD_ENVIRONMENT,
    NOT_AVAILABLE,
    NOT_IN_FORCE,
    NOT_WIRED,
    TRY_AGAIN,
    CniError,
    Container,
    addresses_of,
    read_conf,
    read_container,
)
from spliceway.agent.cni.pods import WiredPods
from spliceway.agent.cni.wire import Question
from spliceway.agent.cni.wirings import Wiring, Wirings
from spliceway.agent.endpoints import Claim
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.inforce import Live
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import Key
from spliceway.bpf import linktable, neighbours
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import Object, Pod

#: Seconds between two looks for pods that nobody told of, and for wirings that are gone.
INTERVAL = 5.0
#: And while there are only pods that were looked for in vain.
VAIN_INTERVAL = 60.0
#: Of the plugin's patience, what the agent uses: its answer must arrive in time.
_SHARE = 0.9

log = structlog.get_logger(__name__)


class Force(Protocol):
    """What is in force (`Reconciler`)."""

    @property
    def reached(self) -> int:
        """The number of the last intent that is."""

    @property
    def live(self) -> Live:
        """By what packets are judged from now on; those that are on their way may still be by what was before."""


class PodNetwork:
    """For one event loop. `use` before anything is asked."""

    def __init__(
        self, inventory: Inventory, directory: Path, cgroup: Path, timeout: float, *, only: bool = True
    ) -> None:
        """`directory`: where wirings are kept; `cgroup`: the pods'; `timeout`: seconds that the plugin waits.

        `only`: see `WiredPods`.
        """
        self._wirings = Wirings(directory)
        self._pods = WiredPods(inventory.claims, self._wirings.all, only=only)
        self._inventory = inventory
        self._cgroup = cgroup
        self._patience = timeout * _SHARE
        self._changed = Signal()
        self._saving = asyncio.Lock()
        self._unfound: frozenset[str] = frozenset()
        self._looked = (frozenset[str](), 0.0)  # what was looked for in vain, and when
        self._first: dict[Key, Object | None] = {}
        self._submit: Callable[[], int] | None = None
        self._released = 1  # the number of the intent without what was released last: no DEL before the first

    def __repr__(self) -> str:
        return f"PodNetwork({self._wirings!r})"

    def use(self, force: Force, attached: Callable[[LocalEndpoint], object], submit: Callable[[], int]) -> None:
        """`attached`: whether the kernel has this endpoint; `submit` has what is wanted now brought into force.

        It is called only after `open`, and gives the number of the intent.
        """
        self._force, self._attached, self._submit_later = force, attached, submit

    async def prepare(self) -> None:
        """The source has been seen whole: find out what is wired. Until `open`, it may be seen again."""
        if not self._wirings.all:
            await asyncio.to_thread(self._wirings.load)
        self._first.update(self._inventory.changes())
        self._pods.complete(dict(self._first))  # so that it is known who is not wired
        await self._look(strict=True)

    def open(self) -> None:
        """From now on runtimes are answered: what the source says is wanted."""
        self._submit = self._submit_later
        self._changed.tell()

    async def opened(self) -> None:
        """Return when runtimes are answered."""
        while self._submit is None:
            await self._changed.until(lambda: self._submit is not None, asyncio.get_running_loop().time() + INTERVAL)

    def changes(self) -> dict[Key, Object | None]:
        """Changes of the source and of the wirings since this was asked last: pods have the addresses of theirs."""
        changes = {**self._first, **self._inventory.changes()}
        self._first = {}
        self._pods.complete(changes)
        self._changed.tell()
        return changes

    @property
    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        """This node's pods that are wired, by name, whoever said so."""
        said = self._inventory.endpoints
        devices = {one.interface for one in said}
        wired = (one for one in self._pods.endpoints() if one.interface not in devices)
        return tuple(sorted((*said, *wired), key=lambda one: one.name))

    def passed(self) -> None:
        """A pass of reconciliation has ended."""
        self._changed.tell()

    @property
    def wired(self) -> tuple[int, int]:
        """How many pods are wired, and how many of them were found."""
        wirings = self._wirings.all.values()
        return len(wirings), sum(not one.container for one in wirings)

    @property
    def without(self) -> tuple[str, ...]:
        """Pods of this node that no policy covers, with why."""
        return search.reported(self._unfound, self._wirings.all.values())

    # ---- what runtimes ask ----

    async def answer(self, question: Question) -> None:
        """Do it. Raises CniError."""
        handlers: dict[str, Callable[[Question, float], Awaitable[None]]] = {
            "ADD": self._add,
            "DEL": self._del,
            "CHECK": self._check,
            "GC": self._gc,
            "STATUS": self._status,
        }
        handler = handlers.get(question.command)
        if handler is None:
            raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND {question.command[:16]!r} is not known")
        began = time.monotonic()
        await handler(question, asyncio.get_running_loop().time() + self._patience)
        if question.command in ("ADD", "DEL"):
            milliseconds = round((time.monotonic() - began) * 1000, 1)
            log.info("CNI", command=question.command, pod=read_container(question).pod, milliseconds=milliseconds)

    async def _add(self, question: Question, deadline: float) -> None:
        container = read_container(question)
        wiring = await self._wiring(question, container)
        known = self._wirings.all.get(wiring.pod)
        if known is not None and known.container == container.id and known.inner != container.interface:
            log.warning("a pod gets an interface that no policy covers", pod=wiring.pod, interface=container.interface)
            return
        if not await self._changed.until(lambda: self._submit is not None, deadline):
            raise CniError(TRY_AGAIN, "the agent does not know the cluster yet")
        self._wirings.put(wiring)
        await self._save()
        if not await self._changed.until(lambda: self._is_known(wiring), deadline):
            raise CniError(TRY_AGAIN, f"the pod {wiring.pod} is not known on this node yet")
        number = self._resubmit()
        if not await self._changed.until(lambda: self._in_force(wiring, number), deadline):
            raise CniError(TRY_AGAIN if self._force.live.number < number else NOT_IN_FORCE, self._why_not(wiring))
        # What the node's proxy answers goes by the node's own table, and pods tell each other alone where they are:
        # the address may have been a pod's whose station is gone.
        try:
            await asyncio.to_thread(neighbours.forget, wiring.addresses)
        except OSError as error:
            log.warning("the node may look for a pod where the last one was", pod=wiring.pod, error=str(error))

    async def _wiring(self, question: Question, container: Container) -> Wiring:
        """As the runtime and the kernel say it."""
        assert container.netns is not None  # of ADD and CHECK
        addresses = addresses_of(read_conf(question.document).prev_result, container.interface)
        side = await asyncio.to_thread(veth.look, container.netns, container.interface)
        ips = tuple(map(str, addresses))
        return Wiring(container.pod, container.uid, container.id, container.interface, container.netns, side, ips)

    async def _del(self, question: Question, deadline: float) -> None:
        container = read_container(question)
        number = await asyncio.to_thread(_inode, container.netns)
        if not await self._changed.until(lambda: self._submit is not None, deadline):
            raise CniError(TRY_AGAIN, "the agent does not know the cluster yet")
        await self._release([(container, number)], deadline)

    async def _release(self, containers: list[tuple[Container, int]], deadline: float) -> None:
        """Take these back, and return when the kernel knows none of them."""
        gone = [one for one in (self._wirings.release(*each) for each in containers) if one is not None]
        if gone:
            self._released = self._resubmit()
        await self._save()
        # Also what was released before this, which the kernel may still know.
        if not await self._changed.until(lambda: self._force.reached >= self._released, deadline):
            raise CniError(TRY_AGAIN, "the kernel still knows a pod that goes (spliceway status says why)")

    async def _check(self, question: Question, deadline: float) -> None:
        container = read_container(question)
        wanted = await self._wiring(question, container)
        known = self._wirings.all.get(wanted.pod)
        if known is None or not known.is_of(container, wanted.side.netns):
            raise CniError(NOT_WIRED, f"{wanted.pod} is not wired by this container")
        if known.inner not in ("", container.interface):
            return  # a further interface
        if known.side != wanted.side or set(known.ips) != set(wanted.ips):
            raise CniError(NOT_WIRED, f"{wanted.pod} is wired in another way")
        if not await self._changed.until(lambda: self._in_force(known, 0), min(deadline, _soon())):
            raise CniError(NOT_IN_FORCE, self._why_not(known))

    async def _gc(self, question: Question, deadline: float) -> None:
        valid = read_conf(question.document).valid
        if valid is None:
            return
        if not await self._changed.until(lambda: self._submit is not None, deadline):
            raise CniError(TRY_AGAIN, "the agent does not know the cluster yet")
        keep = {(one.container, one.interface) for one in valid}
        stale = [one for one in self._wirings.all.values() if one.container and (one.container, one.inner) not in keep]
        gone = [(Container(one.container, one.inner, None, one.pod, one.uid), 0) for one in stale]
        await self._release(gone, deadline)

    async def _status(self, _question: Question, _deadline: float) -> None:
        if self._submit is None or not self._force.reached:
            raise CniError(NOT_AVAILABLE, "no policy is in force yet")

    # ---- what is in force ----

    def _resubmit(self) -> int:
        assert self._submit is not None
        return self._submit()

    def _is_known(self, wiring: Wiring) -> bool:
        return self._wirings.all.get(wiring.pod) is not wiring or self._endpoint(wiring) is not None

    def _endpoint(self, wiring: Wiring) -> LocalEndpoint | None:
        if (endpoint := self._pods.endpoint(wiring)) is not None:
            return endpoint
        said = (one for one in self._inventory.endpoints if one.name == wiring.pod)
        return next((one for one in said if one.interface == wiring.side.interface), None)

    def _in_force(self, wiring: Wiring, number: int) -> bool:
        (live, table), endpoint = self._force.live, self._endpoint(wiring)
        if self._wirings.all.get(wiring.pod) is not wiring or table is None or endpoint is None:
            return False
        return (
            live >= number
            and wiring.pod in table.endpoints
            and all(ip_network(address) in table.ipcache for address in endpoint.addresses)
            and bool(self._attached(endpoint))
        )

    def _why_not(self, wiring: Wiring) -> str:
        if self._wirings.all.get(wiring.pod) is not wiring:
            return f"{wiring.pod} was taken back or wired anew meanwhile"
        return f"policy of {wiring.pod} is not in force yet (spliceway status says why)"

    # ---- what nobody told ----

    async def watch(self) -> None:
        """Look for pods that nobody told of, and forget wirings that are gone, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._submit is None:
                continue
            try:
                if await self._look():
                    self._resubmit()
            except OWN_ERRORS as error:
                log.warning("pods' wirings could not be looked at", error=str(error))

    async def _look(self, *, strict: bool = False) -> bool:
        """Whether something changed. `strict`: namespaces must be where they were, too."""
        gone, kept = await asyncio.to_thread(self._gone, list(self._wirings.all.values()), strict)
        gone = [one for one in gone if self._wirings.all.get(one.pod) is one]
        for one in gone:
            log.warning("a pod's interface is gone without a word", pod=one.pod, interface=one.side.interface)
        self._wirings.forget(gone, kept)
        wanted = self._unwired()
        vain, when = self._looked
        if wanted.keys() == vain and time.monotonic() - when < VAIN_INTERVAL:
            wanted = {}
        found = await asyncio.to_thread(self._find, wanted) if wanted else []
        # Meanwhile runtimes may have said something, and they know better.
        found = [one for one in found if one.pod in self._unwired() and self._wirings.is_free(one)]
        for one in found:
            log.info("pod found", pod=one.pod, interface=one.side.interface, netns=str(one.netns))
            self._wirings.put(one)
        self._unfound = frozenset(self._unwired())
        if wanted:
            self._looked = (self._unfound, time.monotonic())
        if gone or found:
            await self._save()
        return bool(gone or found)

    def _unwired(self) -> dict[str, tuple[Pod, Claim]]:
        """Pods that are looked for."""
        return self._pods.unwired()

    def _gone(self, wirings: list[Wiring], strict: bool) -> tuple[list[Wiring], frozenset[int]]:
        """Those that are there no more, and the inodes of namespaces that have a name."""
        kept = search.kept()
        try:
            indices = frozenset(one.ifindex for one in linktable.devices())
        except OSError:
            return [], kept | self._wirings.released
        return [one for one in wirings if not veth.is_there(one.side, one.netns if strict else None, indices)], kept

    def _find(self, wanted: Mapping[str, Any]) -> list[Wiring]:
        try:
            return search.Search(self._cgroup, self._wirings.released).find(wanted)
        except OSError as error:
            log.warning("the node could not be searched for pods", error=str(error))
            return []

    async def _save(self) -> None:
        async with self._saving:
            await asyncio.to_thread(self._wirings.save, self._wirings.packed())


def _inode(netns: Path | None) -> int:
    """Of a namespace, 0 where it is gone or was not named."""
    try:
        return veth.inode(netns) if netns is not None else 0
    except OSError:
        return 0


def _soon() -> float:
    return asyncio.get_running_loop().time() + 1.0
