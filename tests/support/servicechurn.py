"""Endpoints of a Service that come and go while pods dial it, and a judge of where each connection got.

A state is a set of endpoints; each is written as one file, with a marker: a second Service whose only endpoint has a
port of its own for each state. A state is acknowledged when the agent's `bpf/lb` shows its marker, since that is read
between two changes of the kernel's maps.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import NamedTuple

from spliceway.agent.testbed.agentprocess import AgentProcess
from spliceway.agent.testbed.node import Node, Pod

PORT = 7000
#: The Service, and the marker's.
CLUSTER_IPS = {4: "10.96.1.1", 6: "fd00:96::101"}
MARKER = "10.96.1.2"
_FIRST_PORT, _PORTS = 1024, 60_000
_RECORD = struct.Struct("=QQi")

#: Tells its number (argv) to whoever connects to it, and lets the client end the connection.
SERVER = """
import collections, socket, sys
listener = socket.socket(socket.AF_INET6)
listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.bind(("::", int(sys.argv[1])))
listener.listen(4096)
number, kept = bytes([int(sys.argv[2])]), collections.deque()
while True:
    made = listener.accept()[0]
    try:
        made.send(number)
    except OSError:
        pass
    kept.append(made)
    if len(kept) > 256:
        kept.popleft().close()
"""

#: Dials at a rate (argv: seconds, connections a second, addresses …), in turns; writes of each: when it began and had
#: its answer (CLOCK_MONOTONIC, ns), and who answered, or an errno below zero.
DIALLER = """
import socket, struct, sys, time
seconds, rate = float(sys.argv[1]), float(sys.argv[2])
targets = [(socket.AF_INET6 if ":" in one else socket.AF_INET, (one, 80)) for one in sys.argv[3:]]
linger, record, found = struct.pack("ii", 1, 0), struct.Struct("=QQi"), []
begin = time.monotonic_ns()
end, step, number = begin + int(seconds * 1e9), int(1e9 / rate), 0
print("ready", file=sys.stderr, flush=True)
while (now := time.monotonic_ns()) < end:
    due = begin + number * step
    if now < due:
        time.sleep((due - now) / 1e9)
    family, target = targets[number % len(targets)]
    number += 1
    made = socket.socket(family)
    made.settimeout(10)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    start = time.monotonic_ns()
    try:
        made.connect(target)
        who = made.recv(1)
        who = who[0] if who else -1
    except OSError as error:
        who = -(error.errno or 110)
    found.append(record.pack(start, time.monotonic_ns(), who))
    made.close()
sys.stdout.buffer.write(b"".join(found))
"""


class Connection(NamedTuple):
    """When it was dialled and answered (CLOCK_MONOTONIC, ns), by which endpoint, or an errno below zero."""

    begin: int
    end: int
    who: int


class Result(NamedTuple):
    """What became of it: `wrong` has sentences; rates are what was reached."""

    connections: int
    written: int
    acknowledged: int
    removals: int
    seconds: float
    wrong: tuple[str, ...]

    @property
    def told(self) -> str:
        """For people."""
        rate, changes = self.connections / self.seconds, self.written / self.seconds
        return (
            f"{self.connections} connections ({rate:.0f}/s) under {self.written} changes ({changes:.0f}/s), "
            f"{self.acknowledged} of them seen acknowledged one by one, {self.removals} with endpoints that went"
        )


class Churn:
    """Writes states, one after the other, and notes when they were written and acknowledged."""

    def __init__(self, node: Node, agent: AgentProcess, pods: Sequence[Pod], *, seed: int = 1) -> None:
        """`pods` are the endpoints, by number; the first one always stays."""
        self._node, self._agent, self._pods, self._random = node, agent, pods, Random(seed)
        self._states: list[frozenset[int]] = []
        self._written: list[int] = []  # when the writing of a state began
        self._acks: list[tuple[int, int]] = []  # when, and up to which state
        self._stop = threading.Event()

    def run(self, clients: Sequence[Pod], seconds: float, *, changes: float, connections: float) -> Result:
        """All at once for so many seconds; rates are for a second, connections those of all clients together."""
        self._write()
        self._until_acknowledged(0)
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            with dialling(clients, seconds, connections / len(clients)) as dialled:
                due = begin = time.monotonic()
                while time.monotonic() < begin + seconds:
                    self._write()
                    due += 1 / changes  # one that was late does not put off those that follow
                    time.sleep(max(0.0, due - time.monotonic()))
                found = [one for process in dialled for one in answers(process)]
            self._until_acknowledged(len(self._states) - 1)
        finally:
            self._stop.set()
            watch.join()
        return self._judge(found, seconds)

    def _write(self) -> None:
        """The next state: some endpoints come, some go, and the first stays."""
        before = self._states[-1] if self._states else frozenset(range(len(self._pods)))
        others = range(1, len(self._pods))
        moved = self._random.sample(others, self._random.randint(1, 2))
        state = before.symmetric_difference(moved) | {0}
        self._written.append(time.monotonic_ns())
        self._states.append(state)
        self._node.write_policy("web", documents(self._pods, state, len(self._states) - 1))

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()

    def _look(self) -> int:
        """The state that is acknowledged by now."""
        ports: list[int] = [
            backend["port"]
            for row in self._agent.client.get("bpf/lb")
            if row["address"] == MARKER
            for backend in row["backends"]
        ]
        at, last = time.monotonic_ns(), self._acks[-1][1] if self._acks else -1
        if len(ports) == 1:
            # Ports come round; the agent is never that far behind.
            ahead = (ports[0] - _FIRST_PORT - (last if last >= 0 else 0)) % _PORTS
            state = max(last, 0) + ahead
            if state > last and state < len(self._states):
                self._acks.append((at, state))
                return state
        return last

    def _until_acknowledged(self, state: int, patience: float = 30.0) -> None:
        deadline = time.monotonic() + patience
        while (found := self._acks[-1][1] if self._acks else self._look()) < state:
            assert time.monotonic() < deadline, f"state {found} of {state}\n{self._agent.log_tail()}"
            if not self._acks:
                self._look()
            time.sleep(0.01)

    def _judge(self, found: Sequence[Connection], seconds: float) -> Result:
        wrong: dict[str, None] = {}
        times = [at for at, _ in self._acks]
        for one in found:
            known = bisect_right(times, one.begin) - 1
            first = self._acks[known][1]
            last = bisect_right(self._written, one.end) - 1
            if one.who < 0:
                wrong[f"a connection failed (errno {-one.who}) between states {first} and {last}"] = None
            elif not any(one.who in self._states[number] for number in range(first, last + 1)):
                wrong[f"a connection reached endpoint {one.who}, which states {first} to {last} do not have"] = None
        gone = sum(bool(before - after) for before, after in zip(self._states, self._states[1:], strict=False))
        return Result(len(found), len(self._states), len(self._acks), gone, seconds, tuple(wrong))


@contextmanager
def dialling(clients: Sequence[Pod], seconds: float, rate: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process in each of these pods that dials both ClusterIPs."""
    argv = [sys.executable, "-c", DIALLER, str(seconds), str(rate), *CLUSTER_IPS.values()]
    processes = [pod.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for pod in clients]
    try:
        for process in processes:
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=10)


def answers(process: subprocess.Popen[bytes]) -> list[Connection]:
    """All connections of a process that dials, when it has ended."""
    written, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
    return [Connection(*fields) for fields in _RECORD.iter_unpack(written)]


def services() -> str:
    """The Service and the marker."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: {CLUSTER_IPS[4]}
  clusterIPs: ["{CLUSTER_IPS[4]}", "{CLUSTER_IPS[6]}"]
  ipFamilies: [IPv4, IPv6]
  ports: [{{port: 80, protocol: TCP}}]
---
apiVersion: v1
kind: Service
metadata: {{name: marker, namespace: default}}
spec: {{clusterIP: {MARKER}, ports: [{{port: 80, protocol: TCP}}]}}
"""


def documents(pods: Sequence[Pod], state: frozenset[int], number: int) -> str:
    """EndpointSlices of a state and of its marker."""
    slices = [
        _slice("web", version, [str(pods[each].address(version)) for each in sorted(state)], PORT) for version in (4, 6)
    ]
    return "---\n".join([*slices, _slice("marker", 4, ["10.250.0.1"], _FIRST_PORT + number % _PORTS)])


def _slice(service: str, version: int, addresses: Sequence[str], port: int) -> str:
    ends = ", ".join(f'{{addresses: ["{one}"]}}' for one in addresses)
    labels: Mapping[str, str] = {"kubernetes.io/service-name": service}
    told = ", ".join(f"{key}: {value}" for key, value in labels.items())
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-{version}, namespace: default, labels: {{{told}}}}}
addressType: IPv{version}
endpoints: [{ends}]
ports: [{{port: {port}, protocol: TCP}}]
"""
