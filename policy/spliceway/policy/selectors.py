"""Many selectors at once: which of them select these labels, and which labels does one select.

Each selector stands in an index under one requirement that asks for something; a set of labels looks only at those that
it could satisfy. The other way round each label has the numbers that carry it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Generic, TypeVar

from spliceway.policy.labels import Operator, Requirement, Selector

Owner = TypeVar("Owner")

#: «source:key» → value.
Facts = Mapping[str, str]
#: Names that a requirement looks at, its operator and values.
_Test = tuple[tuple[str, ...], Operator, frozenset[str]]


def facts_of(labels: Iterable[str]) -> dict[str, str]:
    """Labels by «source:key»."""
    found = {}
    for label in labels:
        name, _, value = label.partition("=")
        found[name] = value
    return found


def _names(requirement: Requirement) -> tuple[str, ...]:
    sources = ("k8s", "reserved") if requirement.source == "any" else (requirement.source,)
    return tuple(f"{source}:{requirement.key}" for source in sources)


class Matcher:
    """A selector, prepared to be asked often."""

    __slots__ = ("_tests", "selector")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._tests: tuple[_Test, ...] = tuple(
            (_names(requirement), requirement.operator, frozenset(requirement.values))
            for requirement in selector.requirements
        )

    def matches(self, facts: Facts) -> bool:
        """Whether it selects these labels."""
        for names, operator, values in self._tests:
            found = [facts[name] for name in names if name in facts]
            if operator is Operator.IN:
                holds = any(value in values for value in found)
            elif operator is Operator.NOT_IN:
                holds = not any(value in values for value in found)
            else:
                holds = bool(found) is (operator is Operator.EXISTS)
            if not holds:
                return False
        return True


@lru_cache(maxsize=65536)
def matcher(selector: Selector) -> Matcher:
    """The matcher of a selector."""
    return Matcher(selector)


class SelectorIndex(Generic[Owner]):
    """Selectors by what they ask for. One owner may have several."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[tuple[Selector, Owner], Matcher]] = {}
        self._homes: dict[tuple[Selector, Owner], tuple[str, ...]] = {}

    def add(self, selector: Selector, owner: Owner) -> None:
        """Add a selector; the same one of the same owner counts once."""
        entry = (selector, owner)
        if entry in self._homes:
            return
        homes = self._homes[entry] = self._choose(selector)
        for home in homes:
            self._buckets.setdefault(home, {})[entry] = matcher(selector)

    def remove(self, selector: Selector, owner: Owner) -> None:
        """Remove what `add` added."""
        entry = (selector, owner)
        for home in self._homes.pop(entry, ()):
            bucket = self._buckets[home]
            del bucket[entry]
            if not bucket:
                del self._buckets[home]

    def owners(self, facts: Facts) -> dict[Owner, None]:
        """Owners of the selectors that select these labels, each once, in an order that follows from what was done."""
        found: dict[Owner, None] = {}
        for home in _homes_of(facts):
            bucket = self._buckets.get(home)
            if bucket is not None:
                for (_, owner), test in bucket.items():
                    if owner not in found and test.matches(facts):
                        found[owner] = None
        return found

    def _choose(self, selector: Selector) -> tuple[str, ...]:
        """Where a selector stands: under the requirement that has the least company, or under «» for all labels."""
        best: tuple[str, ...] = ("",)
        company = -1
        for requirement in selector.requirements:
            names = _names(requirement)
            if requirement.operator is Operator.IN:
                homes = tuple(f"{name}={value}" for name in names for value in requirement.values)
            elif requirement.operator is Operator.EXISTS:
                homes = names
            else:
                continue
            size = sum(len(self._buckets.get(home, ())) for home in homes)
            if company < 0 or size < company:
                best, company = homes, size
        return best


def _homes_of(facts: Facts) -> Iterator[str]:
    yield ""
    for name, value in facts.items():
        yield name
        yield f"{name}={value}"


class LabelIndex:
    """Numbers by the labels that they carry."""

    def __init__(self) -> None:
        self._facts: dict[int, Facts] = {}
        self._by_value: dict[str, dict[str, set[int]]] = {}

    def add(self, number: int, facts: Facts) -> None:
        """A new number and its labels."""
        self._facts[number] = facts
        for name, value in facts.items():
            self._by_value.setdefault(name, {}).setdefault(value, set()).add(number)

    def remove(self, number: int) -> None:
        """Forget a number."""
        for name, value in self._facts.pop(number).items():
            values = self._by_value[name]
            values[value].discard(number)
            if not values[value]:
                del values[value]
                if not values:
                    del self._by_value[name]

    def select(self, selector: Selector) -> set[int]:
        """Numbers whose labels a selector selects."""
        best: list[set[int]] | None = None
        company = len(self._facts)
        for requirement in selector.requirements:
            if requirement.operator not in (Operator.IN, Operator.EXISTS):
                continue
            sets = list(self._carriers(requirement))
            size = sum(map(len, sets))
            if best is None or size < company:
                best, company = sets, size
        test = matcher(selector)
        if best is None:
            return {number for number, facts in self._facts.items() if test.matches(facts)}
        return {number for numbers in best for number in numbers if test.matches(self._facts[number])}

    def _carriers(self, requirement: Requirement) -> Iterator[set[int]]:
        for name in _names(requirement):
            values = self._by_value.get(name, {})
            if requirement.operator is Operator.EXISTS:
                yield from values.values()
            else:
                for value in requirement.values:
                    if value in values:
                        yield values[value]
