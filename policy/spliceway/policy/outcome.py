"""What a row says, before it has numbers; and what policies in audit mode make of it.

A policy in audit mode changes nothing; what it would deny is reported.
"""

from __future__ import annotations

import msgspec

from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Reason, Verdict


class Outcome(msgspec.Struct, frozen=True):
    """What holds for a class of peers on some ports.

    `contributors`: the rules whose HTTP rules apply, for REDIRECT. `audited`: these HTTP rules are not enforced, every
    request passes. ALLOW or REDIRECT with a reason that denies: policies in audit mode would deny, for that reason.
    """

    verdict: Verdict
    reason: Reason
    ref: RuleRef | None = None
    contributors: frozenset[RuleRef] = frozenset()
    audited: bool = False


def combine(enforced: Outcome, everything: Outcome) -> Outcome:
    """One outcome of that of the enforced policies and that of all, those in audit mode included.

    Enforced HTTP rules stay as they are where the rest would allow more, or everything: what audit reports is what
    would be denied.
    """
    if enforced.verdict is Verdict.DENY:
        return enforced
    if everything.verdict is Verdict.DENY:
        return msgspec.structs.replace(enforced, reason=everything.reason, ref=everything.ref)
    if enforced.verdict is Verdict.REDIRECT:
        return enforced
    if everything.verdict is Verdict.REDIRECT:
        return msgspec.structs.replace(everything, audited=True)
    return everything
