"""The oracle against the interpreter and the hand-made cases: two readings of the specifications agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.verdict import Protocol
from support.cases import POD_CIDRS, CaseFile, load_case_files
from support.generated import generated_files
from support.generated_http import generated_http
from support.oracle import decide
from support.oracle_world import Doc, World

#: The oracle knows no audit; what it says of HTTP is that it is asked.
HAND_MADE = [file for file in load_case_files() if file.name != "audit.yaml"]
GENERATED = generated_files(40, 1, 25)
REQUESTS = generated_http(40, 1, 10)


@pytest.mark.parametrize("file", HAND_MADE, ids=lambda file: file.name)
def test_the_oracle_says_what_the_cases_expect(file: CaseFile) -> None:
    world = World(list(flat(file.documents)), tuple(map(str, POD_CIDRS)))
    for case in file.cases:
        found = decide(world, str(case.source), str(case.destination), Protocol(case.protocol).name, case.port)
        assert tuple(found) == (case.expect.verdict, case.expect.reason, case.expect.rule), case.id


@pytest.mark.parametrize("file", GENERATED, ids=lambda file: file.name)
def test_the_interpreter_says_what_the_oracle_says(file: CaseFile) -> None:
    for case in file.cases:
        found = evaluate(file.cluster, Connection(case.source, case.destination, case.protocol, case.port))
        rule = str(found.rule) if found.rule else None
        expected = case.expect.verdict, case.expect.reason, case.expect.rule
        assert (found.verdict.label, found.reason.label, rule) == expected, f"{case.id}: {file.documents}"


@pytest.mark.parametrize("file", REQUESTS, ids=lambda file: file.name)
def test_the_interpreter_judges_requests_alike(file: CaseFile) -> None:
    for case in file.cases:
        asked = Connection(case.source, case.destination, case.protocol, case.port)
        found, expected = evaluate(file.cluster, asked, case.request), case.expect.http
        assert found.http is not None
        assert expected is not None
        rule = str(found.http_rule) if found.http_rule else None
        said = found.verdict.label, found.http.status, found.http.reason.label, rule
        assert said == ("redirect", expected.status, expected.reason, expected.rule), f"{case.id}: {file.documents}"


def test_the_generator_reaches_everything() -> None:
    cases = [case for file in GENERATED for case in file.cases]
    assert len(cases) >= 400
    reasons = Counter(case.expect.reason for case in cases)
    assert min(reasons[name] for name in ("no-policy", "default-deny", "policy-allowed", "policy-denied")) >= 30
    assert reasons["host-allowed"] >= 5
    kinds = {str(case.expect.rule).split(" ")[0] for case in cases}
    assert {"NetworkPolicy", "ClusterNetworkPolicy", "CiliumNetworkPolicy"} <= kinds
    assert {"CiliumClusterwideNetworkPolicy", "AdminNetworkPolicy"} <= kinds


def flat(documents: Iterable[Doc]) -> Iterator[Doc]:
    """Documents, and those in Lists."""
    for document in documents:
        if document["kind"] == "List":
            yield from flat(document["items"])
        else:
            yield document


def test_the_generator_of_requests_reaches_everything() -> None:
    expected = [case.expect.http for file in REQUESTS for case in file.cases if case.expect.http is not None]
    said = Counter((one.status, one.reason) for one in expected)
    assert min(said[200, "http-allowed"], said[200, "http-denied"], said[403, "http-denied"]) >= 40
