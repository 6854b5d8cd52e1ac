"""Both halves of a connection read together. The expected values are those of docs/policy.md, «Which rule wins»."""

from __future__ import annotations

import pytest

from spliceway.policy.evaluate_tiers import Half, both
from spliceway.policy.lookup import Judgement, lookup_pair
from spliceway.policy.table import PolicyTable, RuleRef
from spliceway.policy.verdict import Direction, Reason, Verdict

REFS = {rule: RuleRef(f"K ns/p{rule}", "spec") for rule in (1, 2)}
TABLE = PolicyTable(1, {}, {}, {}, {}, {}, {}, REFS, pairs={(11, 12): 13})

FREE = Judgement(Verdict.ALLOW, Reason.NO_POLICY)
HOST = Judgement(Verdict.ALLOW, Reason.HOST_ALLOWED)
ALLOW_1, ALLOW_2 = (Judgement(Verdict.ALLOW, Reason.POLICY_ALLOWED, rule) for rule in (1, 2))
DENY_1, DENY_2 = (Judgement(Verdict.DENY, Reason.POLICY_DENIED, rule) for rule in (1, 2))
HTTP_1, HTTP_2 = (Judgement(Verdict.REDIRECT, Reason.REDIRECTED, rule, rule + 10) for rule in (1, 2))
AUDIT_1, AUDIT_2 = (Judgement(Verdict.ALLOW, Reason.POLICY_DENIED, rule) for rule in (1, 2))
HTTP_AUDIT_1, HTTP_AUDIT_2 = (Judgement(Verdict.REDIRECT, Reason.DEFAULT_DENY, 0, rule + 10) for rule in (1, 2))


@pytest.mark.parametrize(
    ("egress", "ingress", "expected"),
    [
        # No endpoint at an end.
        (None, None, FREE),
        (None, DENY_2, DENY_2),
        (HTTP_1, None, HTTP_1),
        # A denial decides, the client's first.
        (DENY_1, DENY_2, DENY_1),
        (ALLOW_1, DENY_2, DENY_2),
        (DENY_1, HTTP_2, DENY_1),
        (HTTP_1, DENY_2, DENY_2),
        (AUDIT_1, DENY_2, DENY_2),
        # Then a redirect.
        (HTTP_1, ALLOW_2, HTTP_1),
        (ALLOW_1, HTTP_2, HTTP_2),
        (FREE, HTTP_2, HTTP_2),
        # Otherwise the half that a policy made, the server's first.
        (ALLOW_1, ALLOW_2, ALLOW_2),
        (ALLOW_1, FREE, ALLOW_1),
        (ALLOW_1, HOST, HOST),
        (FREE, FREE, FREE),
        # Both ends have HTTP rules.
        (HTTP_1, HTTP_2, Judgement(Verdict.REDIRECT, Reason.REDIRECTED, 1, 13)),
        (HTTP_2, HTTP_1, Judgement(Verdict.DENY, Reason.NO_LISTENER, 2, 0)),
        # In audit it passes; reason and rule are those of the half in audit, the client's first.
        (AUDIT_1, ALLOW_2, AUDIT_1),
        (ALLOW_1, AUDIT_2, AUDIT_2),
        (AUDIT_1, AUDIT_2, AUDIT_1),
        (HTTP_AUDIT_1, ALLOW_2, HTTP_AUDIT_1),
        (AUDIT_1, HTTP_2, Judgement(Verdict.REDIRECT, Reason.POLICY_DENIED, 1, 12)),
        (HTTP_1, AUDIT_2, Judgement(Verdict.REDIRECT, Reason.POLICY_DENIED, 2, 11)),
        (HTTP_1, HTTP_AUDIT_2, Judgement(Verdict.REDIRECT, Reason.DEFAULT_DENY, 0, 13)),
    ],
)
def test_both_halves(egress: Judgement | None, ingress: Judgement | None, expected: Judgement) -> None:
    assert lookup_pair(TABLE, egress, ingress) == expected


def test_what_is_audit() -> None:
    assert [found.audit for found in (AUDIT_1, HTTP_AUDIT_1, ALLOW_1, HTTP_1, DENY_1, FREE)] == [True, True] + [
        False
    ] * 4


def test_both_halves_as_the_interpreter_has_it() -> None:
    clients = (None, FREE, ALLOW_1, DENY_1, HTTP_1, AUDIT_1, HTTP_AUDIT_1)
    servers = (None, FREE, HOST, ALLOW_2, DENY_2, HTTP_2, AUDIT_2, HTTP_AUDIT_2)

    def half(direction: Direction, found: Judgement | None) -> Half | None:
        return None if found is None else Half(direction, found.verdict, found.reason, REFS.get(found.rule))

    for egress in clients:
        for ingress in servers:
            found = lookup_pair(TABLE, egress, ingress)
            expected = both(half(Direction.EGRESS, egress), half(Direction.INGRESS, ingress))
            assert (found.verdict, found.reason, REFS.get(found.rule)) == expected
