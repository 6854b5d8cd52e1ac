"""Whether a request came out as expected: by the hand-written table, and by the reference interpreter. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from spliceway.agent.demo.evidence import Evidence, Tuple
from spliceway.agent.demo.plan import Request
from spliceway.policy.evaluate import Connection, Decision, evaluate
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster
from spliceway.policy.verdict import Protocol, Verdict


class Ruling(msgspec.Struct, frozen=True):
    """What the reference interpreter says of a request: `answer` as far as policy decides it, empty where it passes."""

    answer: str
    reason: str
    rule: str


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """One line of the demo's table. `differs`: what is not as it should be, one sentence each; empty when all is."""

    chapter: str
    request: str
    family: int
    expected: str
    actual: str
    expected_reason: str
    reason: str
    expected_rule: str
    rule: str
    expected_data_path: str
    data_path: str
    nearest_miss: str
    differs: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as expected."""
        return not self.differs


def rule_on(cluster: Cluster, request: Request, asked: Tuple) -> Ruling:
    """Ask the interpreter."""
    connection = Connection(
        ip_address(asked.source), ip_address(asked.destination), Protocol[asked.protocol], asked.destination_port
    )
    head = HttpRequest.of(request.method, request.path) if request.protocol == "TCP" else None
    decision = evaluate(cluster, connection, head)
    if decision.http is None:
        answer = "no answer" if decision.verdict is Verdict.DENY else ""
        return Ruling(answer, decision.reason.label, _text(decision.rule))
    answer = "" if decision.http.verdict is Verdict.ALLOW else str(decision.http.status)
    return Ruling(answer, decision.http.reason.label, _http_rule(decision))


def judge(chapter: str, request: Request, family: int, answer: str, body: str, found: Evidence, ruling: Ruling) -> Row:
    """Compare. `answer` and `body` are what the client got."""
    expect = request.expect
    differs = [
        f"{what} is {actual or 'missing'} instead of {wanted or 'none'}"
        for what, actual, wanted in (
            ("the answer", answer, expect.answer),
            ("the reason", found.reason, expect.reason),
            ("the rule", found.rule, ruling.rule),
            ("the data path", found.data_path, expect.data_path),
        )
        if actual != wanted
    ]
    differs += [f"({found.why})"] if found.why and found.data_path != expect.data_path else []
    differs += _contradictions(request, ruling)
    if answer == "200" and body.split(" ", 1)[0] != request.target:
        differs.append(f"the answer is not {request.target}'s: {body[:60]!r}")
    return Row(
        chapter=chapter,
        request=request.text,
        family=family,
        expected=expect.answer,
        actual=answer,
        expected_reason=expect.reason,
        reason=found.reason,
        expected_rule=ruling.rule,
        rule=found.rule,
        expected_data_path=expect.data_path,
        data_path=found.data_path,
        nearest_miss=found.nearest_miss,
        differs=tuple(differs),
    )


def _contradictions(request: Request, ruling: Ruling) -> Iterable[str]:
    """Where the table and the interpreter are not of one mind, one of them is wrong."""
    expect = request.expect
    if ruling.reason != expect.reason:
        yield f"the interpreter's reason is {ruling.reason}"
    if (ruling.answer or expect.answer) != expect.answer or (not ruling.answer and expect.answer in _REFUSALS):
        yield f"the interpreter's answer is {ruling.answer or 'to let it pass'}"


_REFUSALS = ("no answer", "400", "403")


def _http_rule(decision: Decision) -> str:
    return _text(decision.http_rule)


def _text(rule: object | None) -> str:
    return str(rule) if rule else ""
