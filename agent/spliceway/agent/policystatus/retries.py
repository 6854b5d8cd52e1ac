"""What could not be written: when it is tried again, and in which turn. Pure but for the clock that is given.

One namespace's webhook can have all writes there fail, each after seconds. So what is new elsewhere comes first; what
fails again has a tenth of the time at most.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

import msgspec

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.naming import status_name

#: After so many that fail again, or so many seconds of it, the others wait; for so many times as long as these took.
_MOST_AGAIN, _LONG, _REST = 3, 2.0, 9.0


class _Try(msgspec.Struct, frozen=True):
    until: float = 0.0
    tries: int = 0
    why: str = ""


_NONE = _Try()


class Retries:
    """By policy. Times are the loop's, in seconds."""

    def __init__(self, pause: tuple[float, float]) -> None:
        """`pause`: the first, and the longest."""
        self._pause = pause
        self._found: dict[Key, _Try] = {}
        self._bad: set[str] = set()  # namespaces in which something failed
        self._rests_until = self._took = 0.0
        self._again = 0  # failed in this turn

    def __repr__(self) -> str:
        return f"Retries({len(self._found)}, namespaces={sorted(self._bad)})"

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    @property
    def error(self) -> str:
        """How many can't be written, and why one of them; nothing when all could."""
        failed = sorted((key, one.why) for key, one in self._found.items() if one.why)
        if not failed:
            return ""
        (key, why), more = failed[0], len(failed) - 1
        return f"the status of {' '.join(key)} can't be written: {why}" + (f" (and {more} more)" if more else "")

    def waits(self, key: Key, now: float) -> bool:
        """Whether it is not to be tried yet."""
        return now < self._found.get(key, _NONE).until

    def tries(self, key: Key) -> int:
        """How often it failed in a row."""
        return self._found.get(key, _NONE).tries

    def is_behind(self, key: Key) -> bool:
        """Whether it comes after all others: it failed, or something did in its namespace."""
        return self.tries(key) > 0 or status_name(key)[1] in self._bad

    def ordered(self, keys: Iterable[Key], is_quiet: Callable[[Key], bool]) -> list[Key]:
        """What is not behind comes first, then what is not quiet; of what failed, the one that waits longest."""

        def turn(key: Key) -> tuple[bool, bool, bool, float]:
            one = self._found.get(key, _NONE)
            return self.is_behind(key), one.tries > 0, is_quiet(key), one.until

        return sorted(keys, key=turn)

    def begin(self) -> None:
        """The turn of those behind begins."""
        self._again, self._took = 0, 0.0

    def is_over(self, now: float) -> bool:
        """Whether the turn of those behind is over, or not due yet."""
        return now < self._rests_until or self._again >= _MOST_AGAIN or self._took > _LONG

    def end(self, now: float) -> None:
        """No more are tried in this turn."""
        if self._again:
            self._rests_until = now + min(self._took * _REST, self._pause[1])
        self._bad = {status_name(key)[1] for key, one in self._found.items() if one.tries}

    def later(self, keys: Iterable[Key], until: float = 0.0) -> None:
        """These are to be looked at then, whatever is said of them until then."""
        for key in keys:
            self._found[key] = msgspec.structs.replace(self._found.get(key, _NONE), until=until)

    def put(self, key: Key, now: float, why: str, *, took: float, least: float = 0.0) -> None:
        """It failed, and is tried again when a while has passed, `least` seconds at any rate. `why`: if it is told."""
        tries = self.tries(key)
        first, most = self._pause
        pause = max(least, min(most, first * 2.0 ** min(tries, 16)))
        self._found[key] = _Try(now + pause, tries + 1, why)
        self._bad.add(status_name(key)[1])
        self._again += 1
        self._took += took

    def forget(self, key: Key) -> None:
        """It was written."""
        self._found.pop(key, None)

    def keep(self, keys: Container[Key]) -> None:
        """All others are no more."""
        self._found = {key: one for key, one in self._found.items() if key in keys}
