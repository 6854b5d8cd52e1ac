"""Elements of the load balancer's maps: a reader at any moment of any edit finds a backend of that very Service."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliceway.bpf import servicerows
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.lbabi import LB_ROW
from spliceway.bpf.servicerows import BackendSet
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol

FRONTENDS = tuple(Frontend(IPv4Address(f"10.96.0.{n}"), 80, Protocol.TCP) for n in range(1, 4))
POOL = tuple(Backend(IPv4Address("10.244.0.1"), 1000 + n) for n in range(50))


def wanted(*backends: Backend, affinity: int = 0) -> FrontendState:
    return FrontendState("default/web", "http", "ClusterIP", tuple(backends), affinity)


class Kernel:
    """The three maps, written one element after the other. `steps` stops after each."""

    def __init__(self) -> None:
        self.frontends: dict[bytes, bytes] = {}
        self.rows: dict[bytes, bytes] = {}
        self.backends: dict[bytes, bytes] = {}

    def steps(self, edits: servicerows.Edits) -> Iterator[None]:
        for into, items in (
            (self.backends, edits.backends),
            (self.rows, edits.further_rows),
            (self.rows, edits.first_rows),
            (self.frontends, edits.frontends),
        ):
            for key, value in items:
                into[key] = value
                yield
        for held, keys in (
            (self.frontends, edits.gone_frontends),
            (self.rows, edits.gone_rows),
            (self.backends, edits.gone_backends),
        ):
            for key in keys:
                del held[key]
                yield

    def choices(self, frontend: Frontend) -> set[Backend] | None:
        """All that a reader may choose, as the programs read it; None: no such frontend."""
        word = self.frontends.get(servicerows.pack_frontend(frontend))
        if word is None:
            return None
        number = struct.unpack("=Q", word)[0] & 0xFFFF_FFFF
        (count,) = struct.unpack_from("=I", self.rows[struct.pack("=II", number, 0)])
        found = set()
        for place in range(count):
            row = self.rows[struct.pack("=II", number, place // LB_ROW)]
            (taken,) = struct.unpack_from("=I", row, 4 + 4 * (place % LB_ROW))
            found.add(servicerows.unpack_backend(self.backends[struct.pack("=II", number, taken)]))
        return found

    def held(self) -> servicerows.Held:
        return servicerows.read_back(self.frontends, self.rows, self.backends)


states = st.one_of(st.none(), st.lists(st.sampled_from(POOL), unique=True, max_size=40).map(lambda b: wanted(*b)))
rounds = st.lists(st.dictionaries(st.sampled_from(FRONTENDS), states, min_size=1), min_size=1, max_size=6)


@given(rounds)
def test_at_every_step_readers_find_the_old_backends_or_the_new(
    changes: list[dict[Frontend, FrontendState | None]],
) -> None:
    kernel, numbers = Kernel(), itertools.count(1)
    sets: dict[Frontend, BackendSet] = {}
    for change in changes:
        planned = []
        for frontend, state in change.items():
            new = None if state is None else servicerows.changed_set(sets.get(frontend), state, lambda: next(numbers))
            planned.append((frontend, sets.get(frontend), new))
        planned = [each for each in planned if each[1] != each[2]]
        before = {frontend: set(one.backends) for frontend, one in sets.items()}
        after = before | {frontend: set(new.backends) if new else set() for frontend, _, new in planned}
        for _ in kernel.steps(servicerows.edits(planned)):
            for frontend in FRONTENDS:
                seen = kernel.choices(frontend)
                assert seen is None or seen <= before.get(frontend, set()) | after[frontend]
                if seen == set():
                    assert not before.get(frontend) or not after[frontend]
        for frontend, _, new in planned:
            if new is None:
                sets.pop(frontend, None)
            else:
                sets[frontend] = new
        assert {frontend: kernel.choices(frontend) for frontend in sets} == {
            f: set(s.backends) for f, s in sets.items()
        }
    held = kernel.held()
    assert held.sets == sets
    assert (held.damaged, held.stray_rows, held.stray_backends) == ([], [], [])


@given(rounds, st.integers(min_value=0, max_value=200))
def test_an_interrupted_change_is_read_back_whole(
    changes: list[dict[Frontend, FrontendState | None]], stop: int
) -> None:
    """Wherever an agent died: what is read back is a set of the Service's own, and what is stray has no name."""
    kernel, numbers = Kernel(), itertools.count(1)
    sets: dict[Frontend, BackendSet] = {}
    allowed: dict[Frontend, set[Backend]] = {frontend: set() for frontend in FRONTENDS}
    for change in changes:
        planned = []
        for frontend, state in change.items():
            new = None if state is None else servicerows.changed_set(sets.get(frontend), state, lambda: next(numbers))
            if new != sets.get(frontend):
                planned.append((frontend, sets.get(frontend), new))
            allowed[frontend] |= set(state.backends) if state else set()
            sets.pop(frontend, None)
            if new is not None:
                sets[frontend] = new
        for _ in kernel.steps(servicerows.edits(planned)):
            stop -= 1
            if stop < 0:
                break
        if stop < 0:
            break
    held = kernel.held()
    for frontend, found in held.sets.items():
        assert set(found.backends) <= allowed[frontend]
        assert len(set(found.numbers)) == len(found.numbers)
    for frontend in held.damaged:
        kernel.rows.update(held.sets[frontend].rows())
    for key in held.stray_rows:
        del kernel.rows[key]
    for key in held.stray_backends:
        del kernel.backends[key]
    again = kernel.held()
    assert again.sets == held.sets
    assert (again.damaged, again.stray_rows, again.stray_backends) == ([], [], [])


def test_others_keep_their_numbers() -> None:
    numbers = itertools.count(1)
    first = servicerows.changed_set(None, wanted(*POOL[:5]), lambda: next(numbers))
    second = servicerows.changed_set(first, wanted(POOL[0], *POOL[2:5], POOL[9]), lambda: next(numbers))
    known = dict(zip(first.backends, first.numbers, strict=True))
    now = dict(zip(second.backends, second.numbers, strict=True))
    assert {backend: now[backend] for backend in now if backend in known} == {
        backend: known[backend] for backend in known if backend != POOL[1]
    }
    assert second.backends[1] == POOL[9]  # in the place that was left
    assert now[POOL[9]] not in first.numbers
    third = servicerows.changed_set(second, wanted(POOL[3], POOL[4]), lambda: next(numbers))
    assert set(zip(third.backends, third.numbers, strict=True)) <= set(now.items())


def test_another_order_changes_nothing() -> None:
    numbers = itertools.count(1)
    first = servicerows.changed_set(None, wanted(*POOL[:5]), lambda: next(numbers))
    assert servicerows.changed_set(first, wanted(*reversed(POOL[:5])), lambda: next(numbers)) == first


@pytest.mark.parametrize("frontend", [*FRONTENDS, Frontend(IPv6Address("fd00:96::1"), 53, Protocol.UDP)])
def test_keys_are_read_back(frontend: Frontend) -> None:
    assert servicerows.unpack_frontend(servicerows.pack_frontend(frontend)) == frontend


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((Frontend(IPv4Address("10.96.0.1"), 0, Protocol.TCP), wanted()), "port: 0 is not between"),
        ((Frontend(IPv4Address("10.96.0.1"), 0, Protocol.TCP), None), "port: 0 is not between"),
        ((Frontend(IPv4Address("127.0.0.1"), 80, Protocol.TCP), wanted()), "address: it is every pod's own"),
        ((Frontend(ip_address("::ffff:10.96.0.1"), 80, Protocol.TCP), wanted()), "address: it is every pod's own"),
        ((FRONTENDS[0], wanted(affinity=86_401)), "affinity_seconds: 86401 is not between"),
        ((FRONTENDS[0], wanted(POOL[0], POOL[0])), "backends: one of them is there twice"),
        ((FRONTENDS[0], wanted(Backend(IPv6Address("fd00::1"), 80))), r"backends: \[fd00::1\]:80 is of the other"),
        ((FRONTENDS[0], wanted(Backend(IPv4Address("10.244.0.1"), 65536))), "can't be dialled"),
        ((FRONTENDS[0], wanted(Backend(IPv4Address("0.0.0.0"), 80))), "can't be dialled"),
    ],
)
def test_bad_input_is_refused_by_name(change: tuple[Frontend, FrontendState | None], message: str) -> None:
    with pytest.raises(DatapathError, match=message):
        servicerows.check({FRONTENDS[1]: wanted(POOL[1]), change[0]: change[1]})


def test_other_protocols_are_left_to_others() -> None:
    sctp = Frontend(IPv4Address("10.96.0.1"), 80, Protocol.SCTP)
    assert set(servicerows.check({sctp: wanted(POOL[0]), FRONTENDS[0]: None})) == {FRONTENDS[0]}
