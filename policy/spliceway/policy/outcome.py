"""What a row says, before it has numbers; and what policies in audit mode make of it.

A policy in audit mode changes nothing; what it would deny is reported.
"""

from __future__ import annotations

import msgspec

from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Reason, Verdict

_NOBODY: frozenset[RuleRef] = frozenset()


class Requests(msgspec.Struct, frozen=True):
    """What AuthorizationPolicies ask of requests: one of `allows` must match (empty: none need), none of `denies` may.

    `would_…`: the same if policies in audit mode were enforced.
    """

    allows: frozenset[RuleRef] = _NOBODY
    denies: frozenset[RuleRef] = _NOBODY
    would_allow: frozenset[RuleRef] = _NOBODY
    would_deny: frozenset[RuleRef] = _NOBODY

    @classmethod
    def of(cls, allows: frozenset[RuleRef], denies: frozenset[RuleRef]) -> Requests:
        """Without regard to audit."""
        return cls(allows, denies, allows, denies) if allows or denies else NOTHING

    def __bool__(self) -> bool:
        return bool(self.allows or self.denies or self.would_allow or self.would_deny)


NOTHING = Requests()


class Outcome(msgspec.Struct, frozen=True):
    """What holds for a class of peers on some ports.

    `contributors`: the rules whose HTTP rules apply, for REDIRECT. `audited`: these HTTP rules are not enforced, every
    request passes. `requests`: what must hold beside them. ALLOW or REDIRECT with a reason that denies: policies in
    audit mode would deny, for that reason.
    """

    verdict: Verdict
    reason: Reason
    ref: RuleRef | None = None
    contributors: frozenset[RuleRef] = frozenset()
    audited: bool = False
    requests: Requests = NOTHING


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


def combine_authorization(enforced: Outcome, everything: Outcome) -> Outcome:
    """The same for what AuthorizationPolicies say. Denials in audit add to those that are enforced, and are told."""
    if enforced.verdict is Verdict.DENY:
        return enforced
    asked = enforced.requests
    if everything.verdict is Verdict.DENY:
        return msgspec.structs.replace(enforced, reason=everything.reason, ref=everything.ref)
    would_allow = asked.allows or everything.requests.allows
    would_deny = asked.denies | everything.requests.denies
    requests = Requests(asked.allows, asked.denies, would_allow, would_deny)
    told = enforced if enforced.verdict is Verdict.REDIRECT else everything
    return msgspec.structs.replace(told, requests=requests or NOTHING)


def together(authorization: Outcome, rest: Outcome) -> Outcome:
    """What AuthorizationPolicies and all others say together: both must let pass.

    A denial decides, AuthorizationPolicies' first. Otherwise what is told is an audit, else what redirects, else what a
    policy said.
    """
    for found in (authorization, rest):
        if found.verdict is Verdict.DENY:
            return found
    redirects = [found for found in (rest, authorization) if found.verdict is Verdict.REDIRECT]
    audits = [found for found in (authorization, rest) if found.reason.denies]
    made = [found for found in (rest, authorization) if found.reason is not Reason.NO_POLICY]
    told = (audits or redirects or made or [rest])[0]
    return msgspec.structs.replace(
        rest,
        verdict=Verdict.REDIRECT if redirects else Verdict.ALLOW,
        reason=told.reason,
        ref=told.ref,
        requests=authorization.requests,
    )
