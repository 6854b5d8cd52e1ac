"""What policies say about one endpoint, flattened into terms of equal shape.

A term is one thing that one rule says: for these peers, on these ports, this. Terms of all policies that select the
endpoint stand side by side; `rows` says which of those that hold decides. A term depends on its own policy only: adding
a policy changes no term of another one, and which identities its peers are is not its business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import msgspec

from spliceway.policy.entity import Entity
from spliceway.policy.model import Action, HttpMatch, NetworkPolicy, Peers, PortRange, Spec, Tier
from spliceway.policy.ports import LAST_PORT
from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Direction, Protocol

#: Which of two terms comes first: (priority, kind, namespace and name of the policy, place in it).
Order = tuple[int, str, str, str, int]

#: Order of what no rule says.
NO_ORDER: Order = (0, "", "", "", 0)

#: The endpoint's own node, as peers.
HOST_PEERS = Peers(entities=(Entity.HOST,))


#: Tiers in which it is the effect that counts, and not the order of policies.
_BY_EFFECT = frozenset({Tier.NORMAL, Tier.AUTHORIZATION})
#: What Tier.AUTHORIZATION judges.
TCP_PORTS = (PortRange(Protocol.TCP, 0, LAST_PORT),)


class Effect(IntEnum):
    """What a term does; in NORMAL and AUTHORIZATION the smallest wins. A plain allow beats HTTP rules."""

    DENY = 0
    HOST = 1  # the node itself may always reach its pods, unless denied
    ALLOW = 2
    HTTP = 3
    DEFAULT_DENY = 4  # nothing in this tier allows, and a policy asks for default deny
    PASS = 5  # this tier has no say
    DENY_HTTP = 6  # some requests are denied, whatever else is allowed; it never decides on a connection


class Term(msgspec.Struct, frozen=True):
    """One thing a rule says.

    `peers` None: every peer. `ports` empty: every protocol and port. `ref` is None for what no rule says. `audit`: it
    is not enforced, but what it would do is reported.
    """

    tier: Tier
    effect: Effect
    order: Order = NO_ORDER
    peers: Peers | None = None
    ports: tuple[PortRange, ...] = ()
    ref: RuleRef | None = None
    http: tuple[HttpMatch, ...] = ()
    audit: bool = False

    @property
    def precedence(self) -> tuple[int, Order]:
        """Of the terms of one tier that hold, the least of these decides.

        In ADMIN and BASELINE that is the first in order, whatever it does (ClusterNetworkPolicy, «priority»).
        """
        return (self.effect if self.tier in _BY_EFFECT else 0), self.order


class SpecTerms(msgspec.Struct, frozen=True):
    """A specification and its terms by Direction. `audit`: its policy is not enforced."""

    spec: Spec
    audit: bool
    terms: tuple[tuple[Term, ...], tuple[Term, ...]]


def policy_terms(policy: NetworkPolicy, *, audit: bool = False) -> list[SpecTerms]:
    """Terms of every specification of a policy. `audit`: every policy is in audit mode (`Cluster.audit`)."""
    audit = audit or policy.audit
    found: list[SpecTerms] = []
    place = 0
    for spec in policy.specs:
        by_direction: tuple[list[Term], list[Term]] = ([], [])
        for direction, term in _terms(policy, spec, place, audit=audit):
            by_direction[direction].append(term)
            place += 1
        found.append(SpecTerms(spec, audit, (tuple(by_direction[0]), tuple(by_direction[1]))))
    return found


_EFFECTS = {Action.ALLOW: Effect.ALLOW, Action.DENY: Effect.DENY, Action.PASS: Effect.PASS}


def _terms(policy: NetworkPolicy, spec: Spec, place: int, *, audit: bool) -> Iterator[tuple[Direction, Term]]:
    for rule in spec.rules:
        if rule.void:
            continue
        # Without toPorts a rule is about everything; an entry without ports is about nothing.
        entries = [(entry.path, entry.ports, entry.http) for entry in rule.to_ports if entry.ports]
        if not rule.to_ports:
            entries = [(rule.path, (), None)]
        for path, ports, http in entries:
            effect = _EFFECTS[rule.action]
            if http is not None and rule.action is Action.ALLOW:
                effect = Effect.HTTP
            elif http is not None and rule.deny and spec.tier is Tier.AUTHORIZATION:
                effect = Effect.DENY_HTTP
            order = (
                0 if spec.tier in _BY_EFFECT else spec.priority,
                policy.kind,
                policy.namespace,
                policy.name,
                place,
            )
            ref = policy.ref(path)
            yield rule.direction, Term(spec.tier, effect, order, rule.peers, ports, ref, http or (), audit)
            place += 1


def direction_terms(specs: Iterable[SpecTerms], direction: Direction) -> tuple[Term, ...] | None:
    """Every term for an endpoint that these specifications select, or None when none of them is about the direction.

    Added to what rules say: the node's own way in, and default deny, both of AUTHORIZATION apart from the others. They
    are in audit as long as only specifications in audit bring them.
    """
    applying = [entry for entry in specs if entry.spec.applies[direction]]
    if not applying:
        return None
    terms = [term for entry in applying for term in entry.terms[direction]]
    authorizing = [entry for entry in applying if entry.spec.tier is Tier.AUTHORIZATION]
    others = [entry for entry in applying if entry.spec.tier is not Tier.AUTHORIZATION]
    for tier, found in ((Tier.NORMAL, others), (Tier.AUTHORIZATION, authorizing)):
        if found and direction is Direction.INGRESS:
            audit = all(entry.audit for entry in found)
            terms.append(Term(tier, Effect.HOST, peers=HOST_PEERS, audit=audit))
        asking = [entry.audit for entry in found if entry.spec.tier is tier and entry.spec.default_deny[direction]]
        if asking:
            ports = TCP_PORTS if tier is Tier.AUTHORIZATION else ()
            terms.append(Term(tier, Effect.DEFAULT_DENY, ports=ports, audit=all(asking)))
    return tuple(terms)
