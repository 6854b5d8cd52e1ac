"""Classes and rows of all policies in force, kept up as identities and specifications change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from spliceway.policy.labelsets import PortName
from spliceway.policy.numbering import Numbering
from spliceway.policy.peersets import PeerSets
from spliceway.policy.programs import Content, Half, Program, ProgramKey, names_of_specs
from spliceway.policy.rulesets import RuleSets
from spliceway.policy.sharing import SharedMap
from spliceway.policy.specs import SpecEntry
from spliceway.policy.table import OTHER_PEERS, ClassKey, Row, RowKey, RuleRef, RuleSet
from spliceway.policy.terms import direction_terms
from spliceway.policy.verdict import Direction

#: What a number was given for, and the number: of a class with policy id and direction before it.
Retired = tuple[str, int] | tuple[str, int, Direction, int]


class Halves:
    """`classes`, `rows`, `rules`, `rule_sets` and `pairs` are as in PolicyTable. `retired`: numbers out of use."""

    def __init__(self, numbering: Numbering, peer_sets: PeerSets, rule_sets: RuleSets) -> None:
        self._numbering = numbering
        self._peer_sets = peer_sets
        self._rule_sets = rule_sets
        self._programs: dict[ProgramKey, Program] = {}
        self._by_name: dict[PortName, dict[Program, None]] = {}
        self._by_set: dict[int, dict[Program, None]] = {}
        self._rule_uses: Counter[int] = Counter()
        self._rule_set_uses: Counter[int] = Counter()
        self._rules_of: dict[int, list[int]] = {}
        self._unused: dict[int, None] = {}
        self.classes: SharedMap[ClassKey, int] = SharedMap()
        self.rows: SharedMap[RowKey, Row] = SharedMap()
        self.rules: SharedMap[int, RuleRef] = SharedMap()
        self.rule_sets: SharedMap[int, RuleSet] = SharedMap()
        self.pairs: SharedMap[tuple[int, int], int] = SharedMap()
        self._instead: dict[tuple[int, int], int] = {}
        self.retired: dict[Retired, None] = {}
        #: Rule sets that may read differently.
        self.reread: set[int] = set()
        #: Whether rows with HTTP rules came or went, or have other members.
        self.steering_moved = False

    def program(
        self, specs: Iterable[SpecEntry], direction: Direction, own: dict[PortName, tuple[int, ...]]
    ) -> Program | None:
        """The program of these specifications, which must be in order; None when they say nothing in this direction."""
        applying = [entry for entry in specs if entry.terms.spec.applies[direction]]
        named = names_of_specs(entry.terms for entry in applying) if own and direction is Direction.INGRESS else ()
        key = (
            direction,
            tuple(entry.serial for entry in applying),
            tuple((name, own[name]) for name in sorted(named) if name in own),
        )
        found = self._programs.get(key)
        if found is None:
            terms = direction_terms((entry.terms for entry in applying), direction)
            if terms is None:
                return None
            found = Program(key, terms, self._peer_sets)
        return found

    def assign(self, half: Half, program: Program | None) -> None:
        """Let this be the program of a half; None: nothing is said in this direction any more."""
        old, old_ids = half.program, half.ids
        if old is program:
            return
        old_rows = {key for class_id, content in _contents(half) for key in _row_keys(half, class_id, content)}
        half.program, half.ids = program, {}
        if program is not None:
            if not program.halves:
                self._start(program)
            program.halves[half] = None
            self._put_rows(half, OTHER_PEERS, program.other)
            for identity, content in program.assigned.items():
                self.classes.set(ClassKey(half.policy_id, half.direction, identity), self._class_id(half, content))
        new_rows = {key for class_id, content in _contents(half) for key in _row_keys(half, class_id, content)}
        for key in old_rows - new_rows:
            self.rows.drop(key)
        if old is None:
            return
        for identity in old.assigned:
            if program is None or identity not in program.assigned:
                self.classes.drop(ClassKey(half.policy_id, half.direction, identity))
        live = set(half.ids.values())
        for class_id in old_ids.values():
            if class_id not in live:
                self.retired["class", half.policy_id, half.direction, class_id] = None
        del old.halves[half]
        if not old.halves:
            self._stop(old)

    def moved(self, found: Iterable[tuple[int, int]]) -> dict[Program, set[int]]:
        """Identities to look at again, by program, of pairs of a peer set's serial number and an identity."""
        stale: dict[Program, set[int]] = {}
        for serial, identity in found:
            for program in self._by_set.get(serial, ()):
                stale.setdefault(program, set()).add(identity)
        return stale

    def naming(self, name: PortName) -> Iterable[Program]:
        """Programs in which this named port matters."""
        return self._by_name.get(name, ())

    def update(self, program: Program, identities: Iterable[int]) -> None:
        """Class these identities again: they are new or gone, or belong to other peers than before."""
        direction = program.key[0]
        left: dict[Content, None] = {}
        for identity in sorted(identities):
            member = self._peer_sets.member(identity)
            new = program.content(member) if member is not None else None
            old = program.assigned.get(identity)
            if new is old:
                continue
            if new is None:
                del program.assigned[identity]
                for half in program.halves:
                    self.classes.drop(ClassKey(half.policy_id, direction, identity))
            else:
                if not new.members and new not in left:
                    self._hold(program, new)
                new.members += 1
                program.assigned[identity] = new
                for half in program.halves:
                    self.classes.set(ClassKey(half.policy_id, direction, identity), self._class_id(half, new))
            if old is not None:
                old.members -= 1
                left[old] = None
            if program.steering and any(found is not None and found.redirects for found in (old, new)):
                self.steering_moved = True
        for content in left:
            if not content.members:
                for half in program.halves:
                    class_id = half.ids.pop(content)
                    for key in _row_keys(half, class_id, content):
                        self.rows.drop(key)
                    self.retired["class", half.policy_id, direction, class_id] = None
                self._release(program, content)
                program.forget(content)

    def tidy(self, pairs: Iterable[tuple[int, int]] | None) -> None:
        """Make the rule sets what rows steer to and what these pairs ask together (None: the pairs as they were)."""
        known = self._rule_sets.pairs
        if pairs is None:
            if not self._unused and not self.reread:
                return
            pairs = [*known, *self._rule_sets.refused_pairs]
        live = [number for number, uses in self._rule_set_uses.items() if uses > 0]
        wanted = set(pairs)
        chosen = self._rule_sets.choose(wanted, len(live))
        gone = {*known, *self._instead} - set(chosen)
        if gone or self._unused:
            numbered = self._rule_sets.rules.keys()
            self.reread |= self._rule_sets.keep(live, chosen)
            # A rule set that was edited and is gone by the same change has given numbers that nothing ever used.
            for rule in numbered - self._rule_sets.rules.keys() - self._rule_uses.keys():
                self.retired["rule", rule] = None
        self._unused = {}
        for pair in chosen:
            number = self._rule_sets.pair(*pair)
            if self.pairs.get(pair) != number:
                self.pairs.set(pair, number)
                self.reread.add(number)
        self._instead = self._rule_sets.refuse(wanted - set(chosen))
        for pair, number in self._instead.items():
            self.pairs.set(pair, number)
        for pair in gone - self._instead.keys():
            self.pairs.drop(pair)
        reread, self.reread = self.reread, set()
        for number in sorted(reread):
            self._reread(number)

    def in_use(self, retired: Retired, halves: dict[tuple[int, Direction], Half]) -> bool:
        """Whether a number that was out of use is in use again."""
        match retired:
            case ("class", policy_id, direction, number):
                half = halves.get((policy_id, direction))
                return half is not None and number in half.ids.values()
            case ("rule", number):
                return self._rule_uses.get(number, 0) > 0
            case ("rule set", number):
                return self.rule_sets.get(number) is not None
        return False

    def _reread(self, number: int) -> None:
        new = self._rule_sets.rule_sets.get(number)
        rules = [] if new is None else sorted(_rules(new))
        for rule in rules:
            self._use_rule(rule, self._rule_sets.rules[rule])
        for rule in self._rules_of.pop(number, []):
            self._leave_rule(rule)
        if new is None:
            self.rule_sets.drop(number)
            self.retired["rule set", number] = None
        else:
            self._rules_of[number] = rules
            self.rule_sets.set(number, new)

    def _start(self, program: Program) -> None:
        self._programs[program.key] = program
        for name in program.names:
            self._by_name.setdefault(name, {})[program] = None
        for found in program.sets:
            self._by_set.setdefault(found.serial, {})[program] = None
        self._hold(program, program.other)
        self.update(program, program.everybody())

    def _stop(self, program: Program) -> None:
        del self._programs[program.key]
        for name in program.names:
            del self._by_name[name][program]
            if not self._by_name[name]:
                del self._by_name[name]
        for found in program.sets:
            del self._by_set[found.serial][program]
            if not self._by_set[found.serial]:
                del self._by_set[found.serial]
            self._peer_sets.leave(found)
        for content in {program.other, *program.assigned.values()}:
            self._release(program, content)

    def _class_id(self, half: Half, content: Content) -> int:
        found = half.ids.get(content)
        if found is None:
            found = half.ids[content] = self._numbering.peer_class(half.policy_id, half.direction, content.name)
            self._put_rows(half, found, content)
        return found

    def _put_rows(self, half: Half, class_id: int, content: Content) -> None:
        for slot, row in content.rows.items():
            self.rows.set(RowKey(half.policy_id, half.direction, class_id, *slot), row)

    def _hold(self, program: Program, content: Content) -> None:
        """A class is in use: its rules and rule sets need numbers."""
        rows = {}
        for slot, outcome in content.outcomes.items():
            rule = rule_set = 0
            if outcome.ref is not None:
                rule = self._numbering.rule(outcome.ref)
                self._use_rule(rule, outcome.ref)
            if outcome.contributors or outcome.requests:
                rule_set = self._rule_sets.number(
                    outcome.contributors, audited=outcome.audited, requests=outcome.requests
                )
                if not self._rule_set_uses[rule_set]:
                    self.reread.add(rule_set)
                self._rule_set_uses[rule_set] += 1
            rows[slot] = Row(outcome.verdict, outcome.reason, rule, rule_set)
        content.rows = rows
        if content.redirects:
            program.steering += 1
            self.steering_moved = True

    def _release(self, program: Program, content: Content) -> None:
        if content.redirects:
            program.steering -= 1
            self.steering_moved = True
        for row in content.rows.values():
            if row.rule:
                self._leave_rule(row.rule)
            if row.rule_set:
                self._rule_set_uses[row.rule_set] -= 1
                if not self._rule_set_uses[row.rule_set]:
                    del self._rule_set_uses[row.rule_set]
                    self._unused[row.rule_set] = None

    def _use_rule(self, number: int, ref: RuleRef) -> None:
        if not self._rule_uses[number]:
            self.rules.set(number, ref)
        self._rule_uses[number] += 1

    def _leave_rule(self, number: int) -> None:
        self._rule_uses[number] -= 1
        if not self._rule_uses[number]:
            del self._rule_uses[number]
            self.rules.drop(number)
            self.retired["rule", number] = None


def _contents(half: Half) -> list[tuple[int, Content]]:
    if half.program is None:
        return []
    return [(OTHER_PEERS, half.program.other), *((number, content) for content, number in half.ids.items())]


def _row_keys(half: Half, class_id: int, content: Content) -> list[RowKey]:
    return [RowKey(half.policy_id, half.direction, class_id, *slot) for slot in content.rows]


def _rules(rule_set: RuleSet) -> set[int]:
    found = {number for rule in (*(rule_set.rules or ()), *(rule_set.audit or ())) for number in rule.numbers}
    return found | _rules(rule_set.also) if rule_set.also is not None else found
