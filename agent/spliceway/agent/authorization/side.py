"""What is kept applied for Istio, as the side that tells of policies sees it. Off, it does nothing and asks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spliceway.agent.authorization.marks import PodMarks
from spliceway.agent.authorization.seen import Seen
from spliceway.agent.authorization.told import EmissionStatus, Figures, emission_status
from spliceway.agent.authorization.translating import Translating
from spliceway.agent.authorization.writer import AuthorizationWriter
from spliceway.agent.config import Config
from spliceway.agent.inventory import Inventory
from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.conditions import Condition
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.fenced import FencedWrites
from spliceway.agent.policystatus.ledger import Ledger
from spliceway.agent.policystatus.pacing import Bucket, Pacing
from spliceway.agent.sources.events import Batch
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.figures import Timing


class AuthorizationSide:
    """Of one agent: what every one must remember, since each may be the next that writes, and the writer of a term."""

    def __init__(self, config: Config, inventory: Inventory, ledger: Ledger, pacing: Pacing, timing: Timing) -> None:
        """See `PolicyStatusSide`."""
        self._config = config
        self._inventory = inventory
        self._ledger = ledger
        self._pacing = pacing
        self._timing = timing
        self._mode = config.istio.authorization_policies
        self._marks = PodMarks()
        self._asked = 0
        self._figures = Figures()
        self._rate = Bucket(config.status.writes_per_second, 2 * config.status.writes_per_second)
        self._writer: AuthorizationWriter | None = None

    def __repr__(self) -> str:
        return f"AuthorizationSide({self._mode}, {self._writer!r})"

    def saw(self, batch: Batch) -> None:
        """The source says this."""
        if self._mode == "emit" and self._marks.saw(batch) and self._writer is not None:
            self._writer.stale()

    def asked(self, number: int) -> None:
        """The intent of this number was made of all that was seen: as long as it is the same one, so are policies."""
        if number != self._asked and self._writer is not None:
            self._writer.stale()
        self._asked = number

    @property
    def error(self) -> str:
        """What keeps it from being applied; empty: nothing, or this agent does not write."""
        return self._figures.problem if self._writer is not None else ""

    def status(self) -> EmissionStatus:
        """As it is now."""
        return emission_status(self._mode, self._figures, leads=self._writer is not None)

    def condition(self, key: Key, before: Condition | None) -> Condition | None:
        """See `AuthorizationWriter`."""
        if self._writer is None:
            return before if self._mode != "off" else None
        return self._writer.condition(key, before)

    async def lead(
        self,
        connection: Connection,
        election: Election,
        *,
        whole: Callable[[], bool],
        on_news: Callable[[Iterable[Key] | None], None],
    ) -> None:
        """Apply for one term of office, until cancelled."""
        if self._mode == "off":
            return
        config = self._config
        audit = config.enforcement == "audit"
        emits = self._mode == "emit"
        self._writer = writer = AuthorizationWriter(
            Seen(connection, config.node_name, self._timing),
            Translating(config.istio, self._inventory, self._ledger, self._marks, audit=audit) if emits else None,
            FencedWrites(connection, election, self._rate),
            root_namespace=config.istio.root_namespace,
            whole=whole,
            pacing=self._pacing,
            figures=self._figures,
            on_news=on_news,
        )
        try:
            await writer.run()
        finally:
            self._writer = None
