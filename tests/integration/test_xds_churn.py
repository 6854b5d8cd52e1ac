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

import msgspec
import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.node import Node
from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.http import HttpRequest
from spliceway.xds.resources.consistency import check_references
from spliceway.xds.server.server import XdsServer
from support import churnpolicy
from support.agent import cluster_of
from support.churn import PATHS, REQUESTS, RULE_SETS, SERVERS, WEBS, Pool, State, changed, first_state
from support.churnjudge import Judge, Timeline
from support.churnload import Checker, Options, Record, Target, in_netns
from support.churnwrk import Result, Wrk, start_nginx
from support.churnxds import SERVER_PORT, WEB_ADDRESS, WEB_PORT, snapshot_of
from support.envoy import NODE_ID, EnvoyNode, port_of
from support.envoyworkers import wait_workers
from support.node import server_manifest
from support.steered import SERVER, SteeredNet
from support.waiting import LIMIT, until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

CHANGES = int(os.environ.get("SPLICEWAY_CHURN_CHANGES", "100"))
SEED = int(os.environ.get("SPLICEWAY_CHURN_SEED", "1"))
#: Between the ACK, which Envoy's main thread sends, and the moment in which its workers see the change. They are waited
#: for (`wait_workers`), so what is later must be rare.
TOLERANCE = 0.1
_ORIGIN_PORT = 7080
_PLAIN = b"GET %b HTTP/1.1\r\nHost: web\r\n\r\n"


class ChurnNode(EnvoyNode):
    """Envoy as the agent starts it, with more than policy."""

    arguments = ("--drain-time-s", "5", "--drain-strategy", "immediate")

    def new_server(self) -> XdsServer:
        return XdsServer(self.bootstrap.xds_socket, check=check_references)


@contextlib.asynccontextmanager
async def churn_node(directory: Path, api: str) -> AsyncIterator[ChurnNode]:
    """Envoy, seven servers behind it."""
    servers = {f"server-{number}": SERVER_PORT + number for number in SERVERS}
    with SteeredNet(_ORIGIN_PORT) as net:
        node = ChurnNode(directory, net, concurrency=2)
        node.bootstrap = msgspec.structs.replace(node.bootstrap, delta=api == "delta")
        with node.upstream:
            nginx = start_nginx(directory, in_netns(net.server), servers | {"origin": _ORIGIN_PORT})
            try:
                await node.start()
                yield node
            finally:
                await node.stop()
                nginx.terminate()
                nginx.wait()


def targets() -> Iterator[Target]:
    for number in RULE_SETS:
        heads = tuple(map(raw, REQUESTS))
        addresses = tuple((SERVER[version], port_of(number)) for version in SERVER)
        yield Target(f"policy-{number}", addresses, heads)
    for number in WEBS:
        heads = tuple(_PLAIN % f"/p{path}/x".encode() for path in PATHS)
        yield Target(f"web-{number}", ((WEB_ADDRESS, WEB_PORT + number),), heads)


async def set_state(node: EnvoyNode, timeline: Timeline[State], state: State) -> float:
    """Serve a state; returns when it is in force. Seconds that took."""
    number = len(timeline.states)
    snapshot = snapshot_of(state, node.settings, f"{number}", node.server.snapshot(NODE_ID))
    begin = time.monotonic()
    timeline.begin(state, begin)
    node.server.set_snapshot(NODE_ID, snapshot)
    await node.server.wait_acked(NODE_ID, LIMIT)
    before = ports_of(timeline.states[-2]) if number else set()
    if ports_of(state) - before:
        await node.listening(ports_of(state))
    await asyncio.to_thread(wait_workers, node.pid)
    acked = time.monotonic()
    timeline.done(acked)
    return acked - begin


def ports_of(state: State) -> set[int]:
    return {port_of(one) for one in state.rule_sets} | {WEB_PORT + one for one in state.webs}


@contextlib.contextmanager
def load(node: EnvoyNode) -> Iterator[tuple[Checker, dict[str, Wrk]]]:
    """Checkers of every target, and wrk at the rule set and the listener that always stay."""
    spawn = in_netns(node.net.client)
    options = Options(tuple(targets()), workers=6, pause=0.002, seed=SEED)
    with Checker(spawn, options) as checker:
        wrks = {
            "policy": Wrk(node.directory, spawn, f"http://{SERVER[4]}:{port_of(1)}", ["/a", "/a/1", "/b?q=1", "/c"]),
            "web": Wrk(node.directory, spawn, f"http://{WEB_ADDRESS}:{WEB_PORT}", ["/p0/x"]),
        }
        try:
            yield checker, wrks
        finally:
            for wrk in wrks.values():
                wrk.kill()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("api", ["sotw", "delta"])
def test_churn_of_everything(tmp_path: Path, api: str) -> None:
    random, timeline = Random(SEED), Timeline[State]()
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
    print(f"{CHANGES} changes in {time.monotonic() - begin:.1f} s ({api}): {dict(done)}")
    print_figures(times, records, judge.counts, judge.late)
    print(f"wrk: {wrks}")
    assert not judge.wrong, "\n".join(judge.wrong[:10])
    assert len(judge.late) <= len(records) // 1000, judge.late
    assert all(wrk.errors == 0 for wrk in wrks.values()), wrks
    assert wrks["policy"].statuses.keys() <= {200, 403}, wrks
    assert wrks["web"].statuses.keys() == {200}, wrks
    assert len(records) > 5 * CHANGES, "too few requests to mean anything"


@pytest.mark.parametrize("api", ["sotw", "delta"])
def test_a_cluster_takes_the_place_of_another(tmp_path: Path, api: str) -> None:
    """One change each: the old cluster keeps its endpoints until no route goes to it any more."""
    timeline = Timeline[State]()
    pools = [{number: Pool(0, (number + 1,)), 2: Pool(0, (3,))} for number in (0, 1)]

    async def work() -> Result:
        async with churn_node(tmp_path, api) as node:
            states = [State({}, {}, {0: 0}, {0: (number,)}, pools[number]) for number in (0, 1)]
            await set_state(node, timeline, states[0])
            url = f"http://{WEB_ADDRESS}:{WEB_PORT}"
            wrk = Wrk(tmp_path, in_netns(node.net.client), url, ["/p0/x"], connections=16, pause=0)
            try:
                for number in range(1, 100):
                    await set_state(node, timeline, states[number % 2])
                return await asyncio.to_thread(wrk.stop)
            finally:
                wrk.kill()

    counted = asyncio.run(work())
    assert counted.errors == 0, counted
    assert counted.statuses.keys() == {200}, counted


def raw(request: HttpRequest) -> bytes:
    """The head as it is sent."""
    lines = b"".join(b"%b: %b\r\n" % pair for pair in request.headers)
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method, request.path, lines)


@contextlib.contextmanager
def running_agent(node: Node, api: str) -> Iterator[AgentProcess]:
    """An agent whose Envoy asks by this variant of the protocol."""
    # Without the self-test, which is another test's, and takes minutes on a busy machine.
    agent = start_agent(node, {"proxy": {"kind": "envoy", "apiType": api}, "splice": {"mode": "force"}})
    try:
        yield agent
    finally:
        agent.stop()


class Files:
    """Policy files of a node with an agent: written, and awaited."""

    def __init__(self, node: Node, agent: AgentProcess) -> None:
        self._directory, self._client = node.info.policies, agent.client
        self._wanted = self._client.get("status")["policy"]["wanted"]

    def write(self, name: str, policy: churnpolicy.Policy | None) -> None:
        """Replace, add or remove a file."""
        path = self._directory / f"{name}.json"
        if policy is None:
            path.unlink()
            return
        beside = path.with_name(f".{name}")
        beside.write_text(policy.document(name))
        beside.rename(path)

    def wait_in_force(self) -> None:
        """Return once the last edit is in force, in the kernel and in the proxy."""

        def in_force() -> bool:
            policy = self._client.get("status")["policy"]
            return policy["wanted"] > self._wanted and policy["revision"] == policy["wanted"] and not policy["waiting"]

        until(in_force, told=lambda: self._client.get("status")["policy"])
        status = self._client.get("status")
        wait_workers(status["proxy"]["process"]["pid"])
        self._wanted = status["policy"]["wanted"]


@contextlib.contextmanager
def pod_load(testbed: Testbed, directory: Path) -> Iterator[tuple[list[Checker], Wrk]]:
    """A checker in each client, and wrk in a pod of its own."""
    with contextlib.ExitStack() as stack:
        checkers = []
        for client in churnpolicy.CLIENTS:
            targets = tuple(
                Target(
                    f"{client} {server}",
                    tuple((ip, 80) for ip in testbed.pod(server).ips),
                    tuple(map(raw, churnpolicy.REQUESTS)),
                )
                for server in churnpolicy.SERVERS
            )
            options = Options(targets, workers=8, pause=0.004, seed=SEED)
            checkers.append(stack.enter_context(Checker(testbed.pod(client).spawn, options)))
        url = f"http://{testbed.pod(churnpolicy.STEADY).address(4)}"
        wrk = Wrk(directory, testbed.pod("wrk").spawn, url, ["/open", "/a", "/b/1"], connections=4, pause=4)
        stack.callback(wrk.kill)
        yield checkers, wrk


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("api", ["GRPC", "DELTA_GRPC"])
def test_churn_of_policy_files(tmp_path: Path, api: str) -> None:
    """The whole agent: files edited, and what pods see judged by the reference interpreter."""
    random, timeline = Random(SEED), Timeline[churnpolicy.State]()
    done: Counter[str] = Counter()
    times: list[float] = []
    names = ("client", "guest", "api", "shop", "steady", "wrk")
    print(f"seed {SEED}")
    with Testbed.up([server_manifest(name, {"role": name}) for name in names]) as testbed:
        pods = cluster_of(*(path.read_text() for path in testbed.node.info.manifests.glob("pods/*")))
        with running_agent(testbed.node, api) as agent:
            files = Files(testbed.node, agent)
            state = churnpolicy.first_state(random, pods)
            timeline.begin(state, time.monotonic())
            for name, policy in state.policies.items():
                files.write(name, policy)
                files.wait_in_force()
            timeline.done(time.monotonic())
            with pod_load(testbed, tmp_path) as (checkers, wrk):
                time.sleep(0.3)
                for _ in range(CHANGES):
                    name, state = churnpolicy.changed(random, state, done)
                    begin = time.monotonic()
                    timeline.begin(state, begin)
                    files.write(name, state.policies.get(name))
                    files.wait_in_force()
                    timeline.done(time.monotonic())
                    times.append(time.monotonic() - begin)
                records = [record for checker in checkers for record in checker.stop()]
                counted = wrk.stop()
            clients = agent.client.get("xds")["clients"]
        addresses = {name: testbed.pod(name).addresses for name in names}
    judge = churnpolicy.Judge(timeline, addresses, TOLERANCE)
    for record in records:
        judge.judge(record)
    print(f"{CHANGES} edits in {sum(times):.1f} s ({api}, {clients[0]['protocol']}): {dict(done)}")
    print_figures(times, records, judge.counts, judge.late)
    print(f"wrk: {counted}")
    assert not judge.wrong, "\n".join(judge.wrong[:10])
    assert len(judge.late) <= len(records) // 1000, judge.late
    assert counted.errors == 0, counted
    assert counted.statuses.keys() <= {200, 403}, counted
    assert len(records) > 5 * CHANGES, "too few requests to mean anything"


def print_figures(times: list[float], records: list[Record], counts: Counter[str], late: list[float]) -> None:
    """For people (pytest -s)."""
    times.sort()
    print(f"until in force: p50 {times[len(times) // 2] * 1e3:.1f} ms, max {times[-1] * 1e3:.1f} ms")
    print(f"{len(records)} requests: {dict(sorted(counts.items()))}")
    print(f"late: {len(late)}, at most {max(late, default=0) * 1e3:.1f} ms")
