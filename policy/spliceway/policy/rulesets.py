"""Rule sets: one for each distinct set of rules whose HTTP rules apply together, and one for each pair of both ends.

The number and name follow from *which* rules contribute and how, not from what they say: an edit keeps the listener.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import sha256

import msgspec

from spliceway.policy.model import HeaderCondition, HttpMatch, Secret
from spliceway.policy.numbering import Numbering
from spliceway.policy.outcome import NOTHING, Requests
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleRef, RuleSet
from spliceway.policy.terms import Effect, Order, SpecTerms

#: Longest name; the proxy uses names in statistics and logs.
MAX_NAME = 200
#: What terms with HTTP rules do.
_ASKING = frozenset({Effect.HTTP, Effect.DENY_HTTP})
#: A value that no header has: no proxy lets NUL pass in one (RFC 9110, section 5.5).
NO_VALUE = "\0"

#: What a header can have for a value: blanks inside only, no control characters (RFC 9110, section 5.5).
_VALUE = re.compile(rb"[!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?")


class Contributors(msgspec.Struct, frozen=True):
    """What a rule set is made of: rules with HTTP rules, enforced or not, and what must hold beside them."""

    refs: frozenset[RuleRef]
    audited: bool = False
    requests: Requests = NOTHING

    @property
    def enforces(self) -> bool:
        """Whether any of it is enforced."""
        return bool((self.refs and not self.audited) or self.requests.allows or self.requests.denies)

    @property
    def all_refs(self) -> frozenset[RuleRef]:
        """Every rule that contributes."""
        return frozenset().union(*(refs for _, refs in self.parts))

    @property
    def parts(self) -> list[tuple[str, frozenset[RuleRef]]]:
        """The rules by what they do here, each kind under a word of its own; enforced ones of CNPs have none."""
        asked = self.requests
        return [
            ("audit" if self.audited else "", self.refs),
            ("allow", asked.allows),
            ("deny", asked.denies),
            ("audit-allow", asked.would_allow - asked.allows),
            ("audit-deny", asked.would_deny - asked.denies),
        ]

    def key(self, side: str = "") -> list[RuleRef]:
        """As the numbering keys it: apart from others by what no policy's kind begins with."""
        found = []
        for word, refs in self.parts:
            prefix = f"{side} {word}".strip()
            found += [RuleRef(f"{prefix} {ref.policy}", ref.path) if prefix else ref for ref in refs]
        return found


class RuleSets:
    """Collects the rule sets of a table, and numbers their rules.

    `rule_sets`, `rules` and `pairs` are as in PolicyTable. `refused_pairs`: pairs for which there was no room, since
    `max_pairs` are there, or `max_sets` rule sets with those of one end; what meets one is denied (no-listener), unless
    there is another rule set for it (`instead`).
    """

    def __init__(
        self,
        numbering: Numbering,
        secrets: Mapping[str, Secret],
        *,
        max_pairs: int,
        max_sets: int | None = None,
    ) -> None:
        self._numbering = numbering
        self._secrets = secrets
        self._max_pairs = max_pairs
        self._max_sets = max_sets
        self._http: dict[RuleRef, tuple[Order, tuple[HttpMatch, ...]]] = {}
        self._by_policy: dict[str, set[RuleRef]] = {}
        self._numbers: dict[Contributors, int] = {}
        self._made_of: dict[int, Contributors] = {}
        self.rule_sets: dict[int, RuleSet] = {}
        self.rules: dict[int, RuleRef] = {}
        self.pairs: dict[tuple[int, int], int] = {}
        self.refused_pairs: set[tuple[int, int]] = set()

    def set_policy(self, title: str, specs: Iterable[SpecTerms] = ()) -> set[int]:
        """Take over the HTTP rules of the policy of this title (without any: it is gone).

        Gives the rule sets that read differently now. One of which a rule is gone stays as it was: the rows that use
        it are those that the edit changes, and `keep` drops it.
        """
        terms = [term for spec in specs for by_direction in spec.terms for term in by_direction]
        new: dict[RuleRef, tuple[Order, tuple[HttpMatch, ...]]] = {}
        for term in terms:
            if term.effect in _ASKING and term.ref:
                # A specification that was made into several (`istio.left`) has all of its rules in the first, in order.
                new.setdefault(term.ref, (term.order, term.http))
        refs = self._by_policy.pop(title, set())
        before = {ref: self._http.pop(ref) for ref in refs}
        self._http.update(new)
        if new:
            self._by_policy[title] = set(new)
        touched = {ref for ref in {*before, *new} if before.get(ref) != new.get(ref)}
        if not touched:
            return set()
        return self._rebuild(number for number, made_of in self._made_of.items() if made_of.all_refs & touched)

    def set_secrets(self, secrets: Mapping[str, Secret], changed: Collection[str]) -> set[int]:
        """Read these Secrets from now on. Gives the rule sets that read differently by those that changed."""
        self._secrets = secrets
        wanted = set(changed)
        return self._rebuild(
            number
            for number, made_of in self._made_of.items()
            if any(header.secret and header.secret[0] in wanted for header in self._headers(made_of))
        )

    def number(self, refs: frozenset[RuleRef], *, audited: bool = False, requests: Requests = NOTHING) -> int:
        """Id of the rule set of these rules, built on first use.

        `audited`: they are not enforced (see RuleSet). `requests`: what must hold beside them.
        """
        made_of = Contributors(refs, audited, requests)
        found = self._numbers.get(made_of)
        if found is None:
            found = self._numbers[made_of] = self._numbering.rule_set(made_of.key())
            self._made_of[found] = made_of
            self.rule_sets[found] = self._build(found, made_of)
        return found

    def pair(self, egress: int, ingress: int) -> int:
        """Id of the rule set that asks that of the client's egress, and then (`also`) that of the server's ingress.

        0 when `max_pairs` are there already; the pair is then among `refused_pairs`.
        """
        found = self.pairs.get((egress, ingress))
        if found is not None:
            return found
        if len(self.pairs) >= self._max_pairs:
            self.refused_pairs.add((egress, ingress))
            return 0
        self.refused_pairs.discard((egress, ingress))
        first, second = self._made_of[egress], self._made_of[ingress]
        found = self._numbering.rule_set([*first.key("egress"), *second.key("ingress")])
        self.pairs[egress, ingress] = found
        self.rule_sets[found] = self._build_pair(found, egress, ingress)
        return found

    def choose(self, wanted: Collection[tuple[int, int]], ends: int) -> list[tuple[int, int]]:
        """Of these pairs those that have room beside so many rule sets of one end.

        First those that nothing can stand in for, so that none of them is denied because of policies in audit; then
        those that are there.
        """
        room = self._max_pairs if self._max_sets is None else min(self._max_pairs, max(self._max_sets - ends, 0))
        return sorted(wanted, key=lambda pair: (bool(self.instead(*pair)), pair not in self.pairs, pair))[:room]

    def instead(self, egress: int, ingress: int) -> int:
        """The rule set for a pair without room of which one end is in audit only: that of the other end.

        Audit must change no traffic, and without it the connection would be denied. 0: both ends are enforced.
        """
        if not self._made_of[ingress].enforces:
            return egress
        return ingress if not self._made_of[egress].enforces else 0

    def refuse(self, pairs: Collection[tuple[int, int]]) -> dict[tuple[int, int], int]:
        """There is no room for these pairs. Gives what stands in for some of them, all pairs within `max_pairs`."""
        self.refused_pairs = set(pairs)
        others = [(pair, number) for pair in sorted(pairs) if (number := self.instead(*pair))]
        return dict(others[: max(self._max_pairs - len(self.pairs), 0)])

    def keep(self, numbers: Collection[int], pairs: Collection[tuple[int, int]] = ()) -> set[int]:
        """Drop all rule sets but these, and all pairs but these, or of which an end goes. Gives the ids that went."""
        live, live_pairs = set(numbers), set(pairs)
        self.pairs = {
            pair: number for pair, number in self.pairs.items() if pair in live_pairs and live.issuperset(pair)
        }
        self.refused_pairs &= live_pairs
        self._made_of = {number: made_of for number, made_of in self._made_of.items() if number in live}
        self._numbers = {made_of: number for number, made_of in self._made_of.items()}
        gone = self.rule_sets.keys() - self._made_of.keys() - set(self.pairs.values())
        for number in gone:
            del self.rule_sets[number]
        used = {number for rule_set in self.rule_sets.values() for rule in _rules(rule_set) for number in rule.numbers}
        self.rules = {number: ref for number, ref in self.rules.items() if number in used}
        return gone

    def _rebuild(self, numbers: Iterable[int]) -> set[int]:
        """Build these anew, and the pairs that they are in. Gives those that came out different."""
        different: set[int] = set()
        for number in numbers:
            made_of = self._made_of[number]
            if made_of.all_refs <= self._http.keys():
                built = self._build(number, made_of)
                if built != self.rule_sets[number]:
                    self.rule_sets[number] = built
                    different.add(number)
        pairs = {pair: number for pair, number in self.pairs.items() if not different.isdisjoint(pair)}
        for (egress, ingress), number in pairs.items():
            self.rule_sets[number] = self._build_pair(number, egress, ingress)
        return different | set(pairs.values())

    def _build(self, number: int, made_of: Contributors) -> RuleSet:
        asked = made_of.requests
        refs = frozenset() if made_of.audited else made_of.refs
        rules = self._list(refs, asked.allows, asked.denies)
        would_ask = self._list(made_of.refs, asked.would_allow, asked.would_deny)
        name = "&".join(_named(word, refs) for word, refs in made_of.parts if refs)
        return RuleSet(
            number,
            _short(name, len(made_of.all_refs)),
            rules if made_of.enforces else None,
            None if would_ask == rules else would_ask,
        )

    def _list(
        self, refs: frozenset[RuleRef], allows: frozenset[RuleRef], denies: frozenset[RuleRef]
    ) -> tuple[HttpRule, ...]:
        """The rules, each with what must hold beside it; without any those of `allows`, or one that is asked alone.

        What no denial is about passes by the first of them, where nothing else is asked.
        """
        allowing, denying = self._rules(allows), self._rules(denies)
        unless = tuple((http_test(rule, match, negated=True),) for rule, match in denying)
        if refs:
            needed = tuple(http_test(rule, match) for rule, match in allowing)
            tests = ((needed,) if needed else ()) + unless
            return tuple(self._rule(rule, match, tests) for rule, match in self._rules(refs))
        if allowing:
            return tuple(self._rule(rule, match, unless) for rule, match in allowing)
        return (HttpRule(denying[0][0], tests=unless),) if denying else ()

    def _rule(self, rule: int, match: HttpMatch, tests: tuple[tuple[HttpTest, ...], ...]) -> HttpRule:
        headers = tuple(header_match(condition, self._secrets) for condition in match.headers)
        excepted = HttpTest("", "", "", match.unless_method, match.unless_path, match.unless_host, rule=rule)
        own = ((excepted,),) if excepted.unless else ()
        return HttpRule(rule, match.method_regex, match.path_regex, match.host_regex, headers, own + tests)

    def _rules(self, refs: frozenset[RuleRef]) -> list[tuple[int, HttpMatch]]:
        """HTTP rules of these rules in order, with their numbers."""
        found = []
        for ref in sorted(refs, key=lambda ref: self._http[ref][0]):
            for match in self._http[ref][1]:
                http_ref = RuleRef(ref.policy, match.path)
                rule = self._numbering.rule(http_ref)
                self.rules[rule] = http_ref
                found.append((rule, match))
        return found

    def _build_pair(self, number: int, egress: int, ingress: int) -> RuleSet:
        first, second = self.rule_sets[egress], self.rule_sets[ingress]
        parts = len(self._made_of[egress].all_refs) + len(self._made_of[ingress].all_refs)
        name = _short(f"{first.name}&{second.name}", parts)
        return RuleSet(number, name, first.rules, first.audit, also=second)

    def _headers(self, made_of: Contributors) -> Iterator[HeaderCondition]:
        for ref in made_of.all_refs:
            _, matches = self._http.get(ref, (None, ()))
            for match in matches:
                yield from match.headers


def http_test(rule: int, match: HttpMatch, *, negated: bool = False) -> HttpTest:
    """What an AuthorizationPolicy asks of a request, as a test."""
    return HttpTest(
        match.method_regex,
        match.path_regex,
        match.host_regex,
        match.unless_method,
        match.unless_path,
        match.unless_host,
        negated,
        rule,
    )


def header_match(condition: HeaderCondition, secrets: Mapping[str, Secret]) -> HeaderMatch:
    """A header condition with its Secret read.

    Without the Secret the condition's own value counts, if it has one (Cilium, HeaderMatch `value`). If not, or if the
    Secret holds what no header can, the rule matches nothing, whatever its mismatch action. The rule stays in its rule
    set: it keeps its number, can be named as the nearest miss, and no rule set is left without rules.
    """
    name = condition.name.lower()
    found = None if condition.secret is None else secret_value(secrets, *condition.secret)
    if found is not None and _VALUE.fullmatch(found):
        return HeaderMatch(name, found.decode("latin-1"), secret=True, mismatch=condition.mismatch)
    if condition.secret is None or (found is None and condition.value is not None):
        return HeaderMatch(name, condition.value, mismatch=condition.mismatch)
    return HeaderMatch(name, NO_VALUE, secret=True, mismatch=Mismatch.DENY)


def secret_value(secrets: Mapping[str, Secret], secret: str, key: str) -> bytes | None:
    """What a Secret «namespace/name» has under a key; under its only one when the key is empty. None: nothing.

    An empty value is nothing too: in Cilium it would turn a condition on a value into one on presence.
    """
    found = secrets.get(secret)
    if found is None:
        return None
    if key:
        return found.data.get(key) or None
    return next(iter(found.data.values())) or None if len(found.data) == 1 else None


def rule_set_name(refs: Iterable[RuleRef]) -> str:
    """A readable, unique name: `default/api-http:ingress[0].toPorts[0]`, several joined by `+`.

    What would be too long is cut and ends in a digest of all of it.
    """
    parts = sorted(f"{ref.policy.partition(' ')[2]}:{ref.path.removeprefix('spec.')}" for ref in refs)
    return _short("+".join(parts), len(parts))


def _named(word: str, refs: Iterable[RuleRef]) -> str:
    return f"{word}:{rule_set_name(refs)}" if word else rule_set_name(refs)


def _short(name: str, parts: int) -> str:
    if len(name) <= MAX_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:12]
    return f"{name[: MAX_NAME - 24]}...{parts}-{digest}"


def _rules(rule_set: RuleSet) -> Iterator[HttpRule]:
    yield from rule_set.rules or ()
    yield from rule_set.audit or ()
    if rule_set.also is not None:
        yield from _rules(rule_set.also)
