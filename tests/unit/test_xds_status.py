"""Status of a client, and the dump of resources."""

from __future__ import annotations

import json

import msgspec

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.debug.status import Client, StreamRecord, client_status
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Request, Response
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import ResourceSettings

GET = HttpRule(1, "GET")


def snapshot(path: str, version: str, previous: Snapshot | None = None) -> Snapshot:
    sets = {5: RuleSet(5, "web", (HttpRule(1, "GET", path),)), 6: RuleSet(6, "api", (HttpRule(2, "GET", "/"),))}
    return build_snapshot(sets, {5: 23005, 6: 23006}, ResourceSettings(), version, previous)


def answer(response: Response, names: tuple[str, ...] = (), error: str | None = None) -> Request:
    return Request(response.type_url, names, response.version, response.nonce, error)


def states(stream: AdsStream, served: Snapshot) -> dict[tuple[str, str], str]:
    status = client_status(StreamRecord(Client("n", "c", "envoy", "1.40.0"), stream, 0.0), served, True)
    return {(of.type, resource.name): resource.state for of in status.types for resource in of.resources}


def test_sent_acknowledged_and_refused_are_three_things() -> None:
    stream = AdsStream("s")
    first = snapshot("/a", "1")
    routes = ("rule-set-5", "rule-set-6")
    stream.receive(Request(LISTENER))
    stream.receive(Request(ROUTE, routes))
    assert set(states(stream, first).values()) == {"NOT SENT"}
    listeners, response = stream.responses(first)
    assert states(stream, first)["LDS", "rule-set-5"] == "STALE"
    stream.receive(answer(listeners))
    stream.receive(answer(response, routes))
    assert set(states(stream, first).values()) == {"SYNCED"}
    second = snapshot("/b", "2", first)
    [response] = stream.responses(second)
    stream.receive(answer(response, routes, "bad"))
    assert states(stream, second) == {
        ("LDS", "rule-set-5"): "SYNCED",
        ("LDS", "rule-set-6"): "SYNCED",
        ("RDS", "rule-set-5"): "NACK",
        ("RDS", "rule-set-6"): "SYNCED",
    }
    status = client_status(StreamRecord(Client("n", "c", "envoy", "1.40.0"), stream, 0.0), second, True)
    of = next(item for item in status.types if item.type == "RDS")
    assert (of.acked_version, of.sent_version, of.last_error and of.last_error.message) == ("1", "2", "bad")
    assert json.loads(msgspec.json.encode(status))["types"][1]["last_error"]["resources"] == ["rule-set-5"]
