"""What is said of each policy's translation, as a condition of its status. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from spliceway.agent.authorization.aims import Aim
from spliceway.agent.authorization.objects import Held
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.conditions import Condition
from spliceway.policy.istio.rollout import Name
from spliceway.policy.parse_metadata import HTTP_RULES

TYPE = "Translated"


def conditions(found: Aim, held: Mapping[Name, Held], said: Mapping[Key, Condition]) -> dict[Key, Condition]:
    """By policy. `said`: before; what was not well then stays so until it is."""
    kept = Counter(held[name].source for name in found.kept if name in held)
    made: dict[Key, Condition] = {}
    for key, trouble in found.troubles.items():
        left = f" ({_many(kept[key])} of its last good translation in force)" if kept[key] else ""
        if key in found.unasked:
            left = f"; nobody asks its HTTP rules, which it leaves to Istio ({HTTP_RULES})"
        made[key] = Condition(TYPE, "False", trouble.reason, message=f"{trouble.message}{left}", field=trouble.field)
    for key, names in found.parts.items():
        there = sum(name in held and held[name].spec == found.wanted[name].document["spec"] for name in names)
        if there == len(names):
            made[key] = Condition(TYPE, "True", "Emitted", message=_many(len(names)))
        else:
            before = said.get(key)
            waiting = Condition(TYPE, "False", "Pending", message=f"{there} of {_many(len(names))}")
            made[key] = before if before is not None and before.status == "False" else waiting
    return made


def _many(count: int) -> str:
    return f"{count} AuthorizationPolic{'y' if count == 1 else 'ies'}"
