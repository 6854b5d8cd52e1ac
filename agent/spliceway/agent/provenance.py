"""Which policies made an xDS resource, and how far each policy is with the proxy. Pure.

resource name → rule set → the rules in it → policy and field path (`PolicyTable.rules`) → file (`Inventory.file_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from spliceway.agent.control import Acceptance, Answer
from spliceway.agent.manifests import Key
from spliceway.policy.table import HttpRule, RuleRef, RuleSet
from spliceway.xds.resources.names import rule_set_of

#: How a policy's state is called for what the proxy says of its rule sets. A listener whose port is taken moves.
STATES: Mapping[Acceptance, str] = {
    Acceptance.ACCEPTED: "applied",
    Acceptance.WAITING: "waiting",
    Acceptance.PORT_TAKEN: "waiting",
    Acceptance.REFUSED: "refused",
}
#: The worse, the later.
_ORDER = ("applied", "waiting", "refused")

FileOf = Callable[[Key], str]


class SourceRule(msgspec.Struct, frozen=True):
    """A rule in a resource: `id` as in names of RBAC policies («00000/12»), its field path, in audit or enforced."""

    id: int
    path: str
    audit: bool


class PolicySource(msgspec.Struct, frozen=True):
    """A policy that contributes to a resource: the file that it is in force of, and its rules there.

    `namespace` is empty for a clusterwide one; `file` is empty when the policy went a moment ago.
    """

    kind: str
    namespace: str
    name: str
    file: str
    rules: tuple[SourceRule, ...]


class Provenance(msgspec.Struct, frozen=True):
    """Where a resource comes from: `policy`, and then by which rule set and policies, or `configuration`."""

    origin: str
    rule_set: str = ""
    policies: tuple[PolicySource, ...] = ()


class Unapplied(msgspec.Struct, frozen=True):
    """Why a rule set is not applied: what the proxy says of this resource, in its own words.

    `type` and `resource` are empty where the proxy was not even asked, because it can't be asked for that exactly.
    """

    rule_set: str
    state: str
    type: str
    resource: str
    message: str


class PolicyState(msgspec.Struct, frozen=True):
    """A policy that is not applied: `waiting` (not acknowledged yet) or `refused`, and what of it."""

    policy: str
    file: str
    state: str
    why: tuple[Unapplied, ...]


CONFIGURATION = Provenance("configuration")


def provenance(
    resource: str, rule_sets: Mapping[int, RuleSet], rules: Mapping[int, RuleRef], file_of: FileOf
) -> Provenance:
    """Where the resource of this name comes from. `rule_sets`: those that are served; `rules`: rule id → where it is.

    A rule that is in no policy any more has the field path "(gone)".
    """
    rule_set = rule_sets.get(rule_set_of(resource))
    if rule_set is None:
        return CONFIGURATION
    found: dict[str, dict[int, SourceRule]] = {}
    for rule, audit in _rules(rule_set):
        for number in rule.numbers:
            ref = rules.get(number, _GONE)
            found.setdefault(ref.policy, {}).setdefault(number, SourceRule(number, ref.path, audit))
    policies = (_policy(title, tuple(of.values()), file_of) for title, of in found.items())
    return Provenance("policy", rule_set.name, tuple(policies))


def unapplied(answers: Mapping[int, Answer], rule_sets: Mapping[int, RuleSet]) -> dict[int, Unapplied]:
    """By rule set id, those of which the proxy has not accepted listener and routes as they are now."""
    return {
        key: Unapplied(rule_sets[key].name, STATES[answer.acceptance], answer.type, answer.resource, answer.message)
        for key, answer in answers.items()
        if answer.acceptance is not Acceptance.ACCEPTED and key in rule_sets
    }


def policy_states(
    missing: Mapping[int, Unapplied],
    rule_sets: Mapping[int, RuleSet],
    rules: Mapping[int, RuleRef],
    file_of: FileOf,
) -> list[PolicyState]:
    """The policies that contribute to one of the rule sets that are `missing`, by title."""
    found: dict[str, dict[int, Unapplied]] = {}
    for key, why in missing.items():
        for rule, _audit in _rules(rule_sets[key]):
            for number in rule.numbers:
                if (ref := rules.get(number)) is not None:
                    found.setdefault(ref.policy, {})[key] = why
    return [
        PolicyState(title, file_of(_key(title)), worst(each.state for each in of.values()), tuple(of.values()))
        for title, of in sorted(found.items())
    ]


def worst(states: Iterable[str]) -> str:
    """The worst of these states; `applied` of none."""
    return max(states, key=_ORDER.index, default=_ORDER[0])


_GONE = RuleRef("", "(gone)")


def _rules(rule_set: RuleSet) -> Iterator[tuple[HttpRule, bool]]:
    """The rules of both ends, each with whether it is of those for audit, which come after those that are enforced.

    A rule may be among both, and be tested in audit by rules that are not enforced.
    """
    yield from ((rule, False) for rule in rule_set.rules or ())
    yield from ((rule, True) for rule in rule_set.audit or ())
    if rule_set.also is not None:
        yield from _rules(rule_set.also)


def _policy(title: str, rules: tuple[SourceRule, ...], file_of: FileOf) -> PolicySource:
    kind, key = _key(title)
    namespace, slash, name = key.rpartition("/")
    return PolicySource(kind, namespace if slash else "", name, file_of((kind, key)), rules)


def _key(title: str) -> Key:
    """`CiliumNetworkPolicy default/api` → kind and name, as the inventory has it."""
    kind, _, name = title.partition(" ")
    return kind, name
