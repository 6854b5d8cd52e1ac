"""Stage, flip, clean: how a new revision becomes visible in the kernel in one step.

Every policy value has two slots. A change fills the slot that is not live, for the changed keys only (the others
have the same in both); a key that is new gets, in the live slot, what the kernel answers for it now, so that adding
it changes nothing yet. Then one write of the generation switches all maps together. What is not needed any more goes
after that, when no program still runs with the old word. A failure before the switch leaves the old generation live.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.libbpf import BpfMap
from spliceway.bpf.maps import ZERO, Maps
from spliceway.bpf.rows import (
    Attached,
    LogicalRows,
    Longest,
    Rows,
    pack_class,
    pack_endpoint,
    pack_identity,
    pack_row,
    unpack_class,
    unpack_endpoint,
    unpack_identity,
    unpack_row,
    with_slots,
)

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}  # system call numbers
_MEMBARRIER_GLOBAL = 1
_GRACE_SECONDS = 0.05


class _Change(NamedTuple):
    """One key whose value differs: what it is now and what it will be; empty: nothing of its own."""

    key: bytes
    old: bytes
    new: bytes
    old_effective: bytes
    new_effective: bytes


def _changes(old: Rows, new: Rows, *, longest: bool) -> list[_Change]:
    keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    if not longest:
        return [_Change(k, old.get(k, b""), new.get(k, b""), old.get(k, b""), new.get(k, b"")) for k in keys]
    before, after = Longest(old), Longest(new)
    return [
        _Change(k, old.get(k, b""), new.get(k, b""), before.covering(k) or b"", after.covering(k) or b"") for k in keys
    ]


class _Staged(NamedTuple):
    """One map with its changes and how a value of two slots is packed for a key."""

    target: BpfMap
    changes: list[_Change]
    pack: Callable[[bytes, tuple[bytes, bytes]], bytes]
    keep: bool  # an absent value stays as an entry (endpoints: attached, not ready)

    def settle(self, items: list[tuple[bytes, bytes]]) -> None:
        """Give each key one value in both slots, or take it out."""
        gone = [key for key, value in items if not value and not self.keep]
        for key in gone:
            self.target.delete(key)
        self.target.update_many([(k, self.pack(k, (v, v))) for k, v in items if v or self.keep])


class KernelTable:
    """The live rows and the generation, read from the maps when an earlier agent's state is taken over."""

    def __init__(self, maps: Maps) -> None:
        """Read what is live, and settle what an agent that died while it staged has left."""
        self._maps = maps
        self.generation = int.from_bytes(maps.generation.lookup(ZERO) or b"", "little")
        slot = self.generation & 1
        ipcache = dict(maps.ipcache.items())
        self._rows = LogicalRows(
            endpoints={
                k: v
                for k, v in _settle(
                    maps.endpoints, slot, unpack_endpoint, lambda raw, v: with_slots(raw, (v, v)), keep=True
                ).items()
                if v
            },
            ipcache=_settle(
                maps.ipcache, slot, unpack_identity, lambda raw, v: pack_identity((v, v), _endpoint_of(raw))
            ),
            classes=_settle(maps.classes, slot, unpack_class, lambda _, v: pack_class((v, v))),
            policy=_settle(maps.policy, slot, unpack_row, lambda _, v: pack_row((v, v))),
            fixed={k: _endpoint_of(raw) for k, raw in ipcache.items() if _endpoint_of(raw)},
        )

    def __repr__(self) -> str:
        rows = f"rows={len(self._rows.policy)}, ipcache={len(self._rows.ipcache)}"
        return f"KernelTable(generation={self.generation}, {rows})"

    @property
    def rows(self) -> LogicalRows:
        """The live rows."""
        return self._rows

    def apply(self, new: LogicalRows, attached: Mapping[int, Attached]) -> int:
        """Make `new` live; `attached` by ifindex. Returns the generation, which stays when nothing differs.

        Raises KernelRefusedError, with the old generation still live.
        """
        staged = self._stage(new, attached)
        moved = [k for k in new.fixed.keys() | self._rows.fixed.keys() if new.fixed.get(k) != self._rows.fixed.get(k)]
        if not moved and not any(one.changes for one in staged):
            return self.generation
        live = self.generation & 1
        try:
            for one in staged:
                one.target.update_many(
                    [(c.key, one.pack(c.key, _slots(live, c.old_effective, c.new_effective))) for c in one.changes]
                )
        except KernelRefusedError:
            self._undo(staged)
            raise
        self.generation += 1
        self._maps.generation.update(ZERO, struct.pack("=Q", self.generation))
        wait_for_programs()
        for one in staged:
            one.settle([(c.key, c.new) for c in one.changes])
        changed = {c.key for c in staged[1].changes}
        settled = [(k, new.ipcache[k]) for k in moved if k in new.ipcache and k not in changed]
        self._maps.ipcache.update_many([(k, pack_identity((v, v), new.fixed.get(k, 0))) for k, v in settled])
        self._rows = new
        return self.generation

    def _undo(self, staged: list[_Staged]) -> None:
        """Take back what was staged: left in the idle slot, it would become live with the next switch."""
        for one in staged:
            one.settle([(c.key, c.old) for c in one.changes])

    def _stage(self, new: LogicalRows, attached: Mapping[int, Attached]) -> list[_Staged]:
        now, maps = self._rows, self._maps

        def endpoint(key: bytes, slots: tuple[bytes, bytes]) -> bytes:
            return pack_endpoint(attached[int.from_bytes(key, "little")], slots)

        known = {index.to_bytes(4, "little") for index in attached}
        endpoints = [c for c in _changes(now.endpoints, new.endpoints, longest=False) if c.key in known]
        return [
            _Staged(maps.classes, _changes(now.classes, new.classes, longest=False), lambda _, s: pack_class(s), False),
            _Staged(
                maps.ipcache,
                _changes(now.ipcache, new.ipcache, longest=True),
                lambda k, s: pack_identity(s, new.fixed.get(k, 0)),
                False,
            ),
            _Staged(maps.policy, _changes(now.policy, new.policy, longest=True), lambda _, s: pack_row(s), False),
            _Staged(maps.endpoints, endpoints, endpoint, True),
        ]


def _slots(live: int, old: bytes, new: bytes) -> tuple[bytes, bytes]:
    return (old, new) if live == 0 else (new, old)


def _settle(
    target: BpfMap,
    slot: int,
    unpack: Callable[[bytes, int], bytes],
    pack: Callable[[bytes, bytes], bytes],
    *,
    keep: bool = False,
) -> Rows:
    rows: Rows = {}
    for key, raw in list(target.items()):
        value = unpack(raw, slot)
        if not value and not keep:
            target.delete(key)
            continue
        if value != unpack(raw, 1 - slot):
            target.update(key, pack(raw, value))
        rows[key] = value
    return rows


def _endpoint_of(raw: bytes) -> int:
    return int.from_bytes(raw[8:12], "little")


def wait_for_programs() -> None:
    """Return when every program that was running has ended (membarrier(2) GLOBAL waits for an RCU grace period)."""
    number = _MEMBARRIER.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(number, _MEMBARRIER_GLOBAL, 0, 0) < 0:
        # Refused on kernels with nohz_full CPUs. A program runs for microseconds.
        time.sleep(_GRACE_SECONDS)
