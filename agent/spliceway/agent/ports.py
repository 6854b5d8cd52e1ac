"""Listener ports: one for each rule set, the same for as long as the rule set lives, reused as late as possible.

Pure. A port that changes its rule set soon could meet packets and sockets of its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spliceway.agent.errors import PortsExhaustedError


class PortAllocator:
    """Hands out ports of one range and remembers in which order they became free."""

    def __init__(
        self, first: int, last: int, *, assigned: Mapping[int, int] | None = None, freed: Iterable[int] = ()
    ) -> None:
        """Take over what an earlier agent assigned; what lies outside the range, or comes twice, is forgotten."""
        self._first = first
        self._last = last
        self._ports: dict[int, int] = {}
        taken: set[int] = set()
        for rule_set, port in sorted((assigned or {}).items()):
            if first <= port <= last and port not in taken:
                self._ports[rule_set] = port
                taken.add(port)
        # Insertion order is the order of freeing: dict as an ordered set.
        self._freed = dict.fromkeys(port for port in freed if first <= port <= last and port not in taken)

    def __repr__(self) -> str:
        return f"PortAllocator({self._first}-{self._last}, used={len(self._ports)}, freed={len(self._freed)})"

    @property
    def ports(self) -> dict[int, int]:
        """Rule set id → port, a copy."""
        return dict(self._ports)

    @property
    def freed(self) -> tuple[int, ...]:
        """Ports that were used, the longest free first."""
        return tuple(self._freed)

    def assign(self, rule_sets: Iterable[int]) -> dict[int, int]:
        """Give every rule set its port and return all of these. Raises PortsExhaustedError and changes nothing."""
        wanted = sorted(set(rule_sets))
        missing = [rule_set for rule_set in wanted if rule_set not in self._ports]
        fresh = self._pick(len(missing))
        if len(fresh) < len(missing):
            have = self._last - self._first + 1
            raise PortsExhaustedError(
                f"{len(self._ports) + len(missing)} rule sets need a listener port each, and proxy.listenerPorts has "
                f"{have}: widen it, or write fewer different HTTP policies for this node"
            )
        for rule_set, port in zip(missing, fresh, strict=False):
            self._ports[rule_set] = port
            self._freed.pop(port, None)
        return {rule_set: self._ports[rule_set] for rule_set in wanted}

    def release(self, keep: Iterable[int]) -> None:
        """Free the ports of all rule sets but these."""
        kept = set(keep)
        for rule_set in sorted(self._ports.keys() - kept):
            self._freed[self._ports.pop(rule_set)] = None

    def replace(self, rule_set: int) -> int:
        """Give a rule set another port: something else on the node has its port. Raises PortsExhaustedError."""
        fresh = self._pick(1)
        if not fresh:
            raise PortsExhaustedError(f"no other port is free for rule set {rule_set}: widen proxy.listenerPorts")
        self._freed.pop(fresh[0], None)
        self._freed[self._ports[rule_set]] = None
        self._ports[rule_set] = fresh[0]
        return fresh[0]

    def _pick(self, count: int) -> list[int]:
        """Up to `count` free ports: those never used first, then the longest free."""
        taken = set(self._ports.values())
        unused = (port for port in range(self._first, self._last + 1) if port not in taken and port not in self._freed)
        picked = [port for port, _ in zip(unused, range(count), strict=False)]
        return picked + list(self._freed)[: count - len(picked)]
