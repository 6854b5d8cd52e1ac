"""Services on their way to the kernel: first what goes leaves, then, once policy knows them, come those that are new.

A backend is dialled only while policy knows who it is. So it leaves load balancing before the rows forget it, and it
is added when the rows that know it are in force. What was told and is not in the kernel yet is kept until it is,
however often that fails; after a start, and after a failure, the kernel is read and compared with all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address

import msgspec

from spliceway.agent.control import DatapathControl
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.services import FrontendRow
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState, backend_order
from spliceway.policy.loadbalancing import Changes
from spliceway.policy.table import IPAddress
from spliceway.policy.verdict import Protocol

_Known = Callable[[IPAddress], bool]
_PROTOCOLS = (Protocol.TCP, Protocol.UDP)
#: How many are tried alone and refused before the rest is left for the next time: maps that are full stay so.
_REFUSALS = 32
#: How many of them are named.
_NAMED = 3


class ServiceSync:
    """See the module. `want` and `serve` must not be called during `leave` and `join`, which raise DatapathError.

    `changes`: frontends that were written or taken out; `failures`: how often some were refused.
    """

    def __init__(self, datapath: DatapathControl, frontends: Callable[[], Mapping[Frontend, FrontendState]]) -> None:
        """`frontends`: all that there shall be, as of the last `want`."""
        self._datapath = datapath
        self._frontends = frontends
        self._given: dict[Frontend, FrontendState] | None = None  # what the kernel has, None: must be read
        self._pending: dict[Frontend, FrontendState | None] = {}
        self._served: frozenset[IPAddress] = frozenset()
        self._is_due = True
        self.changes = 0
        self.failures = 0

    def __repr__(self) -> str:
        return f"ServiceSync(pending={len(self._pending)}, changes={self.changes}, failures={self.failures})"

    @property
    def is_pending(self) -> bool:
        """Whether something is still to be told to the kernel, or to be tried again."""
        return self._is_due or bool(self._pending)

    def want(self, changes: Changes) -> None:
        """These frontends are to be so from now on; None: there is none any more."""
        self._pending.update(
            (key, None if key.address in self._served else state)
            for key, state in changes.items()
            if key.protocol in _PROTOCOLS
        )

    def serve(self, addresses: frozenset[IPAddress]) -> None:
        """The node itself answers by these addresses from now on: what dials them is not sent elsewhere."""
        moved, self._served = addresses ^ self._served, addresses
        if moved:
            self.want({key: state for key, state in self._frontends().items() if key.address in moved})

    async def leave(self, is_known: _Known) -> None:
        """Take out what has gone. `is_known`: whether the policy that comes still knows who has this address."""
        given = await self._read()
        if changes := leaving(given, self._pending, is_known):
            await self._give_most(changes, given)

    async def join(self) -> None:
        """Make all of it as it was wanted: the policy that knows these backends is in force."""
        given = await self._read()
        changes = {key: state for key, state in self._pending.items() if given.get(key) != state}
        if changes or self._is_due:
            await self._give_most(changes, given)
            self._is_due = False
        self._pending.clear()

    async def _read(self) -> dict[Frontend, FrontendState]:
        if self._given is None:
            self._given = dict(map(_state, await self._datapath.held_services()))
            wanted = self._frontends()
            if self._served:
                wanted = {key: state for key, state in wanted.items() if key.address not in self._served}
            self._pending = missing(self._given, wanted)
            self._is_due = True  # what follows from an earlier change may be left to do
        return self._given

    async def _give_most(self, changes: Changes, given: dict[Frontend, FrontendState]) -> None:
        """Give them all; what is refused for itself does not keep the others. Raises DatapathError for what is left."""
        first: DatapathError | None = None
        left: list[Frontend] = []
        refusals = 0
        parts = [sorted(changes.items(), key=lambda one: _growth(given.get(one[0]), one[1]))]
        while parts:
            part = parts.pop()
            try:
                await self._give(dict(part), given)
            except DatapathError as error:
                if self._given is None:
                    self.failures += 1
                    raise
                first = first or error
                if len(part) > 1 and refusals < _REFUSALS:
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
                else:
                    left += [frontend for frontend, _ in part]
                    refusals += 1
        if first is not None:
            self.failures += 1
            more = ", …" if len(left) > _NAMED else ""
            named = ", ".join(f"{one}{_of(changes[one])}" for one in left[:_NAMED])
            raise DatapathError(f"frontends that stay as they were: {len(left)} ({named}{more}): {first}")

    async def _give(self, changes: Changes, given: dict[Frontend, FrontendState]) -> None:
        try:
            applied = await self._datapath.set_services(changes)
        except BaseException as error:
            # Of what is too large or bad nothing was written; where the kernel refused, nobody knows.
            if not isinstance(error, DatapathError) or type(error) is KernelRefusedError:
                self._given = None
            raise
        self.changes += applied.frontends
        for frontend, state in changes.items():
            if state is None:
                given.pop(frontend, None)
            else:
                given[frontend] = state


def _growth(before: FrontendState | None, after: FrontendState | None) -> tuple[bool, bool, int]:
    """Sort key: what needs least room comes first, and a new frontend never before what is in use.

    New ones without backends come last: they take the room of a frontend, and nobody gets anywhere by them.
    """
    count = len(after.backends) if after is not None else -1
    return before is None, before is None and count == 0, count - (len(before.backends) if before is not None else 0)


def _of(state: FrontendState | None) -> str:
    return f" of {state.service}" if state is not None and state.service else ""


class NoServices(ServiceSync):
    """Where others translate."""

    is_pending = False

    def __init__(self) -> None:
        self.changes = self.failures = 0

    def serve(self, addresses: frozenset[IPAddress]) -> None:
        """Nothing."""

    async def leave(self, is_known: _Known) -> None:
        """Nothing."""

    async def join(self) -> None:
        """Nothing."""


def missing(
    given: Mapping[Frontend, FrontendState], wanted: Mapping[Frontend, FrontendState]
) -> dict[Frontend, FrontendState | None]:
    """What must be told to make of the one the other. Pure."""
    found: dict[Frontend, FrontendState | None] = {
        key: state for key, state in wanted.items() if key.protocol in _PROTOCOLS and given.get(key) != state
    }
    found.update(dict.fromkeys(key for key in given if key not in wanted))
    return found


def leaving(
    given: Mapping[Frontend, FrontendState], pending: Changes, is_known: _Known
) -> dict[Frontend, FrontendState | None]:
    """What can go before what comes: `given` without the frontends and backends that `pending` does not have. Pure.

    Where all backends are others, those that policy goes on to know stay until then: connections would be refused.
    """
    found: dict[Frontend, FrontendState | None] = {}
    for frontend, state in pending.items():
        before = given.get(frontend)
        if before is None:
            continue
        if state is None:
            found[frontend] = None
            continue
        wanted = set(state.backends)
        stay = [one for one in before.backends if one in wanted]
        if not stay and wanted:
            stay = [one for one in before.backends if is_known(one.address)]
        if len(stay) < len(before.backends):
            found[frontend] = msgspec.structs.replace(before, backends=tuple(stay))
    return found


def _state(row: FrontendRow) -> tuple[Frontend, FrontendState]:
    frontend = Frontend(ip_address(row.address), row.port, Protocol[row.protocol])
    backends = sorted((Backend(ip_address(one.address), one.port) for one in row.backends), key=backend_order)
    return frontend, FrontendState(row.service, row.port_name, row.kind, tuple(backends), row.affinity_seconds)
