"""A worker's data path: listeners, rules, connections, limits and counters."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from math import ceil
from operator import itemgetter
from typing import Any

import structlog

from spliceway.policy.verdict import Reason
from spliceway.proxy.http.decision import Judge
from spliceway.proxy.http.head import Head, HeadError, read_head
from spliceway.proxy.model import AccessRecord, Change, ClusterConfig, Limits, ListenerConfig
from spliceway.proxy.relay import sockets
from spliceway.proxy.relay.budget import Budget
from spliceway.proxy.relay.connection import Connection
from spliceway.proxy.relay.counters import Counters
from spliceway.proxy.relay.exchange import Ends, refusal
from spliceway.proxy.relay.headcache import HeadCache
from spliceway.proxy.relay.loads import Loads
from spliceway.proxy.relay.pair import Pair
from spliceway.proxy.relay.poller import IN, OnEvents, Poller
from spliceway.proxy.relay.wheel import Timed, Wheel

#: Connections that are accepted in a row.
_ACCEPTED_AT_ONCE = 16
#: How long a worker that is ahead leaves connections to the others, in seconds.
_AHEAD_SECONDS = 0.002
#: How long a removed listener's requests may still take, in seconds; then their connections are reset.
_REMOVED_SECONDS = 5.0
#: Rules a second among which the nearest miss of a denied request is looked for, some 10 microseconds each.
_EXPLAINED = 20_000.0
#: How often it is looked how much is buffered, in seconds.
_WATCH_SECONDS = 0.5

_THIS_NETWORK = IPv4Network("0.0.0.0/8")
#: Until the first one is known; no listener is served before.
_NO_CLUSTER = ClusterConfig(
    name="", connect_timeout=10.0, buffer_limit=1 << 20, max_headers=1000, max_head_bytes=1 << 20
)

log = structlog.get_logger(__name__)


class Served:
    """A listener: its configuration, its rules (None when it has gone) and its sockets. `number`: of the rule set."""

    __slots__ = ("config", "judge", "number", "sockets")

    def __init__(self, config: ListenerConfig, judge: Judge) -> None:
        self.config = config
        self.judge: Judge | None = judge
        self.number = judge.rule_set.id
        self.sockets: list[socket.socket] = []

    def __repr__(self) -> str:
        return f"<Served {self.config.name}{'' if self.judge else ', gone'}>"


class Relay:
    """See the module. `limits.connections` counts on all workers, `connections_per_client` is shared out among them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        worker: int,
        limits: Limits,
        on_record: Callable[[AccessRecord], None],
        loads: memoryview | None = None,
        epoch: int = 0,
        head_cache: bool = True,
    ) -> None:
        """`loads`: memory that all workers share (`relay.loads`); `worker` is the index of this one.

        `epoch`: tells the connections of one worker process from those of others; `head_cache` False: every head is
        read by h11, also one that has been seen before.
        """
        self.loop = loop
        self.limits = limits
        self.tally = Counters()
        self.cluster = _NO_CLUSTER
        self.poller = Poller(loop, self._on_stray_error)
        self.wheel = Wheel(loop, self._on_timed_error)
        self.record = on_record
        self.draining = False
        self._worker = worker
        self._loads = Loads(loads) if loads is not None else Loads.of(memoryview(bytearray(4 * (worker + 1))))
        self._explain = Budget(_EXPLAINED, loop.time)
        self._judges: dict[str, Judge] = {}
        self._served: dict[str, Served] = {}
        self._connections: set[Pair] = set()
        self.holding: set[Pair] = set()
        self.unread: set[Pair] = set()  # tunnels that began because everything was in audit
        self._left: set[int] = set()  # listeners whose connections were left to other workers a moment ago
        self._clients: Counter[str] = Counter()
        self._per_client = ceil(limits.connections_per_client / self._loads.size)
        self._share = 1.0
        self._number = ((worker << 12 | epoch & 0xFFF) << 32) + 1
        self._heads = HeadCache() if head_cache else None
        self._most_buffered = limits.buffered // self._loads.size
        self._watch: asyncio.TimerHandle | None = None
        self._watch_memory()

    def __repr__(self) -> str:
        return f"<Relay {self._worker}: {len(self._served)} listeners, {len(self._connections)} connections>"

    def apply(self, change: Change, listening: Mapping[str, Sequence[socket.socket]]) -> None:
        """Bring a change into force. `listening`: the sockets of new listeners, by name; they belong to the relay now.

        Raises RegexError or KeyError for what a supervisor must not send; then nothing has changed.
        """
        judges = {name: Judge(rule_set, self._explain.take) for name, rule_set in change.rules.items()}
        fresh = {name: Served(config, self._judge_of(config, judges)) for name, config in change.listeners.items()}
        if change.cluster is not None:
            self.cluster = change.cluster
        self._judges |= judges
        for name in change.gone:
            self._judges.pop(name, None)
            self._remove(name)
        for served in self._served.values():
            judge = judges.get(served.config.route)
            if judge is not None:
                served.judge = judge
        for name, new in fresh.items():
            self._serve(name, new, listening.get(name, ()))
        for connection in list(self.unread):
            if connection.served.judge is not None and connection.served.judge.enforces:
                connection.reset()
        self._tell_load()

    def set_share(self, millionths: int) -> None:
        """How many of a million allowed requests are recorded."""
        self._share = millionths / 1_000_000

    def sampled(self) -> bool:
        """Whether one more allowed request is to be recorded."""
        return self._share >= 1.0 or random.random() < self._share

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def counters(self) -> dict[str, int]:
        """Counters and gauges by name (`relay.counters`)."""
        named = self.tally.named()
        named["spliceway.heads_cached"] = self._heads.hits if self._heads is not None else 0
        open_sent = sum(one.up.sent for one in self._connections if one.up is not None)
        named["cluster.original-destination.upstream_cx_tx_bytes_total"] += open_sent
        return named

    def drain(self) -> None:
        """Accept no more, and close connections after their next answer."""
        self.draining = True
        for served in self._served.values():
            self._stop_listening(served)

    def close(self) -> None:
        """End what is left: idle connections with a FIN, others with a RST."""
        self.drain()
        for connection in list(self._connections):
            connection.finish()
        for connection in list(self._connections):
            connection.reset()
        self.wheel.stop()
        self.poller.close()
        if self._watch is not None:
            self._watch.cancel()

    def connection_list(self) -> list[dict[str, Any]]:
        """All connections, for people."""
        return [one.described() for one in self._connections]

    # For connections.

    def head(self, raw: bytes, config: ListenerConfig) -> Head:
        """Read a head, or remember it. Raises HeadError."""
        cache = self._heads
        if cache is None:
            return _read(raw, config)
        found = cache.get(raw)
        # Another listener may take less.
        if found and len(found.request.headers) <= config.max_headers and found.size <= config.max_head_bytes:
            return found
        head = _read(raw, config)
        cache.add(raw, head)
        return head

    def count_status(self, status: int) -> None:
        """One more answer."""
        self.tally.status[status // 100 if 100 <= status < 600 else 0] += 1

    def gone(self, connection: Pair) -> None:
        """A connection has been closed."""
        self.wheel.forget(connection)
        self._connections.discard(connection)
        self.holding.discard(connection)
        self.unread.discard(connection)
        source = connection.ends.source
        self._clients[source] -= 1
        if not self._clients[source]:
            del self._clients[source]
        self.tally.cx_active -= 1
        self._tell_load()

    def _watch_memory(self) -> None:
        """What waits in user space is bounded for each connection; this bounds the sum."""
        self._watch = self.loop.call_later(_WATCH_SECONDS, self._watch_memory)
        if not self._most_buffered or not self.holding:
            return
        held = [(size, one) for one in self.holding if (size := one.buffered)]
        self.holding = {one for _, one in held}
        total = sum(size for size, _ in held)
        if total <= self._most_buffered:
            return
        log.warning("too much is buffered: connections that have most are reset", bytes=total)
        for size, one in sorted(held, key=itemgetter(0), reverse=True):
            self.tally.overloaded += 1
            one.reset(Reason.CONNECTION_LIMIT, f"{size} bytes buffered")
            total -= size
            if total <= self._most_buffered * 3 // 4:
                return

    # Listeners.

    def _judge_of(self, config: ListenerConfig, judges: Mapping[str, Judge]) -> Judge:
        judge = judges.get(config.route) or self._judges.get(config.route)
        if judge is None:
            raise KeyError(f"{config.name}: there are no rules for it")
        return judge

    def _serve(self, name: str, new: Served, listening: Sequence[socket.socket]) -> None:
        old = self._served.get(name)
        if old is not None and not listening:
            old.config, old.judge, old.number = new.config, new.judge, new.number
            return
        if old is not None:
            self._remove(name)
        self._served[name] = new
        for sock in listening:
            sockets.prepare_listener(sock)
            new.sockets.append(sock)
            if not self.draining:
                self.poller.add(sock.fileno(), IN, partial(self._on_accept, new, sock))

    def _remove(self, name: str) -> None:
        served = self._served.pop(name, None)
        if served is None:
            return
        self._stop_listening(served)
        served.judge = None
        left = [one for one in self._connections if one.served is served]
        for connection in left:
            if connection.idle:
                connection.reset()
        if left:
            self.loop.call_later(_REMOVED_SECONDS, self._reset_all, left)

    def _reset_all(self, connections: list[Pair]) -> None:
        for connection in connections:
            if connection in self._connections:
                connection.reset()

    def _stop_listening(self, served: Served) -> None:
        for sock in served.sockets:
            self.poller.remove(sock.fileno())
            sock.close()
        served.sockets = []

    def _on_accept(self, served: Served, listener: socket.socket, _events: int) -> None:
        fd = listener.fileno()
        if fd not in self._left and self._loads.ahead(len(self._connections)):
            # Once; nobody may have taken it by then.
            self._left.add(fd)
            self.poller.remove(fd)
            self.loop.call_later(_AHEAD_SECONDS, self._listen_again, served, listener)
            return
        self._left.discard(fd)
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors or memory: what is queued waits.
                log.error("a connection can't be accepted", listener=served.config.name, error=str(error))
                self.poller.remove(listener.fileno())
                self.loop.call_later(0.1, self._listen_again, served, listener)
                return
            sock.setblocking(False)
            try:
                self._accepted(served, sock, peer)
            except Exception as error:
                sock.close()
                self.on_error(served, error)

    def _listen_again(self, served: Served, listener: socket.socket) -> None:
        if listener in served.sockets:
            self.poller.add(listener.fileno(), IN, partial(self._on_accept, served, listener))

    def _tell_load(self) -> None:
        self._loads.set(self._worker, len(self._connections))

    def _accepted(self, served: Served, sock: socket.socket, peer: tuple[Any, ...]) -> None:
        try:
            wanted = sock.getsockname()
        except OSError:
            sock.close()
            return
        self._number += 1
        ends = Ends(peer[0], peer[1], wanted[0], wanted[1], self._number)
        why = self._too_many(ends.source)
        if why:
            self.tally.cx_limited += 1
            self.tally.refused[Reason.CONNECTION_LIMIT] += 1
            self.record(refusal(ends, served.number, Reason.CONNECTION_LIMIT, why))
            sockets.reset(sock)
            return
        # A connection that was not steered has the listener's own address: it would lead to itself, again and again.
        if _own(ends.destination):
            sockets.reset(sock)
            return
        connection = Connection(self, served, sock, ends)
        self.tally.cx += 1
        self.tally.cx_active += 1
        self._clients[ends.source] += 1
        self._connections.add(connection)
        self._tell_load()
        connection.greet()

    def _too_many(self, client: str) -> str:
        limits = self.limits
        if limits.connections and self._loads.total() >= limits.connections:
            return f"{limits.connections} connections of all clients"
        if self._per_client and self._clients[client] >= self._per_client:
            return f"{limits.connections_per_client} connections of one client"
        return ""

    def on_error(self, where: Served | Pair | str, error: Exception) -> None:
        """A fault of ours: it costs the one connection at most."""
        self.tally.errors += 1
        log.error("internal error", where=repr(where), error=repr(error), exc_info=error)
        if isinstance(where, Pair):
            where.reset()

    def _on_stray_error(self, handler: OnEvents, error: Exception) -> None:
        """What a callback of the poller raised: that connection is ended."""
        where = getattr(handler, "__self__", None)
        pair = next((one for one in self._connections if where is one.down or (where and where is one.up)), None)
        self.on_error(pair or repr(handler), error)

    def _on_timed_error(self, where: Timed, error: Exception) -> None:
        if isinstance(where, Pair):
            self.on_error(where, error)


def _read(raw: bytes, config: ListenerConfig) -> Head:
    if len(raw) > config.max_head_bytes:
        why = f"a head of more than {config.max_head_bytes} bytes"
        raise HeadError(431, Reason.HTTP_HEAD_TOO_LARGE, why)
    return read_head(raw, config.max_headers)


@lru_cache(maxsize=4096)
def _own(address: str) -> bool:
    """Whether this is loopback or no address: what the listener's own filter refuses with Envoy."""
    ip = ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    ip = mapped or ip
    return ip.is_loopback or ip.is_unspecified or (isinstance(ip, IPv4Address) and ip in _THIS_NETWORK)
