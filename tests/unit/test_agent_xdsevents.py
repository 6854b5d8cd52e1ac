"""Events of the xDS server: kept, filtered, followed; a slow follower loses some and holds up nobody."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from spliceway.agent.ring import Lost
from spliceway.agent.xdsevents import LONGEST_ERROR, XdsEvents, event_filter
from spliceway.agent.xdsjson import clients_refused, event_json
from spliceway.xds.server.events import EventKind, XdsEvent
from support.agent import run


def event(nonce: str = "1", type_: str = "RDS", node: str = "node1", kind: EventKind = EventKind.PUSH) -> XdsEvent:
    return XdsEvent(
        time=1.0, kind=kind, node=node, cluster="c", stream="s", protocol="delta", type=type_, nonce=nonce
    )  # fmt: skip


def test_the_latest_are_kept_and_filtered() -> None:
    events = XdsEvents(4)
    for number in range(6):
        events.add(event(str(number), "LDS" if number % 2 else "RDS", f"node{number % 3}"))
    assert [one.nonce for one in events.latest(10)] == ["2", "3", "4", "5"]
    assert [one.nonce for one in events.latest(2)] == ["4", "5"]
    assert events.latest(0) == []
    assert [one.nonce for one in events.latest(10, event_filter({"type": "listeners"}))] == ["3", "5"]
    assert [one.nonce for one in events.latest(10, event_filter({"node": "node2"}))] == ["2", "5"]
    events.add(event("6", "", kind=EventKind.DISCONNECTED))
    assert [one.nonce for one in events.latest(1, event_filter({"type": "RDS"}))] == ["6"]  # concerns every type
    for query, said in (({"color": "red"}, "unknown filter color"), ({"type": "x"}, "no type 'x'")):
        with pytest.raises(ValueError, match=said):
            event_filter(query)


def test_a_slow_follower_loses_and_is_told_and_another_one_does_not() -> None:
    async def body() -> None:
        events = XdsEvents(10, follower_queue=3)
        events.add(event("before"))
        slow, quick = events.follow(last=1), events.follow()
        assert (await anext(slow)) == event("before")
        first = asyncio.ensure_future(anext(quick))
        await asyncio.sleep(0)  # it waits
        for number in range(5):
            events.add(event(str(number)))
            if number == 0:
                assert (await first) == event("0")
            else:
                assert (await anext(quick)) == event(str(number))
        assert (events.lost, events.followers) == (2, 2)
        events.close()
        assert [one async for one in slow] == [event("0"), event("1"), event("2"), Lost(2)]
        assert [one async for one in quick] == []
        assert events.followers == 0

    run(body)


def test_what_a_client_says_is_bounded() -> None:
    events = XdsEvents(4)
    events.add(msgspec.structs.replace(event(kind=EventKind.NACK), error="x" * (1 << 20)))
    (kept,) = events.latest(1)
    assert len(kept.error) < LONGEST_ERROR + 40
    assert kept.error.endswith("… (1048576 characters)")


def test_clients_that_were_not_served_are_told_for_a_minute_and_once() -> None:
    def rejected(time: float, node: str) -> XdsEvent:
        return msgspec.structs.replace(event("", "", node, EventKind.REJECTED), time=time, error="no")

    events = [rejected(10, "a"), rejected(50, "b"), rejected(60, "c"), rejected(61, "b")]
    assert clients_refused(events, 75) == [
        {"kind": "client", "name": "b", "reason": "no", "time": "1970-01-01T00:01:01.000000Z"},
        {"kind": "client", "name": "c", "reason": "no", "time": "1970-01-01T00:01:00.000000Z"},
    ]


def test_an_event_as_it_leaves_the_process() -> None:
    acked = msgspec.structs.replace(event(kind=EventKind.ACK), time=1.25, seconds=0.5)
    line = msgspec.json.decode(event_json(acked))
    assert (line["time"], line["kind"], line["ackSeconds"]) == ("1970-01-01T00:00:01.250000Z", "ack", 0.5)
    assert "seconds" not in line
    assert event_json(Lost(3)) == b'{"lost":3}'
