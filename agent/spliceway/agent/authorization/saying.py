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
#: Pods that a message names.
_NAMED = 3


def conditions(found: Aim, held: Mapping[Name, Held], said: Mapping[Key, Condition]) -> dict[Key, Condition]:
    """By policy. `said`: before; what was not well then stays so until it is."""
    kept = Counter(held[name].source for name in found.kept if name in held and not held[name].shape.bridge)
    old = Counter(held[name].source for name in found.unwanted if name in held)
    made: dict[Key, Condition] = {}
    for key, trouble in found.troubles.items():
        left = f" ({_many(kept[key])} of its last good translation in force)" if kept[key] else ""
        if key in found.unasked:
            left += f"; {_where(found.unasked[key])}nobody asks its HTTP rules, which it leaves to Istio ({HTTP_RULES})"
        if key in found.unmoved:
            left += f"; {found.unmoved[key]}"
        made[key] = Condition(TYPE, "False", trouble.reason, message=f"{trouble.message}{left}", field=trouble.field)
    for key, names in found.parts.items():
        there = sum(name in held and held[name].spec == found.wanted[name].document["spec"] for name in names)
        if there == len(names) and not old[key]:
            made[key] = Condition(TYPE, "True", "Emitted", message=_many(len(names)))
        else:
            before = said.get(key)
            more = f", {old[key]} of earlier ones still in force" if old[key] else ""
            waiting = Condition(TYPE, "False", "Pending", message=f"{there} of {_many(len(names))}{more}")
            made[key] = before if before is not None and before.status == "False" else waiting
    for key in found.unmoved.keys() - found.troubles.keys():
        made[key] = Condition(TYPE, "False", "NotWritten", message=found.unmoved[key])
    return made


def unasked(found: Aim) -> list[str]:
    """Policies whose HTTP rules nobody asks, in order, with how many of their pods that is so for."""
    return [f"{' '.join(key)} at {len(pods)} of its pods" for key, pods in sorted(found.unasked.items())]


def _where(pods: tuple[str, ...]) -> str:
    more = f" and {len(pods) - _NAMED} more" if len(pods) > _NAMED else ""
    return f"at {', '.join(pods[:_NAMED])}{more} "


def _many(count: int) -> str:
    return f"{count} AuthorizationPolic{'y' if count == 1 else 'ies'}"
