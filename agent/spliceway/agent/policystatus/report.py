"""What one node tells of its policies: those that are about its pods, and what is wrong with any. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from spliceway.agent.policystatus.resources import API_VERSION, REPORTS

Enforcement = Literal["enforce", "audit", "off"]
#: So many exceptions have their reason with them, each so long.
MOST_MESSAGES, MOST_CHARACTERS = 200, 1000
_MOST_FIELD = 1000


class Trouble(msgspec.Struct, frozen=True, omit_defaults=True):
    """A policy that is not in force here as it is written.

    `policy`: the version that is not (`Version.text`); `reason`: one of `REASONS`; `selects`: it is about pods here, or
    the version that is in force is; `kept`: an older version stays in force.
    """

    policy: str
    reason: str
    field: str = ""
    message: str = ""
    selects: bool = False
    kept: bool = False


#: Reasons of exceptions, the gravest first. `Document`: it can't be read; `NoRoom`: in the kernel's maps.
REASONS = ("Document", "NoRoom", "ProxyRefused", "NotCovered", "ProxyWaiting")


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """All of a node's. `seen`: «kind=resourceVersion», up to which policies of that kind were looked at.

    `applied`: `Version.text` of policies that are about pods of the node and in force there.
    """

    enforcement: Enforcement = "enforce"
    seen: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    exceptions: tuple[Trouble, ...] = ()

    @property
    def positions(self) -> dict[str, int]:
        """`seen` by kind. Raises ValueError."""
        return {kind: int(revision) for kind, _, revision in (one.partition("=") for one in self.seen)}


def report(
    enforcement: Enforcement, positions: Mapping[str, int], applied: Iterable[str], troubles: Iterable[Trouble]
) -> Report:
    """In one order, with what is too long cut off."""
    found = sorted(troubles, key=lambda one: (REASONS.index(one.reason), one.policy))
    short = [
        msgspec.structs.replace(
            one,
            message=_cut(one.message, MOST_CHARACTERS) if number < MOST_MESSAGES else "",
            field=_cut(one.field, _MOST_FIELD) if number < MOST_MESSAGES else "",
        )
        for number, one in enumerate(found)
    ]
    return Report(enforcement, _seen(positions), tuple(sorted(applied)), tuple(short))


def having_seen(told: Report, positions: Mapping[str, int]) -> Report:
    """The same report, with other positions."""
    return msgspec.structs.replace(told, seen=_seen(positions))


def _seen(positions: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{kind}={revision}" for kind, revision in sorted(positions.items()))


def as_object(told: Report, node: str, uid: str) -> dict[str, Any]:
    """The object of a node. It belongs to the Node, and goes with it."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    # Every field is there: it is a patch of what may be there, too.
    spec = {name: getattr(told, name) for name in ("enforcement", "seen", "applied", "exceptions")}
    return {
        "apiVersion": API_VERSION,
        "kind": REPORTS.kind,
        "metadata": {"name": node, "ownerReferences": [owner]},
        "spec": spec,
    }


def of_object(content: Mapping[str, Any]) -> tuple[str, Report]:
    """The uid of the Node that a report belongs to, and the report. Raises msgspec.ValidationError, ValueError."""
    owners = content["metadata"].get("ownerReferences") or [{}]
    told = msgspec.convert(content.get("spec") or {}, type=Report)
    told.positions  # noqa: B018 raises
    # Thousands of nodes name the same versions.
    shared = msgspec.structs.replace(told, applied=tuple(map(sys.intern, told.applied)))
    return str(owners[0].get("uid", "")), shared


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
