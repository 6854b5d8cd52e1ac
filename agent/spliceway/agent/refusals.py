"""What is refused: all of it, and in the log once when it begins, and once when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from spliceway.agent.compiler import RefusedPolicy
from spliceway.agent.inventory import Inventory
from spliceway.agent.inventoryfiles import Refusal

log = structlog.get_logger(__name__)


class RefusalLog:
    """Knows what it has told."""

    def __init__(self) -> None:
        self._told: tuple[str, ...] = ()

    def tell(self, refusals: Sequence[Refusal]) -> None:
        """This is refused now, and nothing else."""
        now = tuple(map(str, refusals))
        for text in now:
            if text not in self._told:
                log.warning("refused", document=text)
        for text in self._told:
            if text not in now:
                log.info("no longer refused", document=text)
        self._told = now


def all_refusals(inventory: Inventory, without_room: Sequence[RefusedPolicy]) -> tuple[Refusal, ...]:
    """What is not in force as it is written: what can't be read, and policies that there is no room for."""
    room = (Refusal(inventory.file_of(one.key), " ".join(one.key), "", one.reason, one.kept) for one in without_room)
    return (*inventory.refusals, *room)
