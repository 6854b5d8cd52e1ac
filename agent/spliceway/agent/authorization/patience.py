"""What has failed, or was edited, and when it is tried again: each time later. Pure but for the clock that is given."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import msgspec

from spliceway.policy.istio.rollout import Name


class _Try(msgspec.Struct, frozen=True):
    until: float
    tries: int
    why: str


class Patience:
    """By object. Times are the loop's, in seconds."""

    def __init__(self, pause: tuple[float, float], peace: float) -> None:
        """`pause`: the first, and the longest; after `peace` without another time it counts as the first."""
        self._pause = pause
        self._peace = peace
        self._found: dict[Name, _Try] = {}

    def __repr__(self) -> str:
        return f"Patience({len(self._found)})"

    def put(self, name: Name, now: float, why: str = "", least: float = 0.0) -> None:
        """It happened; it is not to be tried before a while has passed, `least` seconds at any rate."""
        before = self._found.get(name)
        tries = before.tries + 1 if before is not None and now - before.until < self._peace else 0
        first, most = self._pause
        pause = min(most, first * 2.0 ** min(tries, 16)) * random.uniform(0.75, 1.0)
        self._found[name] = _Try(now + max(pause, least), tries, why)

    def forget(self, name: Name) -> None:
        """It is well."""
        self._found.pop(name, None)

    def waiting(self, now: float) -> Mapping[Name, str]:
        """What is not to be tried now, and why."""
        return {name: one.why for name, one in self._found.items() if one.until > now}

    def all(self) -> Mapping[Name, str]:
        """What has happened to any, be it to be tried now or not, and why."""
        return {name: one.why for name, one in self._found.items()}

    def next(self, now: float) -> float:
        """When the first of these may be tried; 0: nothing waits."""
        return min((one.until for one in self._found.values() if one.until > now), default=0.0)

    def sweep(self, now: float) -> None:
        """Forget what has been at peace."""
        self._found = {name: one for name, one in self._found.items() if now - one.until < self._peace}


def crowded(waiting: Mapping[Name, str], most: int) -> dict[str, str]:
    """Namespaces in which so many objects wait, and why: there it is no matter of the objects."""
    count = Counter(namespace for namespace, _name in waiting)
    return {namespace: why for (namespace, _name), why in waiting.items() if count[namespace] >= most}
