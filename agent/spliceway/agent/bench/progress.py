"""One line on stderr for each step, so that stdout has the result and nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

#: Takes one line of text.
Say = Callable[[str], None]


def progress() -> Say:
    """Make a printer of progress lines with the seconds since now in front."""
    begin = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - begin:6.1f} s  {text}\n")
        sys.stderr.flush()

    return say
