"""Routes, clusters, listeners and policies change at random under load: each answer is that of a state in force."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from spliceway.xds.server.server import XdsServer
from support.churn import PATHS, REQUESTS, RULE_SETS, SERVERS, WEBS, State, changed, first_state
from support.churnjudge import Judge, Timeline
from support.churnload import Checker, Options, Record, Target, from_netns
from support.churnwrk import Result, Wrk, start_nginx
from support.churnxds import SERVER_PORT, WEB_ADDRESS, WEB_PORT, snapshot_of
from support.envoy import NODE_ID, EnvoyNode, port_of
from support.steered import SERVER, SteeredNet

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

CHANGES = int(os.environ.get("SPLICEWAY_CHURN_CHANGES", "250"))
SEED = int(os.environ.get("SPLICEWAY_CHURN_SEED", "1"))
#: Between the ACK, which Envoy's main thread sends, and the moment in which its workers see the change, on a machine
#: where wrk, servers and checkers want all CPUs. It must be rare, too.
TOLERANCE = 0.1
_ORIGIN_PORT = 7080
_PLAIN = b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n"


class ChurnNode(EnvoyNode):
    """Envoy as the agent starts it, with more than policy."""

    arguments = ("--drain-time-s", "5", "--drain-strategy", "immediate")
    delta = True

    def new_server(self) -> XdsServer:
        return XdsServer(self.bootstrap.xds_socket, check=lambda _snapshot: None)

    def document(self) -> dict[str, Any]:
        made = super().document()
        made["dynamic_resources"]["ads_config"]["api_type"] = "DELTA_GRPC" if self.delta else "GRPC"
        return made


@contextlib.asynccontextmanager
async def churn_node(directory: Path, api: str) -> AsyncIterator[ChurnNode]:
    """Envoy, seven servers behind it."""
    servers = {f"server-{number}": SERVER_PORT + number for number in SERVERS}
    with SteeredNet(_ORIGIN_PORT) as net:
        node = ChurnNode(directory, net, concurrency=2)
        node.delta = api == "delta"
        with node.upstream:
            nginx = start_nginx(directory, from_netns(net.server), servers | {"origin": _ORIGIN_PORT})
            try:
                await node.start()
                yield node
            finally:
                await node.stop()
                nginx.terminate()
                nginx.wait()


def targets() -> Iterator[Target]:
    for number in RULE_SETS:
        heads = tuple(
            b"%b %b HTTP/1.1\r\n%b\r\n"
            % (request.method, request.path, b"".join(b"%b: %b\r\n" % pair for pair in request.headers))
            for request in REQUESTS
        )
        addresses = tuple((SERVER[version], port_of(number)) for version in SERVER)
        yield Target(f"policy-{number}", addresses, heads)
    for number in WEBS:
        heads = tuple(_PLAIN % f"/p{path}/x".encode() for path in PATHS)
        yield Target(f"web-{number}", ((WEB_ADDRESS, WEB_PORT + number),), heads)


async def listening(node: EnvoyNode, ports: set[int]) -> None:
    for _ in range(500):
        if ports <= await asyncio.to_thread(netns.call, node.net.node, netns.listening_ports):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not listening on {ports}:\n{node.log()}")


async def set_state(node: EnvoyNode, timeline: Timeline, state: State, wait: float = 10.0) -> float:
    """Serve a state; returns when it is in force. Seconds that took."""
    number = len(timeline.states)
    snapshot = snapshot_of(state, node.settings, f"{number}", node.server.snapshot(NODE_ID))
    begin = time.monotonic()
    timeline.begin(state, begin)
    node.server.set_snapshot(NODE_ID, snapshot)
    await node.server.wait_acked(NODE_ID, wait)
    acked = time.monotonic()
    before = ports_of(timeline.states[-2]) if number else set()
    if ports_of(state) - before:
        await listening(node, ports_of(state))
        acked = time.monotonic()
    timeline.done(acked)
    return acked - begin


def ports_of(state: State) -> set[int]:
    return {port_of(one) for one in state.rule_sets} | {WEB_PORT + one for one in state.webs}


@contextlib.contextmanager
def load(node: EnvoyNode) -> Iterator[tuple[Checker, dict[str, Wrk]]]:
    """Checkers of every target, and wrk at the rule set and the listener that always stay."""
    enter = from_netns(node.net.client)
    options = Options(tuple(targets()), workers=6, pause=0.002, seed=SEED)
    with Checker(enter, options) as checker:
        wrks = {
            "policy": Wrk(node.directory, enter, f"http://{SERVER[4]}:{port_of(1)}", ["/a", "/a/1", "/b?q=1", "/c"]),
            "web": Wrk(node.directory, enter, f"http://{WEB_ADDRESS}:{WEB_PORT}", ["/p0/x"]),
        }
        try:
            yield checker, wrks
        finally:
            for wrk in wrks.values():
                wrk.kill()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("api", ["sotw", "delta"])
def test_churn_of_everything(tmp_path: Path, api: str) -> None:
    random, timeline = Random(SEED), Timeline()
    done: Counter[str] = Counter()
    times: list[float] = []

    async def work() -> tuple[list[Record], dict[str, Result]]:
        async with churn_node(tmp_path, api) as node:
            state = first_state(random)
            await set_state(node, timeline, state)
            with load(node) as (checker, wrks):
                await asyncio.sleep(0.5)
                for _ in range(CHANGES):
                    state = changed(random, state, done)
                    times.append(await set_state(node, timeline, state))
                    await asyncio.sleep(random.choice((0, 0, 0.005, 0.03)))
                records = await asyncio.to_thread(checker.stop)
                return records, {name: await asyncio.to_thread(wrk.stop) for name, wrk in wrks.items()}

    print(f"seed {SEED}")
    begin = time.monotonic()
    records, wrks = asyncio.run(work())
    judge = Judge(timeline, TOLERANCE)
    for record in records:
        judge.judge(record)
    times.sort()
    print(f"{CHANGES} changes in {time.monotonic() - begin:.1f} s ({api}): {dict(done)}")
    print(f"until in force: p50 {times[len(times) // 2] * 1e3:.1f} ms, max {times[-1] * 1e3:.1f} ms")
    print(f"{len(records)} requests: {dict(sorted(judge.counts.items()))}")
    print(f"late: {len(judge.late)}, at most {max(judge.late, default=0) * 1e3:.1f} ms")
    print(f"wrk: {wrks}")
    assert not judge.wrong, "\n".join(judge.wrong[:10])
    assert len(judge.late) <= len(records) // 1000, judge.late
    assert all(wrk.errors == 0 for wrk in wrks.values()), wrks
    assert wrks["policy"].statuses.keys() <= {200, 403}, wrks
    assert wrks["web"].statuses.keys() == {200}, wrks
    assert len(records) > 5 * CHANGES, "too few requests to mean anything"
