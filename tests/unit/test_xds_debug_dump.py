"""The dump of resources: what is in it, filters, and what it does not show."""

from __future__ import annotations

import base64
import json
from typing import Any

from envoy.config.listener.v3 import listener_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.debug.dump import dump_held, dump_snapshot
from spliceway.xds.debug.status import Client, Held, Timing, held_of, type_status
from spliceway.xds.debug.view import ServerView
from spliceway.xds.protocol.snapshot import Resource, Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import ResourceSettings

GET = HttpRule(1, "GET")


def snapshot(path: str, version: str, previous: Snapshot | None = None) -> Snapshot:
    sets = {5: RuleSet(5, "web", (HttpRule(1, "GET", path),)), 6: RuleSet(6, "api", (HttpRule(2, "GET", "/"),))}
    return build_snapshot(sets, {5: 23005, 6: 23006}, ResourceSettings(), version, previous)


def test_the_dump_is_json_and_can_be_filtered() -> None:
    served = snapshot("/a", "1")
    everything = list(dump_snapshot(served))
    assert [(item["type"], item["name"]) for item in everything] == [
        ("CDS", "original-destination"),
        ("LDS", "rule-set-5"),
        ("LDS", "rule-set-6"),
        ("RDS", "rule-set-5"),
        ("RDS", "rule-set-6"),
    ]
    assert '"regex": "/a"' in json.dumps(everything)
    assert [item["name"] for item in dump_snapshot(served, types=["LDS"])] == ["rule-set-5", "rule-set-6"]
    assert [item["type"] for item in dump_snapshot(served, names=["rule-set-6"])] == ["LDS", "RDS"]


def test_each_resource_has_its_version_digest_size_and_state() -> None:
    served = snapshot("/b", "2", snapshot("/a", "1"))
    stream = AdsStream("s")
    stream.receive(Request(LISTENER))
    [response] = stream.responses(served)
    status = {"LDS": type_status(stream.subscriptions[LISTENER], served, Timing())}
    held = {url: held_of(of.resources) for url, of in served.types.items()}
    found = {(item["type"], item["name"]): item for item in dump_held(held, status, {})}
    route, listener = found["RDS", "rule-set-5"], found["LDS", "rule-set-5"]
    resource = served.types[ROUTE].resources["rule-set-5"]
    assert (route["version"], route["digest"], route["size"]) == ("2", resource.digest, len(resource.body))
    assert (route["state"], listener["state"], listener["version"]) == ("NOT SENT", "STALE", "1")
    assert listener["resource"]["@type"] == LISTENER
    assert response.type_url == LISTENER


def test_what_a_client_had_before_is_told_without_content() -> None:
    [item] = dump_held({ROUTE: {"old": Held("old", "abc", None)}}, {}, {})
    assert (item["version"], item["size"], item["resource"]) == ("abc", 0, None)


def test_the_dump_does_not_show_secrets() -> None:
    matches = tuple(
        HeaderMatch(f"x-{number}", value, secret=True) for number, value in enumerate(("hush-hush", "h\xfcsh", "50%"))
    )
    rule = HttpRule(1, "GET", "/a", headers=(*matches, HeaderMatch("x-plain", "plain")))
    given = HttpRule(2, headers=(HeaderMatch("x-token", "hush-given", secret=True, mismatch=Mismatch.REPLACE),))
    sets = {5: RuleSet(5, "web", (given,), also=RuleSet(6, "x", None, audit=(rule,))), 7: RuleSet(7, "y", (GET,))}
    served = build_snapshot(sets, {5: 23005, 7: 23007}, ResourceSettings(), "1")
    shown = json.dumps(list(dump_snapshot(served, types=["RDS"])))
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


class Server:
    """As much of XdsServer as the view uses: it was sent `sent`, and shall have `desired`."""

    def __init__(self, desired: Snapshot, sent: Snapshot) -> None:
        self._held = {"desired": desired, "sent": sent, "acked": sent}

    def held(self, node: str, stage: str) -> dict[str, dict[str, Held]]:
        return {url: held_of(of.resources) for url, of in self._held[stage].types.items()} if node == "n" else {}

    def status(self, *, resources: bool = True) -> tuple[Any, ...]:
        return ()

    def current(self, node: str) -> dict[str, Any]:
        return {}

    def nodes(self) -> tuple[Any, ...]:
        return (Client("n", "c", "envoy", ""),)


def test_the_value_that_a_secret_had_before_is_not_shown_either() -> None:
    def made(value: str, version: str, previous: Snapshot | None = None) -> Snapshot:
        rule = HttpRule(1, "GET", "/a", headers=(HeaderMatch("x-token", value, secret=True),))
        return build_snapshot({5: RuleSet(5, "w", (rule,))}, {5: 23005}, ResourceSettings(), version, previous)

    before = made("hush-before", "1")
    after = made("hush-after", "2", before)
    server: Any = Server(after, before)
    view = ServerView(server)
    texts = view.secrets("n")["rule-set-5"]
    assert {"hush-before", "hush-after"} <= texts
    assert not view.secrets("other")
    for stage in ("desired", "sent"):
        shown = json.dumps(list(dump_held(view.held("n", stage), {}, {})))
        assert "hush" not in shown
        assert "(secret)" in shown


def test_a_value_that_becomes_a_secret_without_another_value_is_one() -> None:
    def made(version: str, *, secret: bool, previous: Snapshot | None = None) -> Snapshot:
        rule = HttpRule(1, "GET", "/a", headers=(HeaderMatch("x-token", "hush-hush", secret=secret),))
        return build_snapshot({5: RuleSet(5, "w", (rule,))}, {5: 23005}, ResourceSettings(), version, previous)

    before = made("1", secret=False)
    after = made("2", secret=True, previous=before)
    routes = {url: held_of(of.resources) for url, of in after.types.items()}
    assert "hush" not in json.dumps(list(dump_held(routes, {}, {})))
    assert made("3", secret=True, previous=after).types[ROUTE] is after.types[ROUTE]


def test_what_cannot_be_read_is_said_and_raises_nothing() -> None:
    strange = listener_pb2.Listener(name="x")
    strange.filter_chains.add().filters.add(
        name="f", typed_config=AnyMessage(type_url="type.googleapis.com/of.Tomorrow", value=b"12345")
    )
    held = {
        LISTENER: {
            "broken": Held("broken", "1", Resource("broken", "1", b"\xff\xff")),
            "strange": Held("strange", "1", Resource("strange", "1", strange.SerializeToString())),
        }
    }
    broken, shown = dump_held(held, {}, {})
    assert broken["resource"] == {"@type": LISTENER, "value": "(2 bytes that can't be read as this type)"}
    [chain] = shown["resource"]["filter_chains"]
    assert chain["filters"][0]["typed_config"] == {
        "@type": "type.googleapis.com/of.Tomorrow",
        "value": "(5 bytes of a type that is not known here)",
    }
