"""Any history of the proxy's client and the agent's delta machine: in the end both say that the client has the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch, Request, ResourceValue, Response
from spliceway.xds.protocol import ledger
from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from support.adsbed import snapshot

#: Name -> (revision of the listener, revision of the routes, whether the routes are another's). Revision 3 is never
#: accepted.
Node = dict[str, tuple[int, int, bool]]
NODES = st.dictionaries(
    st.sampled_from("abcd"), st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=4
)
MOVES = st.lists(
    st.sampled_from(["node", *["write"] * 3, *["server"] * 4, *["client"] * 4, "connect", "restart", "crash"]),
    max_size=80,
)
BAD = 3


def served(version: str, node: Node, previous: Snapshot | None, edited: str = "") -> Snapshot:
    def revision(number: int) -> str:
        return edited + ("bad" if number == BAD else str(number))

    return snapshot(
        version,
        previous,
        CDS=f"c:{edited}" if node else "",
        LDS=" ".join(
            f"{name}:{revision(lds)}{'>a' if other and 'a' in node else ''}" for name, (lds, _, other) in node.items()
        ),
        RDS=" ".join(f"{name}:{revision(rds)}" for name, (_, rds, _) in node.items()),
    )


class World:
    """The client, the server's stream, and what is on its way between them, in order."""

    def __init__(self, refuse: Callable[[], bool]) -> None:
        self.refuse = refuse
        self.state = AdsState()
        self._streams = count(1)
        self.connect()

    def connect(self) -> None:
        """A new stream; what was on its way is lost."""
        self.stream = AdsStream(str(next(self._streams)), delta=True)
        self.responses: deque[ledger.Response] = deque()
        self.requests = deque(self.state.connect())

    def crash(self) -> None:
        """Another proxy, which has what is on the disk: routes in revision 2 are never there."""
        old, self.state = self.state.accepted, AdsState()
        old[ROUTE] = {name: value for name, value in old[ROUTE].items() if b"host2" not in value.body}
        for url in (CLUSTER, LISTENER, ROUTE):
            batch = self.state.restorable(url, old)
            self.state.take(batch, self._refused(batch))
        self.state.forget_unwanted()
        self.connect()

    def server_reads(self) -> None:
        if self.requests:
            request = self.requests.popleft()
            self.stream.receive(delta_request(request))

    def server_writes(self, now: Snapshot) -> None:
        self.responses.extend(self.stream.responses(now))

    def client_reads(self) -> None:
        if not self.responses:
            return
        found = self.responses.popleft()
        given = {resource.name: ResourceValue(resource.digest, resource.body) for resource in found.resources}
        response = Response(found.type_url, found.nonce, given, {}, found.removed)
        batch = self.state.incoming(response)
        outcome = self.state.settle(response, batch, self._refused(batch))
        assert outcome.requests[0].nonce == found.nonce, "each response is answered once, before anything else"
        assert all(not request.nonce for request in outcome.requests[1:])
        self.requests.extend(outcome.requests)

    def settle(self, now: Snapshot) -> None:
        """Everything arrives, until nothing more is said."""
        for _ in range(300):
            self.server_writes(now)
            if not self.requests and not self.responses:
                return
            while self.requests:
                self.server_reads()
            self.server_writes(now)
            while self.responses:
                self.client_reads()
        raise AssertionError("there is always something more to say")

    def agreed(self, *, exactly: bool = False) -> None:
        """The server knows what the client has.

        Unless `exactly` but for an earlier version of what is refused now: that it was good when something beside it
        was refused, the server would have heard at the next answer, which was the refusal. It is told on the next
        stream.
        """
        for url, accepted in self.state.accepted.items():
            subscription = self.stream.subscriptions[url]
            acknowledged = {name: resource.digest for name, resource in subscription.acked.items()}
            held = {name: value.version for name, value in accepted.items()}
            assert acknowledged.items() <= held.items()
            assert held.keys() - acknowledged.keys() <= (set() if exactly else subscription.rejected.keys())

    def _refused(self, batch: Batch) -> dict[str, str]:
        return {
            name: f"{name}: not this one"
            for name, value in batch.changed.items()
            if b"bad" in value.body or self.refuse()
        }


def delta_request(request: Request) -> DeltaRequest:
    return DeltaRequest(
        request.type_url, request.subscribe, request.unsubscribe, request.initial, request.nonce, request.error
    )


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    nodes=st.lists(NODES, min_size=1, max_size=6),
    moves=MOVES,
    refusals=st.lists(st.booleans(), max_size=15),
)
def test_in_the_end_both_agree(nodes: list[Node], moves: list[str], refusals: list[bool]) -> None:
    versions = count(1)
    refusing: Iterator[bool] = iter(refusals)
    world = World(lambda: next(refusing, False))
    coming = iter(nodes)
    last = next(coming)
    now = served(str(next(versions)), last, None)
    for move in moves:
        if move == "node":
            last = next(coming, last)
            now = served(str(next(versions)), last, now)
        elif move == "write":
            world.server_writes(now)
        elif move == "server":
            world.server_reads()
        elif move == "client":
            world.client_reads()
        elif move == "crash":
            world.crash()
        else:
            if move == "restart":  # another agent: its versions tell nothing of the first one's
                now = served(f"other-{next(versions)}", last, None)
            world.connect()
    world.settle(now)
    world.agreed()
    # What is refused once is tried again when it changes. Then the client has all but what is never accepted.
    world.refuse = lambda: False
    now = served("final", last, now, edited="x")
    world.settle(now)
    world.agreed()
    wanted = {name for name, (lds, _, _) in last.items() if lds != BAD}
    held = world.state.accepted
    for name in wanted:
        assert held[LISTENER][name].version == now.types[LISTENER].resources[name].digest
        routes = "a" if last[name][2] and "a" in last else name
        if last[routes][1] != BAD:
            assert held[ROUTE][routes].version == now.types[ROUTE].resources[routes].digest
    assert held[LISTENER].keys() <= last.keys()
    assert held[ROUTE].keys() <= last.keys()
    # A new stream changes nothing.
    before = {url: dict(named) for url, named in held.items()}
    world.connect()
    world.settle(now)
    world.agreed(exactly=True)
    assert world.state.accepted == before


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(nodes=st.lists(NODES, min_size=1, max_size=5))
def test_what_is_good_is_in_force_after_one_answer_whatever_is_beside_it(nodes: list[Node]) -> None:
    world = World(lambda: False)
    now: Snapshot | None = None
    for number, node in enumerate(nodes):
        now = served(str(number), node, now)
        world.server_writes(now)
        while world.requests:
            world.server_reads()
        world.server_writes(now)
        while world.responses and world.responses[0].type_url != ROUTE:
            world.client_reads()
        good = {name for name, (lds, _, _) in node.items() if lds != BAD}
        held = world.state.accepted[LISTENER]
        assert {name: held[name].version for name in good} == {
            name: now.types[LISTENER].resources[name].digest for name in good
        }
        world.settle(now)
