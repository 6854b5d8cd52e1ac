"""A client that behaves like Envoy, and any history of snapshots, refusals and reconnects: what must always hold."""

from __future__ import annotations

from itertools import count

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Kind, Request, Response
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE, TYPES

# A state is a set of listeners, each with a revision of its routes; a listener named `x` needs the cluster of its own.
States = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
    min_size=1,
    max_size=8,
)


def snapshot(version: str, state: dict[str, int], previous: Snapshot | None) -> Snapshot:
    return Snapshot.of(
        version,
        {
            CLUSTER: {f"cluster-{name}": b"" for name in state},
            LISTENER: {f"set-{name}": b"" for name in state},
            ROUTE: {f"set-{name}": str(revision).encode() for name, revision in state.items()},
        },
        previous,
    )


class Envoy:
    """Holds what it accepted, asks for the routes of its listeners, and refuses when told to."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, bytes]] = {CLUSTER: {}, LISTENER: {}, ROUTE: {}}
        self.refused: set[tuple[str, str, bytes]] = set()
        self.connect("0")

    def connect(self, stream_id: str) -> None:
        """A new stream: everything is asked for again, with what the old one left."""
        self.stream = AdsStream(stream_id)
        self.last: dict[str, tuple[str, str]] = dict.fromkeys(self.held, ("left-over", "of another stream"))
        self.asked: frozenset[str] = frozenset()
        self.known = False
        self.taken: set[str] = set()  # routes that this stream has given
        for url in (CLUSTER, LISTENER):
            self.ask(url)
        if self.held[LISTENER]:
            self.ask_routes()

    def ask(self, url: str, *names: str, error: str | None = None) -> Kind:
        version, nonce = self.last[url]
        return self.stream.receive(Request(url, names, version, nonce, error))

    def ask_routes(self, error: str | None = None) -> Kind:
        self.asked = frozenset(self.held[LISTENER])
        return self.ask(ROUTE, *sorted(self.asked), error=error)

    def take(self, response: Response, refuse: bool) -> None:
        """Apply and answer one response, and check what must hold of it."""
        url = response.type_url
        names = [resource.name for resource in response.resources]
        assert len(set(names)) == len(names)
        self.last[url] = (response.version, response.nonce)
        bodies = {resource.name: resource.body for resource in response.resources}
        if refuse:
            for resource in response.resources:
                # Rule 5: what was refused never comes again on its own; only new routes come together, and once.
                what = (self.stream.stream_id, resource.name, f"{resource.version} {len(names) > 1}".encode())
                assert url != ROUTE or what not in self.refused
                self.refused.add(what)
            assert (self.ask_routes("no") if url == ROUTE else self.ask(url, error="no")) is Kind.NACK
            return
        if url == ROUTE:
            assert len(names) == 1 or not self.held[ROUTE].keys() & self.taken & set(names)
            self.taken |= set(names)
            assert set(names) <= self.asked
            self.held[ROUTE].update(bodies)
            assert self.ask_routes() is Kind.ACK
        else:
            self.held[url] = bodies
            assert self.ask(url) is Kind.ACK
        if url == LISTENER:
            self.held[ROUTE] = {name: body for name, body in self.held[ROUTE].items() if name in bodies}
            if frozenset(bodies) != self.asked:
                self.ask_routes()
        self.known |= url == LISTENER
        # Make before break: no listener without its cluster. (What is left over from another stream nobody knows.)
        for name in self.held[LISTENER] if self.known else ():
            assert name.replace("set-", "cluster-") in self.held[CLUSTER], (names, self.held)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(states=States, choices=st.lists(st.integers(0, 9), max_size=60))
def test_any_history_ends_with_what_the_last_snapshot_says(states: list[dict[str, int]], choices: list[int]) -> None:
    envoy, numbers = Envoy(), count(1)
    served: Snapshot | None = None
    pending: list[Response] = []
    following = iter(choices)
    for index, state in enumerate(states):
        served = snapshot(str(index), state, served)
        for choice in [next(following, 0) for _ in range(4)]:
            pending += envoy.stream.responses(served)
            assert len({response.type_url for response in pending}) == len(pending)  # one outstanding for each type
            if choice == 9:
                pending.clear()
                envoy.connect(str(next(numbers)))
            elif choice in (7, 8) and pending and pending[0].type_url == ROUTE:
                envoy.take(pending.pop(0), refuse=True)
            elif choice > 1 and pending:
                envoy.take(pending.pop(0), refuse=False)
    # One more change of everything, accepted: whatever was refused before, both sides agree in the end.
    final = {name: revision + 10 for name, revision in states[-1].items()}
    served = snapshot("final", final, served)
    while pending or (pending := envoy.stream.responses(served)):
        envoy.take(pending.pop(0), refuse=False)
    assert envoy.held == {url: served.bodies()[url] for url in envoy.held}
    assert envoy.stream.progress(served).missing == ()
    assert envoy.stream.progress(served).refused == ()
    assert not any(envoy.stream.subscriptions[url].pending for url in TYPES)
