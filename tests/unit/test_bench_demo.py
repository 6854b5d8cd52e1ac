"""The demo's pure parts: what is asked, what the agent says of it, and whether that is right."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from spliceway.agent.demo import evidence, report
from spliceway.agent.demo.evidence import Evidence, Tuple
from spliceway.agent.demo.judge import Row, Ruling, judge, rule_on
from spliceway.agent.demo.plan import DemoError, Expected, Request, examples, load_chapters
from spliceway.agent.testbed import manifests
from spliceway.policy.documents import load_documents
from spliceway.policy.model import Cluster
from spliceway.policy.parse import parse_document

CLIENT, SERVER = "10.240.1.11", "10.240.1.13"
ASKED = Tuple("TCP", CLIENT, 40000, SERVER, 80)
RULE = "CiliumNetworkPolicy default/api-http spec.ingress[0].toPorts[0]"
GET = Request("frontend", "api", Expected("200", "http-allowed", "proxy + splice"), path="/articles/1")
ALLOWED = Ruling("", "http-allowed", RULE)


def flow(hook: str, verdict: str, reason: str, **changed: Any) -> dict[str, Any]:
    return {
        "hook": hook,
        "verdict": verdict,
        "reason": reason,
        "source": {"address": CLIENT, "port": 40000},
        "destination": {"address": SERVER, "port": 80},
        "protocol": "HTTP/1.1" if hook == "proxy" else "TCP",
        "leg": "downstream" if hook == "proxy" else "direct",
        "reply": False,
        "rule": RULE if verdict == "allow" else "",
        "nearestMiss": "",
        **changed,
    }


def sock(leg: str, state: str = "spliced", port: int = 40000, why: str = "") -> dict[str, Any]:
    own, other = ((CLIENT, port), (SERVER, 80)) if leg == "downstream" else ((SERVER, 80), (CLIENT, 23456))
    return {
        "leg": leg, "state": state, "why": why,
        "endpoint": own[0], "endpointPort": own[1], "peer": other[0], "peerPort": other[1],
    }  # fmt: skip


STEERED = flow("from-pod", "redirect", "redirected", leg="downstream")
PASSED = flow("proxy", "allow", "http-allowed")
BOTH = [sock("downstream"), sock("upstream")]


def test_the_requests_are_about_pods_that_there_are() -> None:
    chapters = load_chapters()
    found = manifests.load([examples("demo"), examples("demo-outside")])
    names = {manifest.name for manifest in found if manifest.kind == "Pod"}
    requests = [request for chapter in chapters for request in chapter.requests]
    assert {name for request in requests for name in (request.source, request.target)} <= names
    assert names == {"frontend", "backend", "api", "intruder", "inside-cidr", "outside-cidr"}
    for answer in ("200", "403", "no answer", "echo"):
        assert any(request.expect.answer == answer for request in requests)


def test_table_and_interpreter_are_of_one_mind() -> None:
    files = [*examples("demo").glob("*.yaml"), *examples("demo/policies").glob("*.yaml")]
    cluster = Cluster().with_objects(
        item
        for file in files
        for document in load_documents(file.read_text(), file.name)
        for item in parse_document(document)
    )
    outside = {"inside-cidr": ("10.10.1.5", "fd00:10:1::5"), "outside-cidr": ("10.10.2.5", "fd00:10:2::5")}
    hosts = {name: tuple(map(ip_address, addresses)) for name, addresses in outside.items()}
    pods = {pod.name: pod.addresses for pod in cluster.pods.values()} | hosts
    for chapter in load_chapters():
        for request in chapter.requests:
            for kind in (IPv4Address, IPv6Address):
                source, target = (
                    next(str(address) for address in pods[name] if isinstance(address, kind))
                    for name in (request.source, request.target)
                )
                ruling = rule_on(cluster, request, Tuple(request.protocol, source, 40000, target, request.port))
                assert ruling.reason == request.expect.reason
                assert ruling.answer in ("", request.expect.answer)
                assert bool(ruling.answer) is (request.expect.answer in ("403", "no answer"))


def test_a_wrong_file_is_told_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "requests.yaml"
    expect = "{answer: '200', reason: r, data_path: kernel}"
    path.write_text(f"- {{title: a, requests: [{{from: a, to: b, port: x, expect: {expect}}}]}}")
    with pytest.raises(
        DemoError, match=r"requests\.yaml: Expected `int`, got `str` - at `\$\[0\]\.requests\[0\]\.port`"
    ):
        load_chapters(path)
    with pytest.raises(DemoError, match="runs from a source tree"):
        examples("no-such-example")


@pytest.mark.parametrize(
    ("flows", "reason"),
    [
        ([STEERED, PASSED], "http-allowed"),
        ([PASSED, STEERED], "http-allowed"),
        ([STEERED], None),  # the proxy's verdict is still on its way
        ([], None),
        ([flow("from-network", "allow", "no-policy"), flow("to-pod", "deny", "default-deny")], "default-deny"),
        ([flow("from-pod", "allow", "no-policy"), flow("to-pod", "allow", "policy-allowed")], "no-policy"),
        ([flow("from-pod", "deny", "default-deny", source={"address": CLIENT, "port": 40001})], None),
        ([flow("from-pod", "deny", "default-deny", destination={"address": SERVER, "port": 81})], None),
        ([flow("from-pod", "deny", "default-deny", protocol="UDP")], None),
        ([flow("from-pod", "deny", "default-deny", reply=True)], None),
        ([flow("from-pod", "deny", "default-deny", leg="upstream")], None),
    ],
)
def test_the_flow_that_decides(flows: list[dict[str, Any]], reason: str | None) -> None:
    found = evidence.decided(ASKED, flows)
    assert (found and found["reason"]) == reason


def test_addresses_are_compared_as_addresses() -> None:
    asked = Tuple("TCP", "fd00:240:1::11", 40000, "fd00:240:1:0::13", 80)
    ends = {
        "source": {"address": "fd00:240:1:0:0::11", "port": 40000},
        "destination": {"address": "fd00:240:1::13", "port": 80},
    }
    assert evidence.decided(asked, [flow("from-pod", "allow", "no-policy", **ends)])


@pytest.mark.parametrize(
    ("http", "socks", "data_path", "why"),
    [
        (PASSED, BOTH, "proxy + splice", ""),
        (PASSED, [sock("downstream")], "proxy", "server's leg: no such socket"),
        (PASSED, [sock("downstream", port=40001), sock("upstream")], "proxy", "client's leg: no such socket"),
        (PASSED, [sock("downstream", "tcp-only", why="off"), sock("upstream")], "proxy", "client's leg: tcp-only off"),
        (PASSED, [sock("downstream"), sock("upstream", "tcp-only")], "proxy", "server's leg: tcp-only"),
        (flow("proxy", "deny", "http-denied"), [sock("downstream")], "proxy + splice", ""),
    ],
)
def test_data_path(http: dict[str, Any], socks: list[dict[str, Any]], data_path: str, why: str) -> None:
    found = evidence.gather(ASKED, [STEERED, http], socks)
    assert (found.data_path, found.why) == (data_path, why)


def test_kernel_data_path_and_nothing_known() -> None:
    assert evidence.gather(ASKED, [flow("from-pod", "deny", "default-deny")], []).data_path == "kernel"
    assert evidence.gather(ASKED, [], BOTH) == Evidence()


def row(answer: str = "200", body: str = "api GET /articles/1", **changed: str) -> Row:
    found = Evidence("allow", "http-allowed", RULE, "proxy + splice")
    return judge("4", GET, 4, answer, body, msgspec.structs.replace(found, **changed), ALLOWED)


def test_as_expected() -> None:
    assert row().ok
    assert row().request == "frontend → api  GET /articles/1"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (row("403"), "the answer is 403 instead of 200"),
        (row(reason="http-denied"), "the reason is http-denied instead of http-allowed"),
        (row(rule=""), f"the rule is missing instead of {RULE}"),
        (row(data_path="proxy", why="client's leg: tcp-only off"), "(client's leg: tcp-only off)"),
        (row(body="intruder GET /articles/1"), "the answer is not api's: 'intruder GET /articles/1'"),
    ],
)
def test_whatever_differs_is_said(wrong: Row, said: str) -> None:
    assert not wrong.ok
    assert said in wrong.differs


def test_the_table_may_not_contradict_the_interpreter() -> None:
    found = Evidence("allow", "http-allowed", RULE, "proxy + splice")
    ruling = Ruling("403", "http-denied", RULE)
    differs = judge("4", GET, 4, "200", "api", found, ruling).differs
    assert differs == ("the interpreter's reason is http-denied", "the interpreter's answer is 403")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_what_was_judged_is_whole_at_any_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    long = msgspec.structs.replace(
        row(),
        request="frontend → api  GET /articles/%2e%2e;/private",
        reason="http-ambiguous",
        rule=f"{RULE}.rules.http[0]",
    )
    none = msgspec.structs.replace(row("no answer"), request="inside-cidr → backend  GET /", rule="")
    rows = [long, msgspec.structs.replace(long, family=6), none]
    report.print_requests(Console(width=width), rows)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    judged = [line for line in lines if {"4", "4+6"} & set(line.split()[1:])]
    assert len(judged) == 2
    assert all(word in judged[0] for word in ("200", "http-ambiguous", "proxy + splice"))
    assert judged[0].endswith("ok")
    assert "no answer" in judged[1]
    assert judged[1].endswith("DIFFERS")
    assert ("  api-http ingress[0].toPorts[0].rules.http[0]" in lines) is (width < 200)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    bad = msgspec.structs.replace(row("no answer"), family=6)
    report.print_tables([row(), msgspec.structs.replace(row(), family=6), bad], [])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "frontend" in line]
    assert "4+6" in lines[0]
    assert "api-http ingress[0].toPorts[0]" in out
    assert "DIFFERS" in lines[1]
    assert "the answer is no answer instead of 200" in out
    assert "1 of 3 requests are not as expected." in out
    made = report.as_json([row(), bad], [])
    assert (made["ok"], [each["ok"] for each in made["rows"]]) == (False, [True, False])
    assert made["rows"][0]["expectedDataPath"] == "proxy + splice"
