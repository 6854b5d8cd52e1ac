"""Status of a client, and the dump of resources."""

from __future__ import annotations

import base64
import json

import msgspec

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.debug.status import Client, StreamRecord, client_status, dump_resources
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
    [listeners] = stream.responses(first)
    assert states(stream, first)["LDS", "rule-set-5"] == "STALE"
    stream.receive(answer(listeners))
    [response] = stream.responses(first)
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


def test_the_dump_is_json_and_can_be_filtered() -> None:
    served = snapshot("/a", "1")
    everything = list(dump_resources(served))
    assert [(item["type"], item["name"]) for item in everything] == [
        ("CDS", "original-destination"),
        ("LDS", "rule-set-5"),
        ("LDS", "rule-set-6"),
        ("RDS", "rule-set-5"),
        ("RDS", "rule-set-6"),
    ]
    assert '"regex": "/a"' in json.dumps(everything)
    assert [item["name"] for item in dump_resources(served, types=["LDS"])] == ["rule-set-5", "rule-set-6"]
    assert [item["type"] for item in dump_resources(served, names=["rule-set-6"])] == ["LDS", "RDS"]


def test_the_dump_does_not_show_secrets() -> None:
    matches = tuple(
        HeaderMatch(f"x-{number}", value, secret=True) for number, value in enumerate(("hush-hush", "h\xfcsh", "50%"))
    )
    rule = HttpRule(1, "GET", "/a", headers=(*matches, HeaderMatch("x-plain", "plain")))
    given = HttpRule(2, headers=(HeaderMatch("x-token", "hush-given", secret=True, mismatch=Mismatch.REPLACE),))
    sets = {5: RuleSet(5, "web", (given,), also=RuleSet(6, "x", None, audit=(rule,))), 7: RuleSet(7, "y", (GET,))}
    served = build_snapshot(sets, {5: 23005, 7: 23007}, ResourceSettings(), "1")
    shown = json.dumps(list(dump_resources(served, types=["RDS"])))
    assert shown.count("(secret)") == 7  # matched: as a matcher and in an expression; given: once
    for value in (
        "hush",
        "h\xfcsh",
        "h\\xfcsh",
        "50%",
        "aHVzaC1odXNo",
        b"hush".hex(),
        "NTAl",
        base64.b64encode(b"h\xfcsh").decode(),
    ):
        assert value not in shown
    assert '"exact": "plain"' in shown
    assert "hush" not in f"{served!r} {served.types!r}"
