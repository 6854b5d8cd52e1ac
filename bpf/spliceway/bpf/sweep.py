"""After a change of policy: every connection of the proxy's that may not go on is ended at once, idle ones as well.

The kernel's programs refuse its next message or packet anyway. A sweep reads the connections that the kernel knows (the
states of `splices`, and of `conntrack` those that have no state: from outside of the node, or from before an upgrade),
asks the kernel about each distinct pair of ends once (`question.h`), and ends the proxy's socket of those that it
denies, by cookie. Before that the kernel revokes their states. Whoever comes first, a message, a packet or the sweep,
counts and records the denial; the sweep does so after the endings, of each connection that was there to be ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import structlog

from spliceway.bpf import abi, diag, libbpf
from spliceway.bpf.maps import ZERO, Maps
from spliceway.bpf.types import Leg, SpliceState
from spliceway.policy.verdict import Protocol

#: Connections that are judged before those of them that may not go on are ended: others don't wait for all.
_BATCH = 2048
#: Pause after a sweep, in lengths of it, and at most so many seconds: changes come in bursts, one sweep does for all.
_PAUSE, _LONGEST_PAUSE = 4.0, 0.25
_RETRY_SECONDS = 0.5
_NICE = -10

#: The first fields of `struct splice_key` and `struct ct_key`, and where others are in what belongs to them.
_SPLICE_ENDS, _CT_ENDS = struct.Struct("=8s16s16s2s2s"), struct.Struct("=16s16s2s2s")
_RULE_SET, _PORT, _LEG = abi.SpliceState.rule_set.offset, abi.SpliceState.port.offset, abi.SpliceState.leg.offset
_COOKIE = abi.SpliceState.sock.offset + ctypes.sizeof(abi.SpliceEnd) * abi.End.PROXY + abi.SpliceEnd.cookie.offset
_CT_RULE_SET, _CT_LEG, _CT_PROTOCOL = abi.CtValue.rule_set.offset, abi.CtValue.leg.offset, abi.CtKey.protocol.offset
_NONE, _ETHERNET = bytes(8), bytes(14)
_STOP = bytes((abi.Note.STOP,))
_NOT_DIRECT = re.compile(rb"[^\0]")

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class SweepTotals(msgspec.Struct):
    """Since the datapath was opened: sweeps, connections that they ended, and of the last one what it did and took."""

    sweeps: int = 0
    ended: int = 0
    failed: int = 0
    looked_at: int = 0
    judged: int = 0
    seconds: float = 0.0


class Ended(NamedTuple):
    """What one sweep has ended: connections of clients, and to servers where the proxy had not closed them before."""

    clients: int
    servers: int


class _Connection(NamedTuple):
    """One of the proxy's connections: the question about it, the ends as its socket has them, its cookie (or zeros).

    `kind`: the question without the client's port, which makes no difference to the answer.
    """

    leg: int
    question: bytes
    kind: bytes
    family: int
    ends: bytes
    cookie: bytes
    revoked: bool


class Sweep:
    """One look at all connections. `run` blocks: it belongs in a thread."""

    def __init__(self, maps: Maps, program: Path, totals: SweepTotals) -> None:
        """`program`: where `judge` is pinned."""
        self._maps, self._program, self._totals = maps, program, totals
        self._known: set[bytes] = set()
        self._answers: dict[bytes, bool] = {}
        self._upstream: list[_Connection] = []
        self._nameless: dict[bytes, _Connection] = {}
        self._ended: list[_Connection] = []
        self._denied: list[_Connection] = []
        self._looked_at = 0

    @property
    def ended(self) -> Ended:
        """What `run` has stopped or ended, also one that failed."""
        over = {one.question: one.leg for one in chain(self._denied, self._ended)}
        clients = sum(leg == Leg.DOWNSTREAM for leg in over.values())
        return Ended(clients, len(over) - clients)

    def run(self) -> bool:
        """End what may not go on. False when the policy changed meanwhile: then a sweep for that one is due.

        Raises KernelRefusedError.
        """
        with _urgent():
            return self._run()

    def _run(self) -> bool:
        begin, self._generation = time.monotonic(), self._maps.generation.lookup(ZERO)
        descriptor = libbpf.open_pin(self._program)
        try:
            ask = libbpf.asker(descriptor)
            try:
                done = all(self._judge(batch, ask) for batch in _batches(self._connections()))
                # Clients first. Of most of these the proxy has closed its other end by now.
                done = done and all(self._end(batch, ask) for batch in _batches(self._upstream))
                done = done and self._end_nameless()
            finally:
                self._note(ask)  # last: who reads the records takes time from the endings
        finally:
            os.close(descriptor)
        totals = self._totals
        totals.sweeps += 1
        totals.looked_at, totals.judged = self._looked_at, len(self._answers)
        totals.seconds = time.monotonic() - begin
        return done

    def _connections(self) -> Iterator[_Connection]:
        for key, state in self._maps.splices.items():
            known = abi.SpliceKey.from_buffer_copy(key)
            if known.end & abi.REMAINS or known.netns_cookie & abi.SIDECAR_LEG:
                continue
            self._known.add(key[_SPLICE_ENDS.size - _CT_ENDS.size : _SPLICE_ENDS.size])
            yield _of_state(key, state)
        for key, value in _proxied(self._maps):
            if key[: _CT_ENDS.size] not in self._known:
                yield _of_entry(key, value)

    def _judge(self, batch: list[_Connection], ask: Callable[[bytes], int]) -> bool:
        lost = [one for one in batch if self._lost(one, ask)]
        self._upstream += (one for one in lost if one.leg != Leg.DOWNSTREAM)
        return self._end((one for one in lost if one.leg == Leg.DOWNSTREAM), ask)

    def _lost(self, one: _Connection, ask: Callable[[bytes], int]) -> bool:
        self._looked_at += 1
        allowed = self._answers.get(one.kind)
        if allowed is None:
            allowed = self._answers[one.kind] = ask(_ETHERNET + one.question) != abi.Judgement.DENIED
        return one.revoked or not allowed

    def _stopped(self, one: _Connection, ask: Callable[[bytes], int]) -> _Connection:
        if one.revoked or not any(one.cookie):
            return one
        answer = ask(_ETHERNET + one.question[:-1] + _STOP)
        if answer == abi.Judgement.DENIED_NOW:
            self._denied.append(one)
        return one._replace(revoked=answer in {abi.Judgement.DENIED_NOW, abi.Judgement.DENIED_BEFORE})

    def _end(self, stopping: Iterable[_Connection], ask: Callable[[bytes], int]) -> bool:
        lost = [self._stopped(one, ask) for one in stopping]
        # The answers are right only if none of them is from another policy: the slot that was live then gets new rows.
        if self._maps.generation.lookup(ZERO) != self._generation:
            return False
        known = [one for one in lost if any(one.cookie)]
        self._count(known[at] for at in diag.destroy_many([(one.family, one.ends, one.cookie) for one in known]))
        self._nameless.update((one.ends, one) for one in lost if not any(one.cookie))
        return True

    def _end_nameless(self) -> bool:
        """Connections of which only the ends are known: what has these ends now, if it is a connection."""
        if not self._nameless:
            return True
        found = [one for one in diag.connections() if one[1] in self._nameless]
        if self._maps.generation.lookup(ZERO) != self._generation:
            return False
        self._count(self._nameless[found[at][1]] for at in diag.destroy_many(found))
        return True

    def _count(self, ended: Iterable[_Connection]) -> None:
        before = len(self._ended)
        self._ended += ended
        self._totals.ended += len(self._ended) - before

    def _note(self, ask: Callable[[bytes], int]) -> None:
        """Have the kernel count what was denied, and record why: under rows that have come since that might differ."""
        same = self._maps.generation.lookup(ZERO) == self._generation
        note = bytes((abi.Note.ENDED | (abi.Note.WHY if same else 0),))
        for one in chain(self._denied, (one for one in self._ended if not one.revoked)):
            ask(_ETHERNET + one.question[:-1] + note)


@contextlib.contextmanager
def _urgent() -> Iterator[None]:
    """This thread goes before others meanwhile: thousands of resets wake all those who have the connections."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(PermissionError):  # without CAP_SYS_NICE it is not as fast
        os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, before)


def _of_state(key: bytes, state: bytes) -> _Connection:
    """The proxy's socket has the pod's peer as its own end, on both legs."""
    netns, pod, peer, pod_port, peer_port = _SPLICE_ENDS.unpack_from(key)
    rule_set, port = state[_RULE_SET : _RULE_SET + 4], state[_PORT : _PORT + 2]
    asked = _question(netns, pod, peer, pod_port, peer_port, rule_set, port, state[_LEG])
    revoked = state[0] == SpliceState.REVOKED
    ends = diag.packed_ends(peer, peer_port, pod, pod_port)
    return _Connection(state[_LEG], *asked, *ends, state[_COOKIE : _COOKIE + 8], revoked)


def _of_entry(key: bytes, value: bytes) -> _Connection:
    local, remote, local_port, remote_port = _CT_ENDS.unpack_from(key)
    rule_set = value[_CT_RULE_SET : _CT_RULE_SET + 4]
    asked = _question(_NONE, local, remote, local_port, remote_port, rule_set, bytes(2), value[_CT_LEG])
    ends = diag.packed_ends(remote, remote_port, local, local_port)
    return _Connection(value[_CT_LEG], *asked, *ends, _NONE, False)


def _question(
    cookie: bytes, pod: bytes, peer: bytes, pod_port: bytes, peer_port: bytes, rule_set: bytes, port: bytes, leg: int
) -> tuple[bytes, bytes]:
    """`struct question`, and the same without the client's port."""
    head, tail = cookie + pod + peer, b"".join((bytes(4), rule_set, port, bytes((leg, 0))))
    kind = bytes(2) + peer_port if leg == Leg.DOWNSTREAM else pod_port + bytes(2)
    return head + pod_port + peer_port + tail, head + kind + tail


def _proxied(maps: Maps) -> Iterator[tuple[bytes, bytes]]:
    """TCP entries of `conntrack` whose leg is not the direct one."""
    key_size, value_size = maps.conntrack.key_size, maps.conntrack.value_size
    for keys, values in maps.conntrack.batches():
        legs = values[_CT_LEG::value_size]
        for match in _NOT_DIRECT.finditer(legs):
            at = match.start()
            key = keys[at * key_size : (at + 1) * key_size]
            if key[_CT_PROTOCOL] == Protocol.TCP:
                yield key, values[at * value_size : (at + 1) * value_size]


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(islice(source, _BATCH)):
        yield batch


class Sweeper:
    """Sweeps when it is asked to, in a thread, one at a time: what is asked for meanwhile is done by the next one."""

    def __init__(self, maps: Maps, program: Path) -> None:
        """`program`: where `judge` is pinned."""
        self.totals = SweepTotals()
        self._maps, self._program = maps, program
        self._asked, self._stop = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told = ""
        self._revision = 0
        self._done = asyncio.Event()
        self._done.set()

    def start(self) -> None:
        """Begin to wait for `ask`, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="sweep")

    def ask(self, revision: int = 0) -> None:
        """The rows or listeners that are live have changed. `revision`: of the policy, for the log; 0: not known."""
        self._revision = revision
        self._done.clear()
        self._asked.set()

    async def done(self, seconds: float) -> None:
        """Return when all that was asked for is done, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), seconds)

    async def stop(self) -> None:
        """Return when no sweep runs any more."""
        if self._task is not None:
            self._stop.set()
            self._asked.set()
            await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            if self._stop.is_set():
                return
            self._asked.clear()
            pause = await self._sweep()
            if not self._asked.is_set():
                self._done.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _sweep(self) -> float:
        begin, revision = time.monotonic(), self._revision
        sweep = Sweep(self._maps, self._program, self.totals)
        try:
            if not await asyncio.to_thread(sweep.run):
                self._asked.set()
            self._told = ""
        except Exception as error:  # a bug as well: what is not ended now must be ended by the next try
            self.totals.failed += 1
            self._asked.set()
            if self._told != repr(error):  # once, not with every try
                self._told = repr(error)
                _log.warning("revoked connections could not be ended, trying again", error=self._told)
            return _RETRY_SECONDS
        finally:
            if any(sweep.ended):
                told = "ended connections that policy does not allow any more"
                _log.info(told, **sweep.ended._asdict(), revision=revision or None)
        return min(_PAUSE * (time.monotonic() - begin), _LONGEST_PAUSE)
