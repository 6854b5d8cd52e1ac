"""Time limits of the self-test's process. What they end is named by whoever set them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

#: Seconds for the node to be built, of which a busy machine may take many for the compiler, and for taking it away.
BUILDING, CLOSING = 120.0, 10.0
#: Seconds for one check of one class by one version of IP, and for all checks.
CHECK, CHECKS = 8.0, 60.0
#: Seconds between two alarms behind the first, which may have come where nothing can be raised.
_AGAIN = 1.0


class OutOfTimeError(BaseException):
    """What was to be done took too long. No Exception: nothing that goes on after errors may catch it."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in this thread, the first one, after so long, whatever it waits for. One at a time."""

    def over(_signal: int, _frame: object) -> None:
        raise OutOfTimeError(f"not done after {seconds:g} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
