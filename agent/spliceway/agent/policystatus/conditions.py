"""What the status of a policy says, by what the nodes say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from spliceway.agent.policystatus.ledger import Written
from spliceway.agent.policystatus.report import REASONS, Trouble
from spliceway.agent.policystatus.tally import Count

#: So many nodes are named in a message.
_NAMED = 5
#: As the definition has it.
_MOST_CHARACTERS = 4000
#: What `Refused` is about: the others pass, or are no fault of the policy.
_REFUSALS: Mapping[str, str] = {"Document": "Document", "NoRoom": "NoRoom", "ProxyRefused": "Proxy"}
_TEXTS: Mapping[str, str] = {
    "NoRoom": "the kernel's maps have no room for it",
    "ProxyRefused": "the proxy has refused its HTTP rules",
    "NotCovered": "no policy covers pods that it selects",
    "ProxyWaiting": "the proxy has not acknowledged its HTTP rules yet",
}


class Condition(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """As in meta/v1, and `field`: the path of what was refused."""

    type: str
    status: str
    reason: str
    last_transition_time: str = ""
    message: str | None = None
    observed_generation: int | None = None
    field: str = ""


class Nodes(msgspec.Struct, frozen=True):
    """Counts of nodes, see `Count`."""

    desired: int
    applied: int
    unseen: int = 0


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """`status` of PolicyStatus. `revision`: the digest of what is asked for; `resource_version`: where it began."""

    observed_generation: int = 0
    revision: str = ""
    resource_version: str = ""
    nodes: Nodes = Nodes(0, 0)
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        """The one of this type."""
        return next((one for one in self.conditions if one.type == kind), None)


def status_of(
    policy: Written, count: Count, before: Status | None, now: datetime, translated: Condition | None = None
) -> Status:
    """The status now. Times are those of `before` where a condition is as it was.

    `translated`: what is said of HTTP rules in the mesh, where anything is.
    """
    generation = policy.version.generation
    made = []
    for one in (_valid(count), _applied(count), _refused(count), *([translated] if translated else [])):
        old = before.condition(one.type) if before is not None else None
        same = old is not None and old.status == one.status
        made.append(
            msgspec.structs.replace(
                one,
                message=_cut(one.message or ""),
                last_transition_time=old.last_transition_time if old and same else now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                observed_generation=generation,
            )
        )
    nodes = Nodes(count.desired, count.applied, len(count.unseen))
    return Status(generation, policy.version.digest, str(policy.since), nodes, tuple(made))


def _valid(count: Count) -> Condition:
    refusing = _of(count.troubles, "Document")
    if not refusing:
        return Condition("Valid", "True", "Accepted")
    one = next(iter(refusing.values()))
    return Condition("Valid", "False", "Refused", message=_why(one, refusing), field=one.field)


def _refused(count: Count) -> Condition:
    for reason, told in _REFUSALS.items():
        if found := _of(count.troubles, reason):
            one = next(iter(found.values()))
            text = _why(one, found)
            if reason != "Document":
                text = f"{_TEXTS[reason]} {_on(found)}: {text}"
            return Condition("Refused", "True", told, message=text, field=one.field)
    return Condition("Refused", "False", "NotRefused")


def _applied(count: Count) -> Condition:
    numbers = f"in force on {count.applied} of {_many(count.desired)}"
    if found := _of(count.troubles, "Document"):
        kept = any(one.kept for one in found.values())
        text = "its last good version stays in force" if kept else "nothing of it is in force"
        return Condition("Applied", "False", "Refused", message=f"{numbers} as it is written; {text}")
    for reason in REASONS[1:]:
        if found := _of(count.troubles, reason):
            text = f"{numbers}; {_TEXTS[reason]} {_on(found)}"
            return Condition("Applied", "False", reason, message=text)
    if count.off:
        return Condition("Applied", "False", "Disabled", message=f"{numbers}; the kill switch is on on {count.off}")
    if count.applied < count.desired:
        return Condition("Applied", "False", "Pending", message=numbers)
    if count.unseen:
        text = f"{numbers} so far; {_on(count.unseen)} it was not looked at yet"
        return Condition("Applied", "Unknown", "NotSeen", message=text)
    if not count.desired:
        return Condition("Applied", "True", "SelectsNothing", message="no node has pods that it selects")
    if count.in_audit:
        return Condition(
            "Applied", "True", "InAudit", message=f"{numbers}; {count.in_audit} in audit: nothing is denied"
        )
    return Condition("Applied", "True", "InForce", message=numbers)


def _of(troubles: Mapping[str, Trouble], reason: str) -> dict[str, Trouble]:
    """Those with that reason, where it is told in words first."""
    found = [(node, one) for node, one in troubles.items() if one.reason == reason]
    return dict(sorted(found, key=lambda entry: (not entry[1].message, entry[0])))


def _why(one: Trouble, found: Mapping[str, Trouble]) -> str:
    text = one.message or "no reason was told"
    kept = sum(each.kept for each in found.values())
    return f"{text} (the last good version stays in force)" if kept else text


def _on(nodes: Iterable[str]) -> str:
    """«on 7 nodes (a, b, c, d, e, …)»."""
    names = list(nodes)
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"on {_many(len(names))} ({shown})"


def _many(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
