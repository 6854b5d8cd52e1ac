"""Rows of one class of peers against a brute-force oracle, and against the interpreter, for random policies.

The oracle reads rules port by port, straight from what docs/policy.md says («Which rule wins», «Audit»); it knows
nothing of terms, runs and prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy.entity import Entity
from spliceway.policy.evaluate_tiers import judge
from spliceway.policy.labels import Selector
from spliceway.policy.model import Action, HttpMatch, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.ports import LAST_PORT
from spliceway.policy.terms import HOST_PEERS
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.rows import BACK, FRONT, ICMP, IN, NAMED, NOBODY, SCTP, TCP, UDP, Answer, answer, compiled, rule_name

ALLOW, DENY, PASS = Action.ALLOW, Action.DENY, Action.PASS
ADMIN, BASELINE = Tier.ADMIN, Tier.BASELINE
FREE = Answer(Verdict.ALLOW, Reason.NO_POLICY)


def oracle(
    policies: Sequence[NetworkPolicy],
    direction: Direction,
    peer: frozenset[Peers],
    protocol: int,
    port: int,
    named: Mapping[tuple[str, Protocol], Sequence[int]] = NAMED,
) -> Answer:
    """The verdict by the words of the documentation."""
    enforced = _half([policy for policy in policies if not policy.audit], direction, peer, protocol, port, named)
    whole = _half(policies, direction, peer, protocol, port, named)
    match enforced.verdict, whole.verdict:
        case Verdict.DENY, _:
            return enforced
        case Verdict.ALLOW, Verdict.ALLOW:
            return whole
        case Verdict.ALLOW, Verdict.DENY:
            return Answer(Verdict.ALLOW, whole.reason, whole.rule)
        case Verdict.ALLOW, Verdict.REDIRECT:
            return Answer(Verdict.REDIRECT, Reason.REDIRECTED, whole.rule, whole.http, audited=True)
        case Verdict.REDIRECT, Verdict.DENY:
            return Answer(Verdict.REDIRECT, whole.reason, whole.rule, enforced.http)
        case _:
            return enforced


def _half(
    policies: Sequence[NetworkPolicy],
    direction: Direction,
    peer: frozenset[Peers],
    protocol: int,
    port: int,
    named: Mapping[tuple[str, Protocol], Sequence[int]],
) -> Answer:
    ordered = sorted(policies, key=lambda policy: (policy.kind, policy.namespace, policy.name))
    specs = [(policy, spec) for policy in ordered for spec in policy.specs if spec.applies[direction]]
    if not specs:
        return Answer(Verdict.ALLOW, Reason.NO_POLICY)
    hits: dict[Tier, list[tuple[int, Action, str, bool]]] = {tier: [] for tier in Tier}
    for policy, spec in specs:
        for rule in spec.rules:
            if rule.direction is direction and not rule.void and (rule.peers is None or rule.peers in peer):
                if not rule.to_ports:
                    hits[spec.tier].append((spec.priority, rule.action, f"{policy.name}:{rule.path}", False))
                for entry in rule.to_ports:
                    if any(_port_fits(ports, protocol, port, named) for ports in entry.ports):
                        name = f"{policy.name}:{entry.path}"
                        hits[spec.tier].append((spec.priority, rule.action, name, entry.http is not None))

    def first(tier: Tier) -> Answer | None:
        for _, action, name, _ in sorted(hits[tier], key=lambda hit: hit[0]):  # stable: then by name and place
            if action is Action.ALLOW:
                return Answer(Verdict.ALLOW, Reason.POLICY_ALLOWED, name)
            return None if action is Action.PASS else Answer(Verdict.DENY, Reason.POLICY_DENIED, name)
        return None

    def normal() -> Answer | None:
        for _, action, name, _ in hits[Tier.NORMAL]:
            if action is Action.DENY:
                return Answer(Verdict.DENY, Reason.POLICY_DENIED, name)
        if direction is IN and HOST_PEERS in peer:
            return Answer(Verdict.ALLOW, Reason.HOST_ALLOWED)
        for _, _, name, http in hits[Tier.NORMAL]:
            if not http:
                return Answer(Verdict.ALLOW, Reason.POLICY_ALLOWED, name)
        names = [name for _, _, name, _ in hits[Tier.NORMAL]]
        if names:
            return Answer(Verdict.REDIRECT, Reason.REDIRECTED, names[0], frozenset(names))
        if any(spec.default_deny[direction] for _, spec in specs):
            return Answer(Verdict.DENY, Reason.DEFAULT_DENY)
        return None

    return first(Tier.ADMIN) or normal() or first(Tier.BASELINE) or Answer(Verdict.ALLOW, Reason.NO_POLICY)


def _port_fits(ports: PortRange, protocol: int, port: int, named: Mapping[tuple[str, Protocol], Sequence[int]]) -> bool:
    if protocol not in ((TCP, UDP, SCTP) if ports.protocol is Protocol.ANY else (ports.protocol,)):
        return False
    if ports.name:
        return port in named.get((ports.name, Protocol(protocol)), ())
    return ports.first <= port <= ports.last


EDGES = (0, 1, 53, 79, 80, 81, 84, 8080, 8081, 32768, 65534, 65535)
PROTOCOLS = (TCP, UDP, SCTP, ICMP, Protocol.ICMPV6, 47)


def _range(protocol: Protocol, one: int, other: int) -> PortRange:
    return PortRange(protocol, min(one, other), max(one, other))


ports = st.one_of(
    st.builds(_range, st.sampled_from((TCP, TCP, UDP, Protocol.ANY)), st.sampled_from(EDGES), st.sampled_from(EDGES)),
    st.builds(
        lambda protocol, port: PortRange(protocol, port, port),
        st.sampled_from((TCP, UDP, Protocol.ANY)),
        st.sampled_from(EDGES),
    ),
    st.builds(lambda protocol: PortRange(protocol, 0, LAST_PORT), st.sampled_from((TCP, UDP, Protocol.ANY))),
    st.builds(
        lambda protocol, kind: PortRange(protocol, kind << 8, kind << 8 | 255),
        st.sampled_from((ICMP, Protocol.ICMPV6)),
        st.sampled_from((0, 8, 128)),
    ),
    st.builds(
        lambda protocol, name: PortRange(protocol, 0, 0, name),
        st.sampled_from((TCP, UDP, Protocol.ANY)),
        st.sampled_from(("web", "dns", "back", "gone")),
    ),
)
peers = st.sampled_from((None, None, FRONT, FRONT, BACK, NOBODY, HOST_PEERS, Peers(entities=(Entity.WORLD,))))
entries = st.lists(st.tuples(st.lists(ports, max_size=3), st.booleans()), max_size=2)


@st.composite
def policies(draw: st.DrawFn, index: int) -> NetworkPolicy:
    tier = draw(st.sampled_from((Tier.NORMAL, Tier.NORMAL, ADMIN, BASELINE)))
    actions = (ALLOW, ALLOW, DENY) if tier is Tier.NORMAL else (ALLOW, DENY, PASS)
    specs = []
    for number in range(draw(st.integers(1, 2))):
        rules = []
        for place, (direction, action, who, written) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(Direction), st.sampled_from(actions), peers, entries), max_size=4))
        ):
            path = f"specs[{number}].rule[{place}]"
            to_ports = []
            for position, (named, http) in enumerate(written):
                where = f"{path}.toPorts[{position}]"
                matches = (HttpMatch(f"{where}.http[0]"),) if http and action is ALLOW and tier is Tier.NORMAL else None
                to_ports.append(PortRule(where, tuple(named), matches))
            void = draw(st.sampled_from((False,) * 6 + (True,)))
            rules.append(Rule(path, direction, action, who, tuple(to_ports), void))
        deny = draw(st.tuples(st.booleans(), st.booleans())) if tier is Tier.NORMAL else (False, False)
        applies = draw(st.sampled_from(((True, True), (True, True), (True, False), (False, True))))
        deny = (deny[0] and applies[0], deny[1] and applies[1])
        held = tuple(found for found in rules if applies[found.direction])
        priority = 0 if tier is Tier.NORMAL else draw(st.integers(0, 2))
        specs.append(Spec(f"specs[{number}]", Selector(), held, deny, applies, tier=tier, priority=priority))
    kind, audit = draw(st.sampled_from(("A", "B"))), draw(st.sampled_from((False, False, True)))
    return NetworkPolicy(kind, draw(st.sampled_from(("", "one"))), f"p{index}", tuple(specs), audit=audit)


clusters = st.integers(1, 4).flatmap(lambda size: st.tuples(*(policies(index) for index in range(size))))
memberships = st.frozensets(st.sampled_from((FRONT, BACK, HOST_PEERS)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters, memberships, st.sampled_from(Direction))
def test_rows_equal_the_oracle(found: tuple[NetworkPolicy, ...], peer: frozenset[Peers], direction: Direction) -> None:
    rows = compiled(found, peer=peer, direction=direction)
    interesting = {min(max(port + step, 0), LAST_PORT) for port in (*EDGES, 2048, 32768) for step in (-1, 0, 1)}
    interesting |= {kind << 8 | code for kind in (0, 1, 7, 8, 9, 128, 129) for code in (0, 255)}
    for protocol in PROTOCOLS:
        for port in sorted(interesting) if protocol != 47 else (0,):
            got = Answer(Verdict.ALLOW, Reason.NO_POLICY) if rows is None else answer(rows, protocol, port)
            assert got == oracle(found, direction, peer, protocol, port)
    for (protocol, prefix, bits), outcome in (rows or {}).items():
        assert prefix & (LAST_PORT >> bits) == 0
        assert (protocol, prefix, bits) == (Protocol.ANY, 0, 0) or protocol is not Protocol.ANY
        assert bool(outcome.contributors) == (outcome.verdict is Verdict.REDIRECT)


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(clusters)
def test_every_port_equals_the_oracle(found: tuple[NetworkPolicy, ...]) -> None:
    rows = compiled(found)
    by_port: list[Answer | None] = [None] * (LAST_PORT + 1)
    for slot in rows or {}:
        if slot[0] is TCP:
            for port in range(slot[1], slot[1] + (1 << (16 - slot[2]))):
                assert by_port[port] is None
                by_port[port] = answer(rows or {}, TCP, slot[1])
    base = FREE if rows is None else answer(rows, 47, 0)
    for port, got in enumerate(by_port):
        assert (got or base) == oracle(found, IN, frozenset({FRONT}), TCP, port)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters, memberships, st.sampled_from(Direction), st.sampled_from((False, False, True)))
def test_rows_equal_the_interpreter(
    found: tuple[NetworkPolicy, ...], peer: frozenset[Peers], direction: Direction, audit: bool
) -> None:
    rows = compiled(found, peer=peer, direction=direction, audit=audit)
    ordered = sorted(found, key=lambda policy: (policy.kind, policy.namespace, policy.name))
    specs = [(policy, spec) for policy in ordered for spec in policy.specs if spec.applies[direction]]
    host = HOST_PEERS in peer
    for protocol in PROTOCOLS:
        for port in (0, 53, 80, 84, 255, 2050, 8080, 32768, 65535):

            def matches(rule: Rule, entry: PortRule | None, protocol: int = protocol, port: int = port) -> bool:
                if rule.peers is not None and rule.peers not in peer:
                    return False
                return entry is None or any(_port_fits(ports, protocol, port, NAMED) for ports in entry.ports)

            half = judge(specs, direction, matches, host=host, audit=audit)
            expected = Answer(
                half.verdict,
                half.reason,
                rule_name(half.rule),
                frozenset(map(rule_name, half.contributors or half.audit)),
                bool(half.audit),
            )
            assert (FREE if rows is None else answer(rows, protocol, port)) == expected
