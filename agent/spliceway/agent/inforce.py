"""What packets are judged by, and how it is told that a policy is in force."""

from __future__ import annotations

from typing import NamedTuple

import structlog

from spliceway.policy.table import PolicyTable

log = structlog.get_logger(__name__)


class Live(NamedTuple):
    """By what packets are judged: the number of an intent, and its table."""

    number: int = 0
    table: PolicyTable | None = None


def tell(table: PolicyTable, generation: int, seconds: float) -> None:
    """Log that it is in force, `seconds` after the change that it comes from was seen."""
    # On a restless cluster pods come and go all the time, and change no verdict of this node.
    delta = table.delta
    quiet = delta is not None and not (delta.rows or delta.endpoints or delta.rule_sets or delta.pairs)
    (log.debug if quiet else log.info)(
        "policy in force",
        revision=table.revision,
        generation=generation,
        endpoints=len(table.endpoints),
        rows=len(table.rows),
        rule_sets=len(table.rule_sets),
        milliseconds=round(seconds * 1000, 1),
    )
