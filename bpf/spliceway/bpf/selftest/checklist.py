"""All checks in their order, and running them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from spliceway.bpf.errors import DatapathError
from spliceway.bpf.selftest.checks import ends, memory, order, reading
from spliceway.bpf.selftest.limits import CHECK, CHECKS, OutOfTimeError, limit
from spliceway.bpf.selftest.report import Check, Result, Side
from spliceway.bpf.selftest.site import Site
from spliceway.bpf.selftest.talk import BadError, KnownError, NotRunError

_ALL = dict.fromkeys(Side, (4, 6))
_ONE_EACH = {Side.CLIENTS: (4,), Side.SERVERS: (6,)}


class Item(NamedTuple):
    """One check. `row`: of the list of pitfalls, 0: of what the kernel's own selftests try.

    `versions`: those of IP by which it is made. Checks that have to wait for TCP to send again are made once a side.
    """

    name: str
    row: int
    function: Callable[[Site, Side, int], str]
    versions: Mapping[Side, tuple[int, ...]] = _ALL


ITEMS = (
    Item("order", 1, order.order),
    Item("fin", 16, ends.fin),
    Item("half-close", 23, ends.half_close),
    Item("blocked-reader", 23, ends.blocked_reader),
    Item("reset", 16, ends.reset),
    Item("epoll-level", 15, reading.epoll_level),
    Item("epoll-edge", 15, reading.epoll_edge),
    Item("fionread", 2, reading.fionread),
    Item("peek", 0, reading.peek),
    Item("waitall", 18, reading.waitall),
    Item("splice", 3, reading.splice),
    Item("measure", 5, memory.measure),
    Item("slow-reader", 5, memory.slow_reader, _ONE_EACH),
    Item("leave", 6, memory.leaving, _ONE_EACH),
    Item("dual-stack", 13, order.dual_stack, dict.fromkeys(Side, (4,))),
    Item("port-reuse", 14, order.port_reuse),
)

#: What weighs more stands for the whole check.
_WEIGHT = (Result.OK, Result.NOT_RUN, Result.KNOWN, Result.BAD)


class Run:
    """One run of the checks. `step` is told each one before it begins: name, class and version of IP."""

    def __init__(self, site: Site, step: Callable[[str], None] = lambda _: None) -> None:
        self._site, self._step = site, step
        self._end = time.monotonic() + CHECKS
        self._hung: dict[Side, str] = {}
        self._broken: set[str] = set()

    def all(self, names: Collection[str] = ()) -> Iterator[Check]:
        """Run every check, or those of these names, for both classes. Raises OutOfTimeError when all take too long."""
        for item in ITEMS:
            if not names or item.name in names:
                yield self._one(item)

    def _one(self, item: Item) -> Check:
        """Run one check. What goes wrong is bad, whatever it is."""
        began = time.monotonic()
        found = [
            (side, version, *self._outcome(item, side, version)) for side in Side for version in item.versions[side]
        ]
        worst = max((result for _, _, result, _ in found), key=_WEIGHT.index)
        texts: dict[str, list[str]] = {}
        for side, version, result, text in found:
            if result is worst and text:
                texts.setdefault(text, []).append(f"{side} IPv{version}")
        if worst in (Result.OK, Result.KNOWN):
            told = next(iter(texts), "")
        else:
            told = "; ".join(f"{text} ({', '.join(where)})" for text, where in texts.items())
        off = tuple(side for side in Side if any(s is side and r is Result.BAD for s, _, r, _ in found))
        seconds = round(time.monotonic() - began, 3)
        return Check(item.name, item.row, worst, told, off, seconds, broken=item.name in self._broken)

    def _outcome(self, item: Item, side: Side, version: int) -> tuple[Result, str]:
        if side in self._hung:  # the class is out already, and each of them may hang as well
            return Result.NOT_RUN, f"{self._hung[side]} was not done in time"
        if (left := self._end - time.monotonic()) <= 0:
            raise OutOfTimeError(f"the checks were not done after {CHECKS:g} s")
        self._step(f"{item.name} ({side} IPv{version})")
        try:
            with limit(min(CHECK, left)):
                return Result.OK, item.function(self._site, side, version)
        except KnownError as error:
            return Result.KNOWN, str(error)
        except NotRunError as error:
            return Result.NOT_RUN, str(error)
        except OutOfTimeError as error:
            self._hung[side] = item.name
            self._broken.add(item.name)
            return Result.BAD, str(error)
        except (BadError, DatapathError) as error:
            return Result.BAD, str(error)
        except OSError as error:
            return Result.BAD, f"{type(error).__name__}: {error.strerror or error}"
        except (Exception, SystemExit) as error:
            traceback.print_exc()  # a fault of the check's: it proves nothing, and the others go on
            self._broken.add(item.name)
            return Result.BAD, f"internal error: {error!r}"
