"""Hold back what is not ready, let everything else through.

A row that steers to a listener which is not there yet would drop the connections that the last generation served, and
waiting for the listener would make every unrelated change wait with it, tightenings among them. So while a listener is
on its way, the unit (policy id, direction) that needs it stays as it was, whole, and all other units become new. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from spliceway.policy.table import EndpointPolicy, PolicyTable
from spliceway.policy.verdict import Direction

#: A policy in one direction: what is held back or let through together.
Unit = tuple[int, Direction]


def waiting_units(table: PolicyTable, pending: Collection[int]) -> frozenset[Unit]:
    """Units with a row that steers to one of the `pending` rule sets."""
    waiting = set(pending)
    return frozenset(
        (key.policy_id, key.direction) for key, row in table.rows.items() if row.rule_set and row.rule_set in waiting
    )


def hold_back(old: PolicyTable, new: PolicyTable, pending: Collection[int]) -> PolicyTable:
    """The new table, with each unit that waits for a `pending` rule set as it was in the old one.

    A unit is held only where that can't widen anything: it must have been in force in the old table, and no identity
    may be new (the old classes would take a new identity for «any other peer»). Otherwise the new rows come into force
    at once and drop what they would steer, with NO_LISTENER. A table with something held keeps the old revision.
    """
    if new.identities.keys() - old.identities.keys():
        return new
    known = {(policy.policy_id, direction) for policy in old.endpoints.values() for direction in Direction}
    # A unit that steered to the same missing listener before gains nothing from being held.
    held = (waiting_units(new, pending) & known) - waiting_units(old, pending)
    if not held:
        return new
    flags = {
        (policy.policy_id, direction): policy.ingress if direction is Direction.INGRESS else policy.egress
        for policy in old.endpoints.values()
        for direction in Direction
    }
    return msgspec.structs.replace(
        new,
        revision=old.revision,
        endpoints={name: _with_flags(policy, held, flags) for name, policy in new.endpoints.items()},
        classes={
            **{key: value for key, value in new.classes.items() if (key.policy_id, key.direction) not in held},
            **{key: value for key, value in old.classes.items() if (key.policy_id, key.direction) in held},
        },
        rows={
            **{key: row for key, row in new.rows.items() if (key.policy_id, key.direction) not in held},
            **{key: row for key, row in old.rows.items() if (key.policy_id, key.direction) in held},
        },
        rule_sets={**old.rule_sets, **new.rule_sets},
        rules={**old.rules, **new.rules},
    )


def same_rows(left: PolicyTable | None, right: PolicyTable) -> bool:
    """Whether the kernel would judge the same by both: an edit of HTTP rules alone changes no row."""
    return left is not None and (
        left.rows == right.rows
        and left.classes == right.classes
        and left.endpoints == right.endpoints
        and left.ipcache == right.ipcache
    )


def steered(table: PolicyTable) -> frozenset[int]:
    """The rule sets that the table's rows steer to."""
    return frozenset(row.rule_set for row in table.rows.values() if row.rule_set)


def _with_flags(policy: EndpointPolicy, held: Collection[Unit], flags: dict[Unit, bool]) -> EndpointPolicy:
    ingress, egress = (policy.policy_id, Direction.INGRESS), (policy.policy_id, Direction.EGRESS)
    return msgspec.structs.replace(
        policy,
        ingress=flags[ingress] if ingress in held else policy.ingress,
        egress=flags[egress] if egress in held else policy.egress,
    )
