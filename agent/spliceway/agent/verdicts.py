"""What a verdict is called where people see it. Pure.

A verdict that passes with a reason that denies is an **audit**: a policy in audit mode would deny (`policy.table.Row`).
"""

from __future__ import annotations

from typing import Any

from spliceway.policy.verdict import Reason, Verdict

AUDIT = "audit"

_DENYING = frozenset(reason.label for reason in Reason if reason.denies)
_PASSING = frozenset((Verdict.ALLOW.label, Verdict.REDIRECT.label))


def is_audit(verdict: Verdict, reason: Reason) -> bool:
    """Whether this passes and would be denied if audit mode were off."""
    return verdict in (Verdict.ALLOW, Verdict.REDIRECT) and reason.denies


def verdict_label(verdict: Verdict, reason: Reason) -> str:
    """`allow`, `redirect`, `deny` or `audit`."""
    return AUDIT if is_audit(verdict, reason) else verdict.label


def with_audit(entry: dict[str, Any]) -> dict[str, Any]:
    """A plain entry that has `verdict` and `reason` as labels, with the verdict that people see."""
    if entry.get("verdict") in _PASSING and entry.get("reason") in _DENYING:
        return {**entry, "verdict": AUDIT}
    return entry
