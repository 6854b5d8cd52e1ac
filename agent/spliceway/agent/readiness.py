"""Which rule sets may be steered to: the proxy accepted listener and routes, and the socket listens.

Ready once, a rule set stays ready for as long as its proxy process lives: a new version of its routes, or a lost xDS
stream, doesn't close a listener.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spliceway.agent.control import Acceptance, ListeningPorts, ProxyControl
from spliceway.policy.table import RuleSet


class Readiness:
    """Keeps the ready rule sets and since when the others are awaited."""

    def __init__(self, carried: Iterable[int] = ()) -> None:
        """Begin with nothing ready.

        `carried`: rule sets that had a listener under the last agent; if the socket still listens, they are ready
        without waiting for the proxy to reconnect.
        """
        self._ready: set[int] = set()
        self._carried = set(carried)
        self._since: dict[int, float] = {}
        self._refused: set[int] = set()

    def __repr__(self) -> str:
        return f"Readiness(ready={sorted(self._ready)}, waiting={sorted(self._since)})"

    @property
    def ready(self) -> frozenset[int]:
        """Rule sets that may be steered to."""
        return frozenset(self._ready)

    def proxy_gone(self) -> None:
        """The proxy process ended, and all its sockets with it."""
        self._ready.clear()
        self._carried.clear()
        self._since.clear()

    async def refresh(
        self, ports: Mapping[int, int], proxy: ProxyControl, listening: ListeningPorts, now: float
    ) -> None:
        """Look at every published rule set. `now` is the event loop's time in seconds."""
        self._ready &= ports.keys()
        self._carried &= ports.keys()
        unready = ports.keys() - self._ready
        accepted = {key for key in unready if proxy.acceptance(key) is Acceptance.ACCEPTED}
        if candidates := accepted | (self._carried & unready):
            there = await listening()
            self._ready |= {key for key in candidates if ports[key] in there}
        self._carried.clear()
        unready -= self._ready
        self._refused = {key for key in unready if proxy.acceptance(key) is Acceptance.REFUSED}
        self._since = {key: self._since.get(key, now) for key in unready}

    def unready(self, rule_sets: Iterable[RuleSet], proxy: ProxyControl) -> dict[str, str]:
        """Those of them that the proxy does not serve as they are, by name, with what it says."""
        said = ((one, proxy.acceptance(one.id)) for one in rule_sets)
        return {
            one.name: answer.value
            for one, answer in said
            if one.id not in self._ready or answer is not Acceptance.ACCEPTED
        }

    def waiting(self, now: float, patience: float) -> frozenset[int]:
        """Rule sets that are awaited for less than `patience` seconds: worth holding something back for."""
        return frozenset(rule_set for rule_set, since in self._since.items() if now - since < patience)

    @property
    def refused(self) -> frozenset[int]:
        """Rule sets without a listener that the proxy refused: waiting won't help, a refusal changes nothing."""
        return frozenset(self._refused)

    def next_deadline(self, now: float, patience: float) -> float | None:
        """When the patience with the oldest awaited rule set ends, None when none is awaited with patience."""
        deadlines = [since + patience for since in self._since.values() if now - since < patience]
        return min(deadlines, default=None)
