"""Reading a prober's answers, and the policies that are edited meanwhile."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from spliceway.agent.bench.edits import SUBJECTS, Subject, policy
from spliceway.agent.bench.timeline import Attempt, judged_anew, parse, settled
from spliceway.policy.documents import Document
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Protocol, Verdict


def timeline(text: str) -> list[Attempt]:
    """`+` was let through, `-` was denied, `.` did not ask; one place is 10 ns."""
    return [Attempt(10 * place, mark == "+", 40000) for place, mark in enumerate(text) if mark != "."]


def test_parse() -> None:
    assert parse("123 ok 40000\n") == Attempt(123, True, 40000)
    assert parse("124 denied 0\n") == Attempt(124, False, 0)
    for line in ("", "1 ok", "x ok 1", "1 maybe 1"):
        with pytest.raises((ValueError, KeyError)):
            parse(line)


@pytest.mark.parametrize(
    ("text", "allowed", "expected"),
    [
        ("+++---", False, True),
        ("+++--", False, False),
        ("---+++", True, True),
        ("---+++", False, False),
        ("--", False, False),
        ("", True, False),
    ],
)
def test_settled(text: str, allowed: bool, expected: bool) -> None:
    assert settled(timeline(text), allowed=allowed) is expected


@pytest.mark.parametrize(
    ("text", "edited", "allowed", "start"),
    [
        ("+++++---", 20, False, 50),
        ("++++++++", 20, False, None),
        ("+++-+---", 20, False, 50),  # a question that merely got lost
        ("++---...", 10, False, 20),
        ("-----+++", 20, True, 50),
        ("++---+++", 20, True, 50),  # what passed before the edit says nothing about it
        ("--------", 20, True, None),
    ],
)
def test_judged_anew(text: str, edited: int, allowed: bool, start: int | None) -> None:
    found = judged_anew(reversed(timeline(text)), edited, allowed=allowed)
    assert (found and found.start) == start


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=lambda subject: subject.name)
def test_the_edits_do_what_they_say(subject: Subject) -> None:
    client = Pod("bench", "client", {"bench": "client"}, (ip("10.240.1.10"),), "node1")
    server = Pod("bench", "server", {"bench": subject.server}, (ip("10.240.1.11"),), "node1")
    for allowed in (True, False):
        document = policy(subject, "bench", allowed=allowed)
        cluster = Cluster().with_objects([client, server, *parse_document(Document("edited.yaml", 1, 1, document))])
        connection = Connection(client.addresses[0], server.addresses[0], Protocol[subject.protocol], 80)
        decision = evaluate(cluster, connection, HttpRequest.of("GET", "/small"))
        passes = decision.http.verdict is Verdict.ALLOW if decision.http else decision.verdict is Verdict.ALLOW
        assert passes is allowed
        steered = subject.http and (allowed or subject.rule == "HTTP")
        assert (decision.verdict is Verdict.REDIRECT) is steered


def ip(text: str) -> IPv4Address:

    return IPv4Address(text)
