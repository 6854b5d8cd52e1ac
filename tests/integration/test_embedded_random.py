"""Odd requests to the embedded proxy and to a real Envoy, side by side, with the same rules.

Verdict, status, reason, rule and what the server gets must be the same but for the rows of docs/proxy.md
(`support.differences`). `SPLICEWAY_PROXY_REQUESTS` sets the number (default 500; `make proxy-diff` takes 10,000),
`SPLICEWAY_PROXY_SEED` another seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from spliceway.policy.table import RuleSet
from support.differences import DIFFERENCES, Difference, explained, same
from support.differential import RECORDED, Outcome, Recorder, ask
from support.embeddednode import EmbeddedNode
from support.envoy import EnvoyNode, envoy_node
from support.oddrequests import TAG, odd_requests
from support.oddsets import CHANGED_BOTH, OPEN, PUBLIC, WEIGHTS, odd_sets

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(1800)]

REQUESTS = int(os.environ.get("SPLICEWAY_PROXY_REQUESTS", "500"))
SEED = int(os.environ.get("SPLICEWAY_PROXY_SEED", "1"))
_BATCH = 200
_RANDOM_SETS = 12
#: What the embedded proxy relays unread and Envoy refuses, where all rules are in audit.
UNREAD = {("allow", reason) for reason in ("http-malformed", "http-head-too-large", "http-timeout", "http-2")}

Work = list[tuple[int, int, bytes]]
Pair = tuple[Outcome, Outcome]


class Sides:
    """The embedded proxy and Envoy, with the same rules, and a server behind each."""

    def __init__(self, directory: Path, sets: Iterable[RuleSet]) -> None:
        self._directory, self._sets = directory, tuple(sets)
        self._stack = contextlib.AsyncExitStack()
        self._sides: list[tuple[EnvoyNode, Recorder]] = []

    async def __aenter__(self) -> Sides:
        async with contextlib.AsyncExitStack() as stack:
            for kind in (EmbeddedNode, EnvoyNode):
                folder = self._directory / kind.what
                folder.mkdir()
                node = await stack.enter_async_context(envoy_node(folder, redirect_to=RECORDED, kind=kind))
                server = await stack.enter_async_context(Recorder(node))
                self._sides.append((node, server))
                await node.apply(*self._sets)
                # Entries that Envoy writes before its access log has a stream may be lost.
                await ask(node, server, [(-1, OPEN, b"GET / HTTP/1.1\r\nHost: api\r\n%b: -1\r\n\r\n" % TAG)])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def ask(self, work: Work, patience: float = 1.0) -> dict[int, Pair]:
        """What the two make of these requests."""
        embedded, envoy = await asyncio.gather(*(ask(node, server, work, patience) for node, server in self._sides))
        return {number: (embedded[number], envoy[number]) for number in embedded}

    @property
    def untold(self) -> list[object]:
        """What reached a server and has no request's tag."""
        return [found for _, server in self._sides for found in server.untold.items() if found[0] != b"-1"]


def test_odd_requests_get_the_same(tmp_path: Path) -> None:
    sets = odd_sets(_RANDOM_SETS, SEED)
    weights = (*WEIGHTS, *(one.id for one in sets if one.id > CHANGED_BOTH))
    requests = [(number, *one) for number, one in enumerate(odd_requests(REQUESTS, SEED, weights))]
    audited = {one.id for one in sets if not one.enforces}
    rows: Counter[str] = Counter()
    kinds: Counter[tuple[int, str]] = Counter()
    faults = []

    async def work() -> None:
        async with Sides(tmp_path, sets) as both:
            await compare(both, [one for one in requests if one[1] not in audited])
            assert not both.untold
            # What is no request reaches the server as it came there, with a tag or not.
            await compare(both, [one for one in requests if one[1] in audited])

    async def compare(both: Sides, asked: Work) -> None:
        for begin in range(0, len(asked), _BATCH):
            batch = asked[begin : begin + _BATCH]
            found = await both.ask(batch)
            for one in batch:
                if fault(one[2], *found[one[0]], rows):  # on a busy machine an answer may be late
                    found |= await both.ask([one], patience=2.0)
                    if what := fault(one[2], *found[one[0]], rows):
                        faults.append(f"rule set {one[1]}: {what}")
            kinds.update((pair[0].status, reason) for pair in found.values() for _, reason, _ in pair[0].flows[:1])

    asyncio.run(work())
    for what, count in (*kinds.most_common(), *rows.most_common()):
        print(f"{count:6} {what}")
    assert not faults, f"{len(faults)} of {REQUESTS} (seed {SEED}):\n" + "\n".join(faults[:20])
    # Otherwise the test would be about nothing.
    assert {(200, "http-allowed"), (200, "http-denied"), (403, "http-denied"), (403, "http-ambiguous")} <= set(kinds)
    assert (400, "http-malformed") in kinds
    assert len(rows) >= 8, rows


def fault(raw: bytes, embedded: Outcome, envoy: Outcome, rows: Counter[str]) -> str:
    """What no row explains, empty when nothing; `rows` counts those that do."""
    if same(embedded, envoy):
        return ""
    if embedded.flows[:1] and embedded.flows[0][:2] in UNREAD:
        rows["no request, in audit"] += 1
        return ""
    if row := explained(raw, embedded, envoy):
        rows[row.request] += 1
        return ""
    return f"{raw[:1000]!r}\n  embedded {embedded}\n  envoy {envoy}"


def test_each_row_is_a_difference(tmp_path: Path) -> None:
    """A row that is not true any more must go."""
    tagged = [
        (number, OPEN if b"/denied" not in row.example else PUBLIC, _tagged(row.example, number))
        for number, row in enumerate(DIFFERENCES)
    ]

    async def work() -> None:
        async with Sides(tmp_path, odd_sets(0, SEED)) as both:
            found = await both.ask(tagged, patience=2.0)
            for number, row in enumerate(DIFFERENCES):
                if same(*found[number]) or row not in _rows(row.example, *found[number]):
                    untrue.append((row.request, *found[number]))

    untrue: list[object] = []
    asyncio.run(work())
    assert not untrue


def _tagged(raw: bytes, number: int) -> bytes:
    end = b"\r\n" if b"\r\n" in raw else b"\n"
    line, _, rest = raw.partition(end)
    return line + end + b"%b: %d" % (TAG, number) + end + rest


def _rows(raw: bytes, *pair: Outcome) -> list[Difference]:
    """All rows that cover it, not only the first."""
    return [row for row in DIFFERENCES if explained(raw, *pair, rows=(row,))]
