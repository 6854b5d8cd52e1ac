"""Reading a prober's answers: when was the first question judged by the edited policy? Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

#: So many answers of the new kind in a row mean that the edit is in force.
SETTLED = 3


class Attempt(msgspec.Struct, frozen=True, order=True):
    """One question: `start` in nanoseconds of CLOCK_MONOTONIC, whether it was let through, and the client's port."""

    start: int
    ok: bool
    port: int


def parse(line: str) -> Attempt:
    """One line of the prober. Raises ValueError."""
    start, outcome, port = line.split()
    return Attempt(int(start), {"ok": True, "denied": False}[outcome], int(port))


def settled(attempts: Iterable[Attempt], *, allowed: bool) -> bool:
    """Whether the latest answers are all of one kind, `allowed` or denied."""
    latest = sorted(attempts)[-SETTLED:]
    return len(latest) == SETTLED and all(attempt.ok is allowed for attempt in latest)


def judged_anew(attempts: Iterable[Attempt], edited: int, *, allowed: bool) -> Attempt | None:
    """The first attempt that was judged by the policy that was put in place at `edited`; None: not yet.

    Loosened: the first that was let through. Tightened: the first denied one after which none was let through; a
    question that merely got lost is followed by others that are answered.
    """
    later = sorted(attempt for attempt in attempts if attempt.start >= edited)
    if allowed:
        return next((attempt for attempt in later if attempt.ok), None)
    return next((attempt for attempt in _after_last_ok(later) if not attempt.ok), None)


def _after_last_ok(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    last = max((index for index, attempt in enumerate(attempts) if attempt.ok), default=-1)
    return attempts[last + 1 :]
