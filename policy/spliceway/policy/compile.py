"""A cluster resolved into the PolicyTable of one node.

The steps: labels of every address (`identity`), numbers (`numbering`), peers of every rule as sets of identities
(`peers`, `terms`), then for each policy and direction the classes of peers that it treats alike, and their rows
(`rows`).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from spliceway.policy.entity import RESERVED_LABELS
from spliceway.policy.identity import address_labels
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.outcome import Outcome
from spliceway.policy.peers import PeerIndex, members, partition
from spliceway.policy.rows import Slot, resolve
from spliceway.policy.rulesets import RuleSets
from spliceway.policy.table import (
    OTHER_PEERS,
    ClassKey,
    EndpointPolicy,
    IPNetwork,
    PolicyTable,
    Row,
    RowKey,
    RuleRef,
)
from spliceway.policy.terms import Term, direction_terms, policy_terms
from spliceway.policy.verdict import Direction


def compile_table(cluster: Cluster, *, node: str, numbering: Numbering, revision: int) -> PolicyTable:
    """All verdicts for the endpoints of this node: its pods, except those in the host's network.

    The table depends on the cluster and the numbering only, not on the order of mappings. Raises NumberingError.
    """
    identities: dict[int, tuple[str, ...]] = dict(RESERVED_LABELS)
    ipcache: dict[IPNetwork, int] = {}
    addresses = address_labels(cluster, node)
    for prefix, labels in sorted(addresses.items(), key=lambda item: (item[1], _network_key(item[0]))):
        number = numbering.identity(labels)
        identities[number] = labels
        ipcache[prefix] = number
    # A pod that has no address yet has a policy already: it must be there before the first packet.
    subjects: dict[str, int] = {}
    for pod in sorted(cluster.pods.values(), key=lambda pod: pod.key):
        if pod.node == node and not pod.host_network:
            labels = cluster.labels_of(pod)
            subjects[pod.key] = numbering.identity(labels)
            identities[subjects[pod.key]] = labels

    builder = _Builder(cluster, identities, numbering)
    policies: dict[int, EndpointPolicy] = {}
    for identity in sorted(set(subjects.values())):
        policies[identity] = builder.add(identity, numbering.policy(identities[identity]))
    return PolicyTable(
        revision=revision,
        identities=identities,
        ipcache=ipcache,
        endpoints={key: policies[identity] for key, identity in subjects.items()},
        classes=builder.classes,
        rows=builder.rows,
        rule_sets=builder.rule_sets.rule_sets,
        rules={**builder.rules, **builder.rule_sets.rules},
    )


class _Builder:
    """Classes, rows and rules of a table that is being built."""

    def __init__(self, cluster: Cluster, identities: dict[int, tuple[str, ...]], numbering: Numbering) -> None:
        ordered = cluster.ordered_policies()
        self._numbering = numbering
        self._index = PeerIndex(identities)
        self._refs: dict[RuleRef, int] = {}
        self.rule_sets = RuleSets(numbering, cluster.secrets)
        self._specs = []
        for policy in ordered:
            terms = policy_terms(policy, audit=cluster.audit)
            self.rule_sets.set_policy(policy.title, terms)
            self._specs += [(self._index.selector(entry.spec.subject), entry) for entry in terms]
        self.classes: dict[ClassKey, int] = {}
        self.rows: dict[RowKey, Row] = {}
        self.rules: dict[int, RuleRef] = {}

    def add(self, identity: int, policy_id: int) -> EndpointPolicy:
        """Add the policy of the endpoints of this identity."""
        bit = self._index.only(identity)
        specs = [entry for selected, entry in self._specs if selected & bit]
        enforced = []
        for direction in Direction:
            terms = direction_terms(specs, direction)
            enforced.append(terms is not None)
            if terms is not None:
                self._add_direction(policy_id, direction, terms)
        return EndpointPolicy(identity, policy_id, enforced[Direction.INGRESS], enforced[Direction.EGRESS])

    def _add_direction(self, policy_id: int, direction: Direction, terms: Iterable[Term]) -> None:
        general = [term for term in terms if term.peers is None]
        by_set: dict[int, list[Term]] = {}
        for term in terms:
            if term.peers is not None and (members_of := self._index.peers(term.peers)):
                by_set.setdefault(members_of, []).append(term)
        sets = sorted(by_set)

        other = resolve(general, {})
        self._add_rows(policy_id, direction, OTHER_PEERS, other)
        # Parts that come out alike are one class; those like everyone else are none.
        alike: dict[frozenset[tuple[Slot, Outcome]], tuple[dict[Slot, Outcome], int, str]] = {}
        for part, inside in partition(self._index.all, sets):
            if not inside:
                continue
            named = [term for number in sorted(inside) for term in by_set[sets[number]]]
            rows = resolve([*general, *named], {})
            if rows == other:
                continue
            key = frozenset(rows.items())
            _, known, name = alike.get(key, (rows, 0, "~"))
            alike[key] = (rows, known | part, min(name, _class_name(named)))
        for rows, part, name in sorted(alike.values(), key=lambda entry: entry[2]):
            class_id = self._numbering.peer_class(policy_id, direction, name)
            self._add_rows(policy_id, direction, class_id, rows)
            numbers = self._index.numbers
            for position in members(part):
                self.classes[ClassKey(policy_id, direction, numbers[position])] = class_id

    def _add_rows(self, policy_id: int, direction: Direction, class_id: int, rows: dict[Slot, Outcome]) -> None:
        for (protocol, port, bits), outcome in rows.items():
            rule = 0 if outcome.ref is None else self._rule(outcome.ref)
            refs = outcome.contributors
            rule_set = self.rule_sets.number(refs, audited=outcome.audited) if refs else 0
            key = RowKey(policy_id, direction, class_id, protocol, port, bits)
            self.rows[key] = Row(outcome.verdict, outcome.reason, rule, rule_set)

    def _rule(self, ref: RuleRef) -> int:
        found = self._refs.get(ref)
        if found is None:
            found = self._refs[ref] = self._numbering.rule(ref)
            self.rules[found] = ref
        return found


def _class_name(terms: Iterable[Term]) -> str:
    """What a class is called in the numbering: a digest of the rules that single its peers out."""
    names = sorted(str(term.ref) if term.ref else term.effect.name for term in terms)
    return sha256("\n".join(names).encode()).hexdigest()[:24]


def _network_key(prefix: IPNetwork) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
