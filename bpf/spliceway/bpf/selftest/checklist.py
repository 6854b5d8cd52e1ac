"""All checks in their order, and running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from spliceway.bpf.errors import DatapathError
from spliceway.bpf.selftest.checks import ends, memory, order, reading
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


def run_all(site: Site, names: Collection[str] = ()) -> Iterator[Check]:
    """Run every check, or those of these names, for both classes of connections."""
    for item in ITEMS:
        if not names or item.name in names:
            yield run_one(site, item)


def run_one(site: Site, item: Item) -> Check:
    """Run one check. It never raises: what goes wrong is bad."""
    began = time.monotonic()
    found = [(side, version, *_outcome(site, item, side, version)) for side in Side for version in item.versions[side]]
    worst = max((result for _, _, result, _ in found), key=_WEIGHT.index)
    texts: dict[str, list[str]] = {}
    for side, version, result, text in found:
        if result is worst and text:
            texts.setdefault(text, []).append(f"{side} IPv{version}")
    if worst in (Result.OK, Result.KNOWN):
        told = next(iter(texts))
    else:
        told = "; ".join(f"{text} ({', '.join(where)})" for text, where in texts.items())
    off = tuple(side for side in Side if any(s is side and r is Result.BAD for s, _, r, _ in found))
    return Check(item.name, item.row, worst, told, off, round(time.monotonic() - began, 3))


def _outcome(site: Site, item: Item, side: Side, version: int) -> tuple[Result, str]:
    try:
        return Result.OK, item.function(site, side, version)
    except KnownError as error:
        return Result.KNOWN, str(error)
    except NotRunError as error:
        return Result.NOT_RUN, str(error)
    except (BadError, DatapathError) as error:
        return Result.BAD, str(error)
    except OSError as error:
        return Result.BAD, f"{type(error).__name__}: {error.strerror or error}"
