"""Ctrl-C and SIGTERM take down what was built, once, and undisturbed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

#: Exit status of a command that was interrupted: 128 + SIGINT.
INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it the first SIGINT or SIGTERM raises KeyboardInterrupt, and later ones are ignored.

    An impatient second Ctrl-C would otherwise break off the teardown and leave namespaces behind. Must be entered in
    the main thread.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_interrupted() -> NoReturn:
    """End a command that was interrupted, once its node is down."""
    typer.echo("spliceway: interrupted; everything was taken down", err=True)
    raise typer.Exit(INTERRUPTED)
