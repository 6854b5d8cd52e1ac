"""From the rename() of an edited policy file to the first packet or request that is judged by it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from random import Random
from types import TracebackType
from typing import Any, Self

import msgspec
import yaml

from spliceway.agent.bench import machine, nginx, timeline
from spliceway.agent.bench.edits import POLICY, Subject, policy
from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.figures import Spread
from spliceway.agent.bench.load import FILES
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.run import nodes_with_agents, proxy_statuses
from spliceway.agent.bench.site import NAMESPACE, pod_manifest, require_programs
from spliceway.agent.bench.timeline import Attempt
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed.node import Node, Pod
from spliceway.agent.testbed.testbed import Testbed

#: Longest wait for an edit to show, in seconds.
EDIT_TIMEOUT = 10.0
#: How many of a prober's attempts are kept: those of some seconds.
REMEMBERED = 2000
#: Quiet time before each edit, at least and at most, in seconds.
PAUSE = (0.15, 0.25)


class Latency(msgspec.Struct, frozen=True):
    """Latencies of one kind of edit (tighten or loosen) in milliseconds; `values` in the order of the edits."""

    rule: str
    data_path: str
    protocol: str
    edit: str
    judged: str
    milliseconds: Spread
    values: tuple[float, ...]


class LatencyResult(msgspec.Struct, frozen=True):
    """All of them, and what they were measured on."""

    machine: dict[str, Any]
    latencies: list[Latency]


def run(subjects: Sequence[Subject], *, edits: int, proxy: ProxyKind, say: Say) -> LatencyResult:
    """Make `edits` edits of each kind on a virtual node of its own. Leaves nothing behind. Raises an AgentError."""
    require_programs()
    with nodes_with_agents(say, [proxy]) as (testbed, places):
        agent = places[proxy].agent
        described = machine.describe(proxy_statuses(places))
        pods = _pods(testbed, {subject.server for subject in subjects})
        found: list[Latency] = []
        for subject in subjects:
            found += _latencies(testbed.node, agent.client, pods, subject, edits, proxy)
            for each in found[-2:]:
                spread = each.milliseconds
                where = f"{each.rule} rule, {each.data_path} {each.protocol}, {each.edit}"
                say(f"{where}: {spread.median:.0f} ms ({spread.min:.0f} to {spread.max:.0f})")
        say("taking the node down")
    return LatencyResult(described, found)


def _pods(testbed: Testbed, servers: Iterable[str]) -> dict[str, Pod]:
    directory = testbed.directory / "bench"
    nginx.prepare(directory, FILES)
    here = testbed.node.name
    found = {"client": testbed.add_pod(pod_manifest("client", here, []))}
    for name in servers:
        if name == "datagrams":
            document = pod_manifest(name, here, ["python", "-m", "spliceway.agent.bench.udpecho", "--port", "80"])
            document["spec"]["containers"][0]["ports"] = []  # only TCP is waited for
        else:
            document = pod_manifest(name, here, list(nginx.command(directory, name)))
        found[name] = testbed.add_pod(document)
    return found


def _latencies(
    node: Node, agent: AgentClient, pods: dict[str, Pod], subject: Subject, edits: int, proxy: ProxyKind
) -> list[Latency]:
    if subject.splice is not None:
        agent.put("splice", {"mode": subject.splice})
    random = Random(edits)
    _edit(node, subject, allowed=False)
    values: dict[bool, list[float]] = {False: [], True: []}
    with _Prober(pods["client"], pods[subject.server], subject) as prober:
        # Denied first: without any policy the connection would pass as well, and be none that is steered.
        prober.wait_settled(allowed=False)
        _edit(node, subject, allowed=True)
        prober.wait_settled(allowed=True)
        for number in range(2 * edits):
            allowed = number % 2 == 1
            time.sleep(random.uniform(*PAUSE))
            _check_data_path(agent, subject, prober.latest())
            edited = _edit(node, subject, allowed=allowed)
            values[allowed].append((prober.wait_judged(edited, allowed=allowed).start - edited) / 1e6)
    return [
        Latency(
            rule=subject.rule,
            data_path=subject.path(proxy),
            protocol=subject.protocol,
            edit="loosen" if allowed else "tighten",
            judged=subject.judged(allowed=allowed),
            milliseconds=Spread.of(each),
            values=tuple(round(value, 2) for value in each),
        )
        for allowed, each in values.items()
    ]


def _edit(node: Node, subject: Subject, *, allowed: bool) -> int:
    """Put the edited file in place as an editor does, and return the time of it."""
    path = node.info.policies / f"{POLICY}.yaml"
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(yaml.safe_dump(policy(subject, NAMESPACE, allowed=allowed), sort_keys=False))
    now = time.monotonic_ns()
    beside.rename(path)
    return now


def _check_data_path(agent: AgentClient, subject: Subject, latest: Attempt) -> None:
    """The live connection takes the data path that its figure is named after."""
    if subject.splice is None or not latest.port or not (latest.ok or subject.survives):
        return
    states = [sock["state"] for sock in agent.get("socks") if sock["endpointPort"] == latest.port]
    if [state == "spliced" for state in states] != [subject.splice == "auto"]:
        raise BenchError(f"{subject.name}: the connection from port {latest.port} is {states or 'not steered'}")


class _Prober:
    """A running prober, read by a thread. Use as a context manager."""

    def __init__(self, client: Pod, server: Pod, subject: Subject) -> None:
        address = str(server.address(4))
        arguments = ["udp", address] if subject.protocol == "UDP" else ["http", address, "/small"]
        self._what = f"{subject.name}: the prober"
        self._attempts: deque[Attempt] = deque(maxlen=REMEMBERED)
        self._process = client.spawn(
            [sys.executable, "-m", "spliceway.agent.bench.prober", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="prober", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._reader.join()
        with self._process:  # closes its pipes
            pass

    def latest(self) -> Attempt:
        """The attempt that began last, of those whose outcome is known."""
        return max(self._attempts.copy())

    def wait_settled(self, *, allowed: bool) -> None:
        """Return once the latest answers are `allowed` or denied. Raises BenchError."""
        self._wait(lambda: timeline.settled(self._attempts.copy(), allowed=allowed) or None, "one outcome")

    def wait_judged(self, edited: int, *, allowed: bool) -> Attempt:
        """The first attempt judged by the edit. Raises BenchError when it takes longer than EDIT_TIMEOUT."""

        def judged() -> Attempt | None:
            attempts = self._attempts.copy()
            if not timeline.settled(attempts, allowed=allowed):
                return None
            return timeline.judged_anew(attempts, edited, allowed=allowed)

        found: Attempt = self._wait(judged, "allowed" if allowed else "denied")
        return found

    def _wait(self, look: Any, wanted: str) -> Any:
        deadline = time.monotonic() + EDIT_TIMEOUT
        while (found := look()) is None:
            if self._process.poll() is not None:
                errors = self._process.stderr.read() if self._process.stderr else ""
                raise BenchError(f"{self._what} ended with status {self._process.returncode}: {errors[-500:]}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self._what} did not see {wanted} within {EDIT_TIMEOUT:g} s")
            time.sleep(0.01)
        return found

    def _read(self) -> None:
        assert self._process.stdout is not None  # a pipe
        for line in self._process.stdout:
            self._attempts.append(timeline.parse(line))
