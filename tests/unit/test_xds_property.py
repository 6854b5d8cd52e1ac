"""Any history of states, refusals, reconnects and delays with a model of Envoy: what must always hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from support.xdsclient import body
from support.xdsmodel import Client

#: A state: listener -> (cluster to which its routes go, revision of the routes), and revisions of the clusters. A
#: cluster of an even number has its endpoints by EDS.
Listeners = dict[str, tuple[int, int]]
State = tuple[Listeners, int, int]
STATES = st.tuples(
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=3),
    st.integers(0, 1),
    st.integers(0, 1),
)
MOVES = st.lists(
    st.sampled_from(["state", *["write"] * 3, *["server"] * 4, *["client"] * 4, "connect", "restart"]), max_size=80
)


def snapshot(version: str, state: State, previous: Snapshot | None, edited: str = "") -> Snapshot:
    listeners, clusters, endpoints = state
    used = sorted({f"c{number}" for number, _ in listeners.values()})
    by_eds = [name for name in used if int(name[1:]) % 2 == 0]
    made = {
        CLUSTER: {
            name: body(CLUSTER, name, f"{clusters}{edited}", eds="" if name in by_eds else None) for name in used
        },
        ENDPOINT: {name: body(ENDPOINT, name, f"{endpoints}{edited}") for name in by_eds},
        LISTENER: {name: body(LISTENER, name, edited) for name in listeners},
        ROUTE: {name: body(ROUTE, name, f"{rev}{edited}", to=f"c{to}") for name, (to, rev) in listeners.items()},
    }
    for name in used:  # what is not by EDS is used at once
        if name not in by_eds:
            made[CLUSTER][name] = body(CLUSTER, name, f"{clusters}{edited}")
    return Snapshot.of(version, made, previous)


def settle(client: Client, served: Snapshot) -> None:
    """Everything arrives, until nothing more is said."""
    for _ in range(200):
        client.server_writes(served)
        if client.idle:
            return
        while client.requests:
            client.server_reads()
        client.server_writes(served)
        while client.responses:
            client.client_reads()
    raise AssertionError("there is always something more to say")


@pytest.mark.parametrize("delta", [False, True])
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    states=st.lists(STATES, min_size=1, max_size=6),
    moves=MOVES,
    refusals=st.lists(st.booleans(), max_size=12),
)
def test_any_history_ends_with_what_the_last_snapshot_says(
    delta: bool, states: list[State], moves: list[str], refusals: list[bool]
) -> None:
    versions = count(1)
    refusing: Iterator[bool] = iter(refusals)
    client = Client(delta, lambda: next(refusing, False))
    coming = iter(states)
    last = next(coming)
    served = snapshot(str(next(versions)), last, None)
    for move in moves:
        if move == "state":
            last = next(coming, last)
            served = snapshot(str(next(versions)), last, served)
        elif move == "write":
            client.server_writes(served)
        elif move == "server":
            client.server_reads()
        elif move == "client":
            client.client_reads()
        else:
            if move == "restart":  # another agent: its versions tell nothing of the first one's
                served = snapshot(f"other-{next(versions)}", last, None)
            client.connect()
    settle(client, served)
    client.refuse = lambda: False
    # One more change of everything, accepted: whatever was refused before, both sides agree in the end.
    served = snapshot("final", last, served, edited="x")
    settle(client, served)
    assert client.held == {url: served.bodies()[url] for url in client.held}
    assert client.usable == client.warm == set(client.held[CLUSTER])
    assert client.stream.progress(served).missing == ()
    assert client.stream.progress(served).refused == ()
    assert not any(subscription.pending for subscription in client.stream.subscriptions.values())


@pytest.mark.parametrize("delta", [False, True])
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(states=st.lists(STATES, min_size=2, max_size=6), refusals=st.lists(st.booleans(), max_size=12))
def test_a_settled_client_is_told_nothing_by_an_identical_state(
    delta: bool, states: list[State], refusals: list[bool]
) -> None:
    refusing = iter(refusals)
    client = Client(delta, lambda: next(refusing, False))
    served: Snapshot | None = None
    for number, state in enumerate(states):
        served = snapshot(f"{number}", state, served)
        settle(client, served)
        assert client.warm == client.held[CLUSTER].keys(), "a cluster waits for its endpoints for ever"
        served = snapshot(f"{number}-again", state, served)
        assert client.server_writes(served) == 0
