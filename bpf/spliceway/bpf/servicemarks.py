"""Addresses that Services are dialled by, in `ipcache`: marked beside the identity that they have anyhow. Pure.

What a pod sends there is judged where the Service leads (`c/decide.h`, leads_on). A marked address has a row of its
own, with the identity of the longest prefix that covers it; so that row changes when such a prefix comes, changes or
goes. An address that is a pod's, a node's or served by the node keeps its meaning: only what is outside of the cluster
is marked.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from ipaddress import ip_network

from spliceway.bpf import abi
from spliceway.bpf.addresses import pack_prefix
from spliceway.bpf.rows import Edits, Longest
from spliceway.bpf.types import IPAddress
from spliceway.policy.entity import Reserved
from spliceway.policy.numbering import FIRST_CIDR_IDENTITY
from spliceway.policy.table import IPNetwork, PolicyTable

#: One entry of so many in `ipcache` is kept for them.
SHARE = 8
_IDENTITY = struct.Struct("=II")
_WORLD = frozenset({Reserved.WORLD_IPV4, Reserved.WORLD_IPV6})
_FULL = 128


class ServiceMarks:
    """See the module. Call `done` when what `edit` said is in force; until then it says it again."""

    def __init__(self, room: int) -> None:
        """`room`: how many there may be; addresses for which there is none are judged by themselves."""
        self._room = room
        self._wanted: dict[bytes, IPNetwork] = {}
        self._touched: dict[bytes, IPNetwork] = {}
        self._marked: set[bytes] = set()
        self._left_out: dict[bytes, IPNetwork] = {}
        self._held: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"ServiceMarks(wanted={len(self._wanted)}, touched={len(self._touched)}, left_out={self.left_out})"

    @property
    def left_out(self) -> int:
        """For how many there was no room."""
        return len(self._left_out)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, for people."""
        who = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in self._held.items())
        held = f"egress policies must allow Services' own addresses, too, as where they lead can't be judged ({who})"
        full = f"addresses of Services that egress policies must allow themselves, for want of room: {self.left_out}"
        return (*([held] if who and self._wanted else []), *([full] if self._left_out else []))

    @property
    def pending(self) -> bool:
        """Whether something is to be done that is in force not yet."""
        return self._touched.keys() != self._left_out.keys()

    def want(self, changes: Mapping[IPAddress, bool]) -> None:
        """These addresses are Services' from now on, or (False) not any more."""
        for address, is_service in changes.items():
            network = ip_network(address)
            key = pack_prefix(network)
            self._touched[key] = network
            if is_service:
                self._wanted[key] = network
            else:
                self._wanted.pop(key, None)

    def hold(self, kind: str, who: Sequence[str]) -> None:
        """Mark none at all, as long as there are such ones of any kind."""
        before = bool(self._held)
        self._held.pop(kind, None)
        if who:
            self._held[kind] = tuple(who)
        if before != bool(self._held):
            self._touched |= self._wanted

    def edit(
        self, edits: Edits, table: PolicyTable, trie: Longest, local: Collection[bytes], moved: AbstractSet[bytes]
    ) -> None:
        """Complete the edits of `ipcache` that lead from `trie` to `table`.

        `local`: keys of addresses that have another meaning, `moved` of those that have lost it or have it only now.
        Costs what changes; all that are marked, where a prefix changes that has more addresses than one.
        """
        chosen = {key: self._wanted[key] for key in self._wanted.keys() & (moved | edits.keys())}
        if any(_bits(key) < _FULL for key in edits):
            chosen = dict(self._wanted)
        chosen |= self._touched
        lengths = sorted({*trie.lengths, *map(_bits, edits)} - {_FULL}, reverse=True)
        found: Edits = {}
        self._left_out = {}
        self._marked -= chosen.keys()
        for key, network in chosen.items():
            if key in local:
                continue
            exact = table.ipcache.get(network)
            identity = _covering(key, trie, edits, lengths) if exact is None else exact
            if key not in self._wanted or self._held or not _is_outside(identity):
                found[key] = None if exact is None else _IDENTITY.pack(exact, 0)
            elif len(self._marked) < self._room:
                self._marked.add(key)
                found[key] = _IDENTITY.pack(identity, abi.SERVICE_ADDRESS)
            else:
                self._left_out[key] = network
                found[key] = None if exact is None else _IDENTITY.pack(exact, 0)
        edits.update(found)

    def done(self) -> None:
        """What was said last is in force."""
        self._touched = dict(self._left_out)


def _bits(key: bytes) -> int:
    return int.from_bytes(key[:4], "little")


def _is_outside(identity: int) -> bool:
    """As `is_outside` in `c/decide.h`."""
    return identity in _WORLD or identity >= FIRST_CIDR_IDENTITY


def _covering(key: bytes, trie: Longest, edits: Edits, lengths: Sequence[int]) -> int:
    """Identity of the longest shorter prefix that covers `key` once `edits` are made, 0: none."""
    for length in lengths:
        above = trie.prefix(key, length)
        found = edits[above] if above in edits else trie.rows.get(above)
        if found is not None:
            return int.from_bytes(found[:4], "little")
    return 0
