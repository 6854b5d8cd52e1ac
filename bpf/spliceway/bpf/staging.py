"""Stage, flip, clean: how a new revision becomes visible in the kernel in one step.

Every policy value has two slots. A change fills the slot that is not live, for the changed keys only (the others
have the same in both); a key that is new gets, in the live slot, what the kernel answers for it now, so that adding
it changes nothing yet. Then one write of the generation switches all maps together. What is not needed any more goes
after that, when no program still runs with the old word. A failure before the switch leaves the old generation live.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import msgspec

from spliceway.bpf.errors import KernelRefusedError, MapFullError
from spliceway.bpf.grace import wait_for_programs
from spliceway.bpf.libbpf import BpfMap
from spliceway.bpf.maps import ZERO, Maps
from spliceway.bpf.rows import (
    Attached,
    Edits,
    LogicalRows,
    Longest,
    RowEdits,
    Rows,
    addresses,
    delta_rows,
    full_edits,
    logical_rows,
    nobody_there,
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
from spliceway.bpf.servicemarks import SHARE, ServiceMarks
from spliceway.bpf.types import IPAddress
from spliceway.policy.table import PolicyTable, TableDelta

#: So many values are written in one system call.
_PIECE = 4096


class _Change(msgspec.Struct, frozen=True, gc=False):
    """One key whose value differs: what it is now and what it will be; empty: nothing of its own."""

    key: bytes
    old: bytes
    new: bytes
    old_effective: bytes
    new_effective: bytes


class _Staged(NamedTuple):
    """One map with its changes and how a value of two slots is packed for a key."""

    target: BpfMap
    changes: list[_Change]
    pack: Callable[[bytes, tuple[bytes, bytes]], bytes]
    keep: bool = False  # an absent value stays as an entry (endpoints: attached, not ready)

    def back(self) -> _Staged:
        """The same changes the other way."""
        return self._replace(
            changes=[_Change(c.key, c.new, c.old, c.new_effective, c.old_effective) for c in self.changes]
        )

    def stage(self, live: int) -> None:
        """Fill the idle slot."""
        for some in _pieces(self.changes):
            self.target.update_many(
                [(c.key, self.pack(c.key, _slots(live, c.old_effective, c.new_effective))) for c in some]
            )

    def settle(self) -> None:
        """Give each key its new value in both slots, or take it out."""
        for change in self.changes:
            if not change.new and not self.keep:
                self.target.delete(change.key)
        for some in _pieces(self.changes):
            self.target.update_many([(c.key, self.pack(c.key, (c.new, c.new))) for c in some if c.new or self.keep])


class KernelTable:
    """The live rows and the generation, read from the maps when an earlier agent's state is taken over."""

    def __init__(self, maps: Maps, configured: Mapping[str, int] | None = None) -> None:
        """Read what is live, and settle what an agent that died while it staged has left."""
        self._maps, self._configured = maps, configured or {}  # sizes for maps that are made now (`mapsizes.py`)
        self.generation = int.from_bytes(maps.generation.lookup(ZERO) or b"", "little")
        self._applied: PolicyTable | None = None
        slot = self.generation & 1
        self._rows = LogicalRows(
            endpoints={
                k: v
                for k, v in _settle(
                    maps.endpoints, slot, unpack_endpoint, lambda raw, v: with_slots(raw, (v, v)), keep=True
                ).items()
                if v
            },
            ipcache=_settle(maps.ipcache, slot, unpack_identity, lambda _, v: pack_identity((v, v))),
            classes=_settle(maps.classes, slot, unpack_class, lambda _, v: pack_class((v, v))),
            policy=_settle(maps.policy, slot, unpack_row, lambda _, v: pack_row((v, v))),
            pairs=dict(maps.pairs.items()),
        )
        self._ipcache, self._policy = Longest(self._rows.ipcache), Longest(self._rows.policy)
        self._local = {key for key, value in self._rows.ipcache.items() if value != nobody_there(value)}
        self._unsettled: list[_Staged] = []
        self.marks = ServiceMarks(maps.ipcache.max_entries // SHARE)

    def __repr__(self) -> str:
        rows = f"rows={len(self._rows.policy)}, ipcache={len(self._rows.ipcache)}"
        return f"KernelTable(generation={self.generation}, {rows})"

    @property
    def rows(self) -> LogicalRows:
        """The live rows."""
        return self._rows

    def apply(
        self,
        table: PolicyTable,
        attached: Mapping[str, Attached],
        served: Collection[IPAddress] = (),
        live: Callable[[], object] = lambda: None,
    ) -> int:
        """Make `table` live, with `marks`. Returns the generation, which stays when nothing differs.

        `served`: see `logical_rows`. `live` is called when every program that begins from then on goes by the table:
        a grace period before this returns, since when none goes by the one before.

        Costs what changed when the table's delta is against the table that was applied last, or it is that one again.
        Raises KernelRefusedError, with the old generation still live.
        """
        self._settle()
        last, self._applied = self._applied, None
        if last is not None and table is last:
            edits = delta_rows(table, TableDelta(table.revision), attached, served)
        elif last is not None and table.delta is not None and table.delta.base == last.revision:
            edits = delta_rows(table, table.delta, attached, served)
        else:
            edits = full_edits(self._rows, logical_rows(table, attached, served))
        local = addresses(attached, served).keys()
        for key in self._local - local - edits.ipcache.keys():
            if key in self._rows.ipcache:
                edits.ipcache[key] = nobody_there(self._rows.ipcache[key])
        self.marks.edit(edits.ipcache, table, self._ipcache, local, self._local ^ local)
        try:
            self._switch(edits, {one.ifindex: one for one in attached.values()}, live)
        except MapFullError:
            self._applied = last  # nothing was touched
            raise
        self.marks.done()
        self._local = set(local)
        self._applied = table
        return self.generation

    def _switch(self, edits: RowEdits, attached: Mapping[int, Attached], live: Callable[[], object]) -> None:
        rows = self._rows
        known = {index.to_bytes(4, "little") for index in attached}
        endpoints = {k: v for k, v in edits.endpoints.items() if k in known and rows.endpoints.get(k) != v}
        classes, ipcache = _differing(rows.classes, edits.classes), _differing(rows.ipcache, edits.ipcache)
        policy, pairs = _differing(rows.policy, edits.policy), _differing(rows.pairs, edits.pairs)
        maps = self._maps
        for target, before, after in (
            (maps.endpoints, rows.endpoints, endpoints),
            (maps.ipcache, rows.ipcache, ipcache),
            (maps.classes, rows.classes, classes),
            (maps.policy, rows.policy, policy),
            (maps.pairs, rows.pairs, pairs),
        ):
            _check_room(target, before, after, self._configured.get(target.name))
        if not (endpoints or classes or ipcache or policy or pairs):
            return
        staged = [
            _Staged(maps.classes, _plain(rows.classes, classes), lambda _, s: pack_class(s)),
            _Staged(maps.ipcache, _prefixes(self._ipcache, ipcache), lambda _, s: pack_identity(s)),
            _Staged(maps.policy, _prefixes(self._policy, policy), lambda _, s: pack_row(s)),
            _Staged(
                maps.endpoints,
                _plain(rows.endpoints, endpoints),
                lambda k, s: pack_endpoint(attached[int.from_bytes(k, "little")], s),
                keep=True,
            ),
        ]
        self._write(staged, pairs, live)
        for before, after in ((rows.classes, classes), (rows.endpoints, endpoints), (rows.pairs, pairs)):
            _put(before, after)
        self._settle()
        for key in [k for k, v in pairs.items() if v is None]:
            self._maps.pairs.delete(key)

    def _write(self, staged: list[_Staged], pairs: Edits, live: Callable[[], object]) -> None:
        try:
            self._maps.pairs.update_many([(k, v) for k, v in pairs.items() if v is not None])
            for one in staged:
                one.stage(self.generation & 1)
        except KernelRefusedError:
            self._undo(staged, pairs)
            raise
        self._go_to(self.generation + 1)
        self._unsettled = staged
        live()
        wait_for_programs()

    def judge_again(self) -> int:
        """Have every connection judged again by the same rows: something else has changed that verdicts depend on.

        Returns the new generation. When it returns, no program goes by the old one any more.
        """
        self._go_to(self.generation + 2)  # the live slot stays
        wait_for_programs()
        return self.generation

    def _go_to(self, generation: int) -> None:
        self._maps.generation.update(ZERO, struct.pack("=Q", generation))
        self.generation = generation

    def _undo(self, staged: list[_Staged], pairs: Edits) -> None:
        for trie, changes in ((self._ipcache, staged[1].changes), (self._policy, staged[2].changes)):
            for change in changes:
                trie.put(change.key, change.old or None)
        self._unsettled = [one.back() for one in staged]
        self._settle()
        for key in pairs:
            before = self._rows.pairs.get(key)
            if before is None:
                self._maps.pairs.delete(key)
            else:
                self._maps.pairs.update(key, before)

    def _settle(self) -> None:
        """Make both slots alike where the last change, or its undoing, has left them different.

        What stayed in the idle slot would become live with the next switch: nothing is staged before this is done.
        """
        while self._unsettled:
            self._unsettled[0].settle()
            self._unsettled = self._unsettled[1:]


def _check_room(target: BpfMap, before: Rows, edits: Edits, configured: int | None) -> None:
    """While a change is staged, what comes and what goes are there together."""
    new = sum(key not in before for key, value in edits.items() if value is not None)
    gone = sum(value is None for value in edits.values())
    if len(before) + new > target.max_entries:
        raise MapFullError(target.name, len(before) + new - gone, len(before) + new, target.max_entries, configured)


def _differing(rows: Rows, edits: Edits) -> Edits:
    return {key: value for key, value in edits.items() if rows.get(key) != value}


def _plain(rows: Rows, edits: Edits) -> list[_Change]:
    return [_Change(k, rows.get(k, b""), v or b"", rows.get(k, b""), v or b"") for k, v in edits.items()]


def _prefixes(trie: Longest, edits: Edits) -> list[_Change]:
    """Changes of a trie, with what the kernel answers for their keys before and after. `trie` is as after then."""
    old = [trie.rows.get(key, b"") for key in edits]
    effective = [trie.covering(key) or b"" for key in edits]
    for key, value in edits.items():
        trie.put(key, value)
    return [
        _Change(key, was, trie.rows.get(key, b""), answer, trie.covering(key) or b"")
        for key, was, answer in zip(edits, old, effective, strict=True)
    ]


def _pieces(changes: list[_Change]) -> Iterator[list[_Change]]:
    """The first table of a large cluster has a hundred thousand: not all of them need be packed at a time."""
    for start in range(0, len(changes), _PIECE):
        yield changes[start : start + _PIECE]


def _put(rows: Rows, edits: Edits) -> None:
    for key, value in edits.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


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
