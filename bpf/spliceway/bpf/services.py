"""Services in the kernel: the maps that the socket load balancer chooses from, filled by what changes.

Numbers of sets and backends are in the maps and are read back, so that a restarted agent goes on with the same ones.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from spliceway.bpf import servicerows
from spliceway.bpf.errors import DatapathError, MapFullError
from spliceway.bpf.grace import wait_for_programs
from spliceway.bpf.libbpf import BpfMap
from spliceway.bpf.servicerows import BackendSet
from spliceway.policy.lbmodel import Frontend, FrontendState
from spliceway.policy.verdict import Protocol

_NUMBERS = 0xFFFF_FFFF


class BackendRow(msgspec.Struct, frozen=True):
    """A backend as it is in the kernel. `number` stays with it as long as it is in its set."""

    number: int
    address: str
    port: int


class FrontendRow(msgspec.Struct, frozen=True):
    """A frontend as it is in the kernel, its backends by place.

    `service`, `port_name`, `kind`: as far as this agent was told.
    """

    address: str
    port: int
    protocol: str
    set: int
    affinity_seconds: int
    backends: tuple[BackendRow, ...]
    service: str = ""
    port_name: str = ""
    kind: str = ""


class Applied(msgspec.Struct, frozen=True):
    """What a change came to. `udp_gone`: whether connected UDP sockets may have lost their backends."""

    frontends: int
    removed: int
    backends_added: int
    backends_removed: int
    udp_gone: bool


class ServiceMaps:
    """The load balancer's maps below one pin root. Not for two threads at once."""

    def __init__(self, pin_root: Path, configured: Mapping[str, int] | None = None) -> None:
        """Open them, and settle what an interrupted change left. Raises KernelRefusedError: one is missing.

        `configured`: sizes for maps that are made now (`mapsizes.py`).
        """
        self._configured = configured or {}
        directory = pin_root / "maps"
        self._frontends, self._rows, self._backends, self._connected, self._untouched = (
            BpfMap.open(directory / f"lb_{name}", f"lb_{name}")
            for name in ("frontends", "rows", "backends", "connected", "untouched")
        )
        self._sets: dict[Frontend, BackendSet] = {}
        self._states: dict[Frontend, FrontendState] = {}
        self._next, self._is_known, self._counts = 1, False, Counter[str]()
        self._settle()

    def __repr__(self) -> str:
        return f"ServiceMaps(frontends={len(self._sets)}, next={self._next}, known={self._is_known})"

    def close(self) -> None:
        """Close the descriptors; the maps stay."""
        for opened in (self._frontends, self._rows, self._backends, self._connected, self._untouched):
            opened.close()

    @property
    def frontends(self) -> frozenset[Frontend]:
        """What is in the kernel, also what an earlier agent left there."""
        return frozenset(self._sets)

    @property
    def counts(self) -> tuple[int, int]:
        """How many frontends there are, and how many backends of them."""
        return self._counts["lb_frontends"], self._counts["lb_backends"]

    def leave_alone(self, namespaces: Iterable[int]) -> None:
        """Translate for sockets of all network namespaces but these (by cookie). Raises KernelRefusedError."""
        wanted = {cookie.to_bytes(8, sys.byteorder): b"\1" for cookie in namespaces}
        have = dict(self._untouched.items())
        for key in have.keys() - wanted.keys():
            self._untouched.delete(key)
        self._untouched.update_many([(key, one) for key, one in wanted.items() if key not in have])

    def apply(self, changes: Mapping[Frontend, FrontendState | None]) -> Applied:
        """Make these frontends so, or take them out (None); all others stay. Costs what changes. Blocks.

        When it returns, nobody is sent to a backend any more that has gone. Frontends of other protocols than TCP and
        UDP are passed over. Raises DatapathError or MapFullError: nothing has changed. KernelRefusedError: some of it
        was written; every frontend then has its old backends or its new ones, and the same call may be made again.
        """
        wanted = servicerows.check(changes)
        if not self._is_known:
            self._settle()
        planned = []
        for frontend, state in wanted.items():
            old = self._sets.get(frontend)
            new = None if state is None else servicerows.changed_set(old, state, self._number)
            if new != old:
                planned.append((frontend, old, new))
        self._check_room(planned)
        edits = servicerows.edits(planned)
        self._is_known = False
        self._write(edits)
        self._is_known = True
        for frontend, old, new in planned:
            self._count(old, -1)
            self._count(new, 1)
            if new is None:
                del self._sets[frontend]
            else:
                self._sets[frontend] = new
        for frontend, state in wanted.items():
            if state is None:
                self._states.pop(frontend, None)
            else:
                self._states[frontend] = state
        lost = [
            frontend
            for frontend, old, new in planned
            if old and not set(old.numbers) <= set(new.numbers if new else ())
        ]
        return Applied(
            frontends=len(planned),
            removed=len(edits.gone_frontends),
            backends_added=len(edits.backends),
            backends_removed=len(edits.gone_backends),
            udp_gone=any(frontend.protocol is Protocol.UDP for frontend in lost),
        )

    def is_lost(self, cookie: bytes, remote: bytes) -> bool:
        """Whether a connected UDP socket got `remote` (`struct lb_backend`) from us, and that is no backend by now."""
        key = self._connected.lookup(cookie)
        return key is not None and self._backends.lookup(key) != remote

    def dump(self) -> list[FrontendRow]:
        """All frontends as they are in the kernel, in order."""
        held = self._read()
        return [self._row(frontend, held.sets[frontend]) for frontend in sorted(held.sets, key=_order)]

    def _row(self, frontend: Frontend, found: BackendSet) -> FrontendRow:
        state = self._states.get(frontend)
        members = zip(found.numbers, found.backends, strict=True)
        return FrontendRow(
            address=str(frontend.address),
            port=frontend.port,
            protocol=frontend.protocol.name,
            set=found.number,
            affinity_seconds=found.affinity,
            backends=tuple(BackendRow(number, str(backend.address), backend.port) for number, backend in members),
            service=state.service if state else "",
            port_name=state.port_name if state else "",
            kind=state.kind if state else "",
        )

    def _number(self) -> int:
        """One that no set and no backend has had, as long as this agent and its maps can tell."""
        if self._next > _NUMBERS:
            raise DatapathError("numbers of backends are used up: switch datapath.socketLb off and on again")
        self._next += 1
        return self._next - 1

    def _check_room(self, planned: list[tuple[Frontend, BackendSet | None, BackendSet | None]]) -> None:
        """What goes is there as long as what comes is written."""
        coming, going = Counter[str](), Counter[str]()
        for _, old, new in planned:
            before, after = _sizes(old), _sizes(new)
            members = set(old.numbers) if old else set()
            arrived = sum(number not in members for number in new.numbers) if new else 0
            coming.update(
                lb_frontends=int(old is None), lb_rows=max(0, after["lb_rows"] - before["lb_rows"]), lb_backends=arrived
            )
            going.update({name: before[name] - after[name] for name in before})
        for opened in (self._frontends, self._rows, self._backends):
            together = self._counts[opened.name] + coming[opened.name]
            if together > opened.max_entries:
                need = self._counts[opened.name] - going[opened.name]
                configured = self._configured.get(opened.name)
                raise MapFullError(opened.name, need, together, opened.max_entries, configured)

    def _count(self, one: BackendSet | None, sign: int) -> None:
        for name, size in _sizes(one).items():
            self._counts[name] += sign * size

    def _write(self, edits: servicerows.Edits) -> None:
        """In the order that readers rely on (`c/lb.h`)."""
        self._backends.update_many(edits.backends)
        self._rows.update_many(edits.further_rows)
        self._rows.update_many(edits.first_rows)
        self._frontends.update_many(edits.frontends)
        for key in edits.gone_frontends:
            self._frontends.delete(key)
        if edits.gone_frontends or edits.gone_rows or edits.gone_backends:
            wait_for_programs()
        self._forget(edits.gone_rows, edits.gone_backends)
        if edits.gone_backends:  # a socket that looked for its backend before that was deleted has sent by now
            wait_for_programs()

    def _forget(self, rows: list[bytes], backends: list[bytes]) -> None:
        for key in rows:
            self._rows.delete(key)
        for key in backends:
            self._backends.delete(key)

    def _read(self) -> servicerows.Held:
        return servicerows.read_back(
            *(dict(opened.items()) for opened in (self._frontends, self._rows, self._backends))
        )

    def _settle(self) -> None:
        """Take over what the maps hold, and delete what nothing names."""
        held = self._read()
        self._rows.update_many([row for one in held.damaged for row in held.sets[one].rows()])
        self._forget(held.stray_rows, held.stray_backends)
        self._sets, self._next, self._counts = held.sets, max(self._next, held.highest + 1), Counter()
        for one in held.sets.values():
            self._count(one, 1)
        self._is_known = True


def _sizes(one: BackendSet | None) -> dict[str, int]:
    if one is None:
        return dict.fromkeys(("lb_frontends", "lb_rows", "lb_backends"), 0)
    return {"lb_frontends": 1, "lb_rows": one.blocks, "lb_backends": len(one.numbers)}


def _order(frontend: Frontend) -> tuple[int, int, int, int]:
    return frontend.address.version, int(frontend.address), frontend.port, frontend.protocol
