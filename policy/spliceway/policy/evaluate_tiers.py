"""Which rule wins: tiers, deny before allow, default deny, audit, and both ends together. Part of the interpreter.

Source: docs/policy.md, «Which rule wins».
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from spliceway.policy.model import Action, NetworkPolicy, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict


class Half(msgspec.Struct, frozen=True):
    """What one endpoint's policies say in one direction.

    `contributors`: entries of toPorts whose HTTP rules apply. `audit`: those whose HTTP rules would apply if policies
    in audit mode were enforced; only with REDIRECT and without contributors. A verdict that lets pass with a reason
    that denies is audit too.

    `allows`, `denies`: what AuthorizationPolicies ask of requests beside that: one of `allows` must match, if there is
    any, and none of `denies`. `would_…`: the same with policies in audit mode enforced.
    """

    direction: Direction
    verdict: Verdict
    reason: Reason
    rule: RuleRef | None = None
    contributors: tuple[RuleRef, ...] = ()
    audit: tuple[RuleRef, ...] = ()
    allows: tuple[RuleRef, ...] = ()
    denies: tuple[RuleRef, ...] = ()
    would_allow: tuple[RuleRef, ...] = ()
    would_deny: tuple[RuleRef, ...] = ()


#: Everything that AuthorizationPolicies judge.
_TCP = Rule("", Direction.INGRESS, Action.DENY, None, (PortRule("", (PortRange(Protocol.TCP, 0, 65535),)),))
#: A specification that applies to the endpoint, and the policy it is of.
Applied = tuple[NetworkPolicy, Spec]
#: Whether a rule, by this entry of its toPorts (None: it has none), is about the connection.
Matches = Callable[[Rule, PortRule | None], bool]
_Said = tuple[NetworkPolicy, Rule, PortRule | None]


def applied(policies: Iterable[NetworkPolicy], labels: tuple[str, ...], direction: Direction) -> list[Applied]:
    """Specifications that say anything about this direction of an endpoint with these labels."""
    return [
        (policy, spec)
        for policy in policies
        for spec in policy.specs
        if spec.applies[direction] and spec.subject.matches(labels)
    ]


def judge(specs: Sequence[Applied], direction: Direction, matches: Matches, *, host: bool, audit: bool) -> Half:
    """Verdict of one half. `specs`: those that apply, policies in the order in which rules are named first.

    `host`: the peer is the endpoint's own node. `audit`: every policy is in audit mode.
    """
    istio = [item for item in specs if item[1].tier is Tier.AUTHORIZATION]
    others = [item for item in specs if item[1].tier is not Tier.AUTHORIZATION] if istio else specs
    rest = _judge_others(others, direction, matches, host=host, audit=audit)
    if not istio:
        return rest
    enforced = [] if audit else [(policy, spec) for policy, spec in istio if not policy.audit]
    asked = _authorization(enforced, direction, matches, host=host)
    would = _authorization(istio, direction, matches, host=host)
    if asked.verdict is Verdict.DENY:
        return asked
    if rest.verdict is Verdict.DENY:
        return rest
    half = asked if would.verdict is Verdict.DENY else would
    half = msgspec.structs.replace(
        half,
        allows=asked.allows,
        denies=asked.denies,
        would_allow=asked.allows or half.allows,
        would_deny=tuple(dict.fromkeys((*asked.denies, *half.denies))),
    )
    # Of the rules that say so the enforced come first.
    if asked.verdict is Verdict.REDIRECT:
        half = msgspec.structs.replace(half, verdict=asked.verdict, reason=asked.reason, rule=asked.rule)
    if would.verdict is Verdict.DENY:
        half = msgspec.structs.replace(half, reason=would.reason, rule=would.rule)
    return _both_say(half, rest)


def _both_say(istio: Half, rest: Half) -> Half:
    """What passes by both: redirected if either asks for HTTP; told is an audit, else that, else what a policy said."""
    verdict = Verdict.REDIRECT if Verdict.REDIRECT in (istio.verdict, rest.verdict) else Verdict.ALLOW
    told = next(
        (half for half in (istio, rest) if half.reason.denies),
        next(
            (half for half in (rest, istio) if half.verdict is Verdict.REDIRECT),
            rest if rest.reason is not Reason.NO_POLICY else istio,
        ),
    )
    return msgspec.structs.replace(
        istio,
        verdict=verdict,
        reason=told.reason,
        rule=told.rule,
        contributors=rest.contributors,
        audit=rest.audit,
    )


def _judge_others(specs: Sequence[Applied], direction: Direction, matches: Matches, *, host: bool, audit: bool) -> Half:
    """All but AuthorizationPolicies."""
    every = _ask(specs, direction, matches, host=host)
    enforced = [] if audit else [(policy, spec) for policy, spec in specs if not policy.audit]
    if len(enforced) == len(specs):
        return every
    half = _ask(enforced, direction, matches, host=host)
    match half.verdict, every.verdict:
        case Verdict.DENY, _:
            return half
        case _, Verdict.DENY:
            return msgspec.structs.replace(half, reason=every.reason, rule=every.rule)
        case Verdict.REDIRECT, _:
            return half
        case _, Verdict.REDIRECT:
            return msgspec.structs.replace(every, contributors=(), audit=every.contributors)
        case _:
            return every


def both(egress: Half | None, ingress: Half | None) -> tuple[Verdict, Reason, RuleRef | None]:
    """Verdict, reason and rule of a connection. None: no endpoint stands at that end.

    A denial decides, the client's first. Otherwise it passes, redirected if either half is; the reason is that of a
    half in audit, else of a redirect, else of the half that a policy made, the server's first.
    """
    halves = [half for half in (egress, ingress) if half is not None]
    for half in halves:
        if half.verdict is Verdict.DENY:
            return half.verdict, half.reason, half.rule
    redirected = any(half.verdict is Verdict.REDIRECT for half in halves)
    verdict = Verdict.REDIRECT if redirected else Verdict.ALLOW
    for half in halves:
        if half.reason.denies:
            return verdict, half.reason, half.rule
    for half in halves:
        if half.verdict is Verdict.REDIRECT:
            return verdict, half.reason, half.rule
    for half in reversed(halves):
        if half.reason is not Reason.NO_POLICY:
            return verdict, half.reason, half.rule
    return Verdict.ALLOW, Reason.NO_POLICY, None


def _ask(specs: Sequence[Applied], direction: Direction, matches: Matches, *, host: bool) -> Half:
    if not specs:
        return Half(direction, Verdict.ALLOW, Reason.NO_POLICY)
    return (
        _first_that_matches(specs, Tier.ADMIN, direction, matches)
        or _normal([item for item in specs if item[1].tier is Tier.NORMAL], direction, matches, host=host)
        or _first_that_matches(specs, Tier.BASELINE, direction, matches)
        or Half(direction, Verdict.ALLOW, Reason.NO_POLICY)
    )


def _authorization(specs: Sequence[Applied], direction: Direction, matches: Matches, *, host: bool) -> Half:
    """What AuthorizationPolicies say, of TCP alone: a denial, or whoever one of those that allow means.

    Denials by HTTP are not the own node's matter, as no HTTP rules are.
    """
    matching = [said for said in _said(specs, direction) if matches(said[1], said[2])]
    plain = [said for said in matching if said[2] is None or said[2].http is None]
    asking = [said for said in matching if said[2] is not None and said[2].http is not None]
    for policy, rule, entry in plain:
        if rule.deny:
            return Half(direction, Verdict.DENY, Reason.POLICY_DENIED, _name(policy, rule, entry))
    if specs and host and direction is Direction.INGRESS:
        return Half(direction, Verdict.ALLOW, Reason.HOST_ALLOWED)
    denies = tuple(_name(*said) for said in asking if said[1].deny)
    allows = tuple(_name(*said) for said in asking if not said[1].deny)
    if plain:
        verdict, reason = (Verdict.REDIRECT, Reason.REDIRECTED) if denies else (Verdict.ALLOW, Reason.POLICY_ALLOWED)
        return Half(direction, verdict, reason, _name(*plain[0]), denies=denies)
    if allows:
        return Half(direction, Verdict.REDIRECT, Reason.REDIRECTED, allows[0], allows=allows, denies=denies)
    if any(spec.default_deny[direction] for _, spec in specs) and matches(_TCP, _TCP.to_ports[0]):
        return Half(direction, Verdict.DENY, Reason.DEFAULT_DENY)
    if denies:
        return Half(direction, Verdict.REDIRECT, Reason.REDIRECTED, denies[0], denies=denies)
    return Half(direction, Verdict.ALLOW, Reason.NO_POLICY)


def _first_that_matches(specs: Sequence[Applied], tier: Tier, direction: Direction, matches: Matches) -> Half | None:
    """An ordered tier: the first rule that matches decides. None: no rule does, or it passes on to the next tier."""
    # The sort is stable: among equals it is by kind and name.
    ordered = sorted((item for item in specs if item[1].tier is tier), key=lambda item: item[1].priority)
    for policy, rule, entry in _said(ordered, direction):
        if not matches(rule, entry):
            continue
        match rule.action:
            case Action.ALLOW:
                return Half(direction, Verdict.ALLOW, Reason.POLICY_ALLOWED, _name(policy, rule, entry))
            case Action.DENY:
                return Half(direction, Verdict.DENY, Reason.POLICY_DENIED, _name(policy, rule, entry))
            case Action.PASS:
                return None
    return None


def _normal(specs: Sequence[Applied], direction: Direction, matches: Matches, *, host: bool) -> Half | None:
    """Cilium's policies and NetworkPolicy, together and without order. None: they say nothing of the connection."""
    matching = [said for said in _said(specs, direction) if matches(said[1], said[2])]
    for policy, rule, entry in matching:
        if rule.deny:
            return Half(direction, Verdict.DENY, Reason.POLICY_DENIED, _name(policy, rule, entry))
    if host and direction is Direction.INGRESS:
        return Half(direction, Verdict.ALLOW, Reason.HOST_ALLOWED)
    for policy, rule, entry in matching:
        if entry is None or entry.http is None:
            return Half(direction, Verdict.ALLOW, Reason.POLICY_ALLOWED, _name(policy, rule, entry))
    if matching:
        refs = tuple(_name(policy, rule, entry) for policy, rule, entry in matching)
        return Half(direction, Verdict.REDIRECT, Reason.REDIRECTED, refs[0], refs)
    if any(spec.default_deny[direction] for _, spec in specs):
        return Half(direction, Verdict.DENY, Reason.DEFAULT_DENY)
    return None


def _said(specs: Sequence[Applied], direction: Direction) -> Iterator[_Said]:
    """Each thing the rules say: an entry of toPorts, or None for a rule about every port."""
    for policy, spec in specs:
        for rule in spec.rules:
            if rule.direction is not direction or rule.void:
                continue
            if not rule.to_ports:
                yield policy, rule, None
            for entry in rule.to_ports:
                yield policy, rule, entry


def _name(policy: NetworkPolicy, rule: Rule, entry: PortRule | None) -> RuleRef:
    return policy.ref(rule.path if entry is None else entry.path)
