"""Policies as their specifications: whom each is about, and what it names beyond that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from spliceway.policy.labels import Selector
from spliceway.policy.labelsets import PortName
from spliceway.policy.model import NetworkPolicy, ServicePeer
from spliceway.policy.programs import names_of_specs
from spliceway.policy.selectors import Facts, SelectorIndex
from spliceway.policy.terms import SpecTerms, policy_terms
from spliceway.policy.verdict import Direction


class SpecEntry:
    """A specification that is in force. `keys`: labels of pods that it names; `ports`, `services` likewise.

    `policy`: kind and name of the policy that it is of.
    """

    __slots__ = ("keys", "policy", "ports", "serial", "services", "terms")

    def __init__(self, terms: SpecTerms, serial: int, policy: tuple[str, str]) -> None:
        self.terms = terms
        self.policy = policy
        self.serial = serial
        peers = [rule.peers for rule in terms.spec.rules if rule.peers is not None]
        self.keys = keys_of([terms.spec.subject, *(selector for found in peers for selector in found.endpoints)])
        self.ports: frozenset[PortName] = names_of_specs([terms])
        self.services: frozenset[ServicePeer] = frozenset(service for found in peers for service in found.services)


class Specs:
    """All specifications, found by the endpoints that they are about."""

    def __init__(self, *, audit: bool) -> None:
        self._audit = audit
        self._serial = 0
        self._entries: dict[tuple[str, str], list[SpecEntry]] = {}
        self._subjects: SelectorIndex[SpecEntry] = SelectorIndex()

    def about(self, facts: Facts) -> tuple[SpecEntry, ...]:
        """Specifications about endpoints with these labels, always in the same order."""
        return tuple(sorted(self._subjects.owners(facts), key=lambda entry: entry.serial))

    def put(self, key: tuple[str, str], new: NetworkPolicy | None) -> tuple[list[SpecEntry], list[SpecEntry]]:
        """A policy came, changed or went. Gives the specifications that came and that went; others are as they were."""
        before = self._entries.pop(key, [])
        spare = list(before)
        came: list[SpecEntry] = []
        entries: list[SpecEntry] = []
        for terms in policy_terms(new, audit=self._audit) if new is not None else ():
            same = next((entry for entry in spare if entry.terms == terms), None)
            if same is None:
                self._serial += 1
                same = SpecEntry(terms, self._serial, key)
                self._subjects.add(terms.spec.subject, same)
                came.append(same)
            else:
                spare.remove(same)
            entries.append(same)
        for entry in spare:
            self._subjects.remove(entry.terms.spec.subject, entry)
        if entries:
            self._entries[key] = entries
        return came, spare

    def terms(self, key: tuple[str, str]) -> list[SpecTerms]:
        """Terms of a policy's specifications."""
        return [entry.terms for entry in self._entries.get(key, ())]

    def isolating(self, entries: Collection[SpecEntry], direction: Direction) -> tuple[tuple[str, str], ...]:
        """Keys of the policies of which one of these specifications denies by default in a direction, in order."""
        wanted = {id(entry) for entry in entries if entry.terms.spec.default_deny[direction]}
        return tuple(sorted(key for key, own in list(self._entries.items()) if any(id(one) in wanted for one in own)))

    def __iter__(self) -> Iterator[SpecEntry]:
        for entries in self._entries.values():
            yield from entries


def keys_of(selectors: Iterable[Selector]) -> frozenset[str]:
    """Keys of pods' labels that selectors name."""
    return frozenset(
        requirement.key
        for selector in selectors
        for requirement in selector.requirements
        if requirement.source != "reserved"
    )
