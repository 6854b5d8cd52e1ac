"""From frontends and backends to the elements of the load balancer's maps, and what an edit changes. Pure.

Every frontend has a set of backends. In it, a backend has a number for as long as it stays, by which sockets and pods
that keep it know it, and a place, of which one is drawn for each connection. What goes leaves its place to what comes,
or to the last; numbers of others stay, so that no other socket moves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from spliceway.bpf.addresses import pack_address, unpack_address
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.lbabi import LB_ROW
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol

#: What sockets of pods ask us for; all else is left to kube-proxy.
PROTOCOLS = frozenset({Protocol.TCP, Protocol.UDP})
#: A day, as Kubernetes has it.
MAX_AFFINITY = 86_400

_PORT = struct.Struct("!H")
_KEY = struct.Struct("=16s2sBx")
_WORD = struct.Struct("=Q")
_PAIR = struct.Struct("=II")
_ROW = struct.Struct(f"={1 + LB_ROW}I")
_BACKEND = struct.Struct("=16s2s2x")


class BackendSet(NamedTuple):
    """One frontend's backends by place, and their numbers."""

    number: int
    affinity: int
    backends: tuple[Backend, ...]
    numbers: tuple[int, ...]

    def members(self) -> Iterator[tuple[bytes, bytes]]:
        """Elements of `lb_backends`."""
        for backend, number in zip(self.backends, self.numbers, strict=True):
            yield _PAIR.pack(self.number, number), pack_backend(backend)

    def rows(self, before: Sequence[int] = ()) -> list[tuple[bytes, bytes]]:
        """Elements of `lb_rows`, block 0 last. Places behind the last one keep their numbers (`before`).

        Who has read the count before it shrank still finds somebody there.
        """
        numbers = (*self.numbers, *before[len(self.numbers) :])
        found = []
        for block in reversed(range(self.blocks)):
            here = numbers[block * LB_ROW : (block + 1) * LB_ROW]
            row = _ROW.pack(0 if block else len(self.numbers), *here, *[0] * (LB_ROW - len(here)))
            found.append((_PAIR.pack(self.number, block), row))
        return found

    @property
    def blocks(self) -> int:
        """How many rows it has."""
        return max(1, -(-len(self.numbers) // LB_ROW))

    def row_keys(self) -> set[bytes]:
        """Keys of its rows."""
        return {_PAIR.pack(self.number, block) for block in range(self.blocks)}

    @property
    def word(self) -> bytes:
        """`struct lb_frontend`."""
        return _WORD.pack(self.number | self.affinity << 32)


class Edits(NamedTuple):
    """What to write, in the order in which it must be written: see `c/lb.h`."""

    backends: list[tuple[bytes, bytes]]
    further_rows: list[tuple[bytes, bytes]]
    first_rows: list[tuple[bytes, bytes]]
    frontends: list[tuple[bytes, bytes]]
    gone_frontends: list[bytes]
    gone_rows: list[bytes]
    gone_backends: list[bytes]


def check(changes: Mapping[Frontend, FrontendState | None]) -> dict[Frontend, FrontendState | None]:
    """The changes that concern pods' sockets. Raises DatapathError naming what is wrong; nothing is to be done then."""
    for frontend, state in changes.items():
        where = f"frontend {frontend}" + (f" of {state.service}" if state else "")
        if not 0 < frontend.port <= 0xFFFF:
            raise DatapathError(f"{where}: port: {frontend.port} is not between 1 and 65535")
        if state is None:
            continue
        if _is_nobodys(frontend.address):
            raise DatapathError(f"{where}: address: it is every pod's own, or nobody's: no Service can have it")
        if not 0 <= state.affinity_seconds <= MAX_AFFINITY:
            raise DatapathError(
                f"{where}: affinity_seconds: {state.affinity_seconds} is not between 0 and {MAX_AFFINITY} (a day)"
            )
        if len(set(state.backends)) != len(state.backends):
            raise DatapathError(f"{where}: backends: one of them is there twice")
        for backend in state.backends:
            if backend.address.version != frontend.address.version:
                raise DatapathError(f"{where}: backends: {backend} is of the other IP version")
            if not 0 < backend.port <= 0xFFFF or _is_nobodys(backend.address):
                raise DatapathError(f"{where}: backends: {backend} can't be dialled")
    return {frontend: state for frontend, state in changes.items() if frontend.protocol in PROTOCOLS}


def _is_nobodys(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.version == 6 and address.ipv4_mapped is not None
    return mapped or address.is_loopback or address.is_unspecified or address.is_multicast


def changed_set(old: BackendSet | None, state: FrontendState, new_number: Callable[[], int]) -> BackendSet:
    """The set as `state` wants it. `new_number` names sets and backends: never the same number twice."""
    if old is None:
        numbers = tuple(new_number() for _ in state.backends)
        return BackendSet(new_number(), state.affinity_seconds, state.backends, numbers)
    if len(old.backends) == len(state.backends) and set(old.backends) == set(state.backends):
        return old._replace(affinity=state.affinity_seconds)
    wanted, known = set(state.backends), set(old.backends)
    places: list[tuple[Backend, int] | None] = [
        (backend, number) if backend in wanted else None
        for backend, number in zip(old.backends, old.numbers, strict=True)
    ]
    coming = [(backend, new_number()) for backend in state.backends if backend not in known]
    for place in [place for place, taken in enumerate(places) if taken is None]:
        if place >= len(places):
            break
        if coming:
            places[place] = coming.pop(0)
            continue
        while places and places[-1] is None:
            places.pop()
        if place < len(places):
            places[place] = places.pop()
    filled = [taken for taken in (*places, *coming) if taken is not None]
    backends, kept = tuple(backend for backend, _ in filled), tuple(number for _, number in filled)
    return BackendSet(old.number, state.affinity_seconds, backends, kept)


def edits(changes: Sequence[tuple[Frontend, BackendSet | None, BackendSet | None]]) -> Edits:
    """What leads from the sets that there are (None: none) to those that are wanted (None: the frontend goes)."""
    made = Edits([], [], [], [], [], [], [])
    for frontend, old, new in changes:
        before = set(old.numbers) if old else set[int]()
        if new is None:
            made.gone_frontends.append(pack_frontend(frontend))
        else:
            members = zip(new.members(), new.numbers, strict=True)
            made.backends.extend(member for member, number in members if number not in before)
            if old is None or old.numbers != new.numbers:
                *further, first = new.rows(old.numbers if old else ())
                made.further_rows.extend(further)
                made.first_rows.append(first)
            if old is None or old.word != new.word:
                made.frontends.append((pack_frontend(frontend), new.word))
        if old is not None:
            after = set(new.numbers) if new else set[int]()
            made.gone_backends.extend(_PAIR.pack(old.number, number) for number in old.numbers if number not in after)
            made.gone_rows.extend(sorted(old.row_keys() - (new.row_keys() if new else set())))
    return made


def pack_frontend(frontend: Frontend) -> bytes:
    """`struct lb_key`."""
    return _KEY.pack(pack_address(frontend.address), _PORT.pack(frontend.port), frontend.protocol)


def unpack_frontend(key: bytes) -> Frontend:
    """The inverse of `pack_frontend`."""
    address, port, protocol = _KEY.unpack(key)
    return Frontend(unpack_address(address), _PORT.unpack(port)[0], Protocol(protocol))


def pack_backend(backend: Backend) -> bytes:
    """`struct lb_backend`."""
    return _BACKEND.pack(pack_address(backend.address), _PORT.pack(backend.port))


def unpack_backend(value: bytes) -> Backend:
    """The inverse of `pack_backend`."""
    address, port = _BACKEND.unpack(value)
    return Backend(unpack_address(address), _PORT.unpack(port)[0])


class Held(NamedTuple):
    """What the maps hold: sets by frontend, and keys of what nothing names. `damaged` have to be written whole."""

    sets: dict[Frontend, BackendSet]
    damaged: list[Frontend]
    stray_rows: list[bytes]
    stray_backends: list[bytes]
    highest: int


def read_back(frontends: Mapping[bytes, bytes], rows: Mapping[bytes, bytes], backends: Mapping[bytes, bytes]) -> Held:
    """Sets as an earlier agent left them, also in the middle of a change."""
    sets, damaged, named_rows, named = {}, [], set[bytes](), set[bytes]()
    highest = 0
    for key, value in frontends.items():
        word = _WORD.unpack(value)[0]
        number, affinity = word & 0xFFFF_FFFF, word >> 32
        count, places = _places(number, rows)
        there = {member: each for each in places if (member := _PAIR.pack(number, each)) in backends}
        found = BackendSet(
            number, affinity, tuple(unpack_backend(backends[member]) for member in there), tuple(there.values())
        )
        frontend = unpack_frontend(key)
        sets[frontend] = found
        if len(there) != count:
            damaged.append(frontend)
        named_rows |= found.row_keys()
        named.update(there)
        highest = max(highest, number)
    for key in backends:
        highest = max(highest, *_PAIR.unpack(key))
    stray_rows = [key for key in rows if key not in named_rows]
    return Held(sets, damaged, stray_rows, [key for key in backends if key not in named], highest)


def _places(number: int, rows: Mapping[bytes, bytes]) -> tuple[int, list[int]]:
    """The count that a set says it has, -1 for none, and the numbers by place."""
    first = rows.get(_PAIR.pack(number, 0))
    if first is None:
        return -1, []
    count = _ROW.unpack(first)[0]
    places: list[int] = []
    while len(places) < count and (row := rows.get(_PAIR.pack(number, len(places) // LB_ROW))) is not None:
        places.extend(_ROW.unpack(row)[1:])
    return count, list(dict.fromkeys(each for each in places[:count] if each))
