"""Making the requests: one program for each, all at once, their connections open until everything was looked up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from spliceway.agent.cli.client import AgentClient
from spliceway.agent.demo import evidence
from spliceway.agent.demo.evidence import Json, Tuple
from spliceway.agent.demo.plan import Chapter, DemoError, Request
from spliceway.agent.testbed.testbed import Testbed

#: How long a client waits for an answer, in seconds: longer than the first retransmission of a SYN.
ANSWER_TIMEOUT = 2.5
#: How long a probe may take in all, and how long flows may be on their way to the agent.
PROBE_TIMEOUT = 30.0
FLOW_TIMEOUT = 5.0
#: More flows than the demo makes.
_FLOWS = "8192"


class Asked(msgspec.Struct, frozen=True):
    """A request that was made, as which connection, and what the client got."""

    chapter: str
    request: Request
    family: int
    connection: Tuple
    answer: str
    body: str


class Evidences(msgspec.Struct, frozen=True):
    """All flows and sockets of the agent at one moment, as the admin API has them."""

    flows: list[Json]
    socks: list[Json]


def ask_all(testbed: Testbed, agent: AgentClient, chapters: Sequence[Chapter]) -> tuple[list[Asked], Evidences]:
    """Make every request over both families. Raises DemoError when a client can't even ask."""
    probes: list[subprocess.Popen[str]] = []
    try:
        plan = [(c.title, request, family) for c in chapters for request in c.requests for family in (4, 6)]
        for _, request, family in plan:
            probes.append(_start(testbed, request, family))  # at once, so that it is ended in any case
        asked = [
            _answer(testbed, probe, title, request, family)
            for probe, (title, request, family) in zip(probes, plan, strict=True)
        ]
        flows = _all_flows(agent, asked)
        return asked, Evidences(flows, agent.get("socks"))
    finally:
        for probe in probes:
            _end(probe)


def _start(testbed: Testbed, request: Request, family: int) -> subprocess.Popen[str]:
    question = {
        "address": str(testbed.pod(request.target).address(family)),
        "port": request.port,
        "protocol": request.protocol,
        "method": request.method,
        "path": request.path,
        "timeout": ANSWER_TIMEOUT,
    }
    argv = [sys.executable, "-m", "spliceway.agent.demo.probe", json.dumps(question)]
    pipe = subprocess.PIPE
    return testbed.spawn(request.source, argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _answer(testbed: Testbed, probe: subprocess.Popen[str], chapter: str, request: Request, family: int) -> Asked:
    assert probe.stdout is not None  # a pipe
    line = probe.stdout.readline()
    if not line:
        _, errors = probe.communicate(timeout=PROBE_TIMEOUT)
        raise DemoError(f"{request.text}: the client ended with status {probe.returncode}: {errors.strip()[-300:]}")
    got = json.loads(line)
    destination = str(testbed.pod(request.target).address(family))
    connection = Tuple(request.protocol, got["address"], got["port"], destination, request.port)
    return Asked(chapter, request, family, connection, got["answer"], got["body"])


def _all_flows(agent: AgentClient, asked: Sequence[Asked]) -> list[Json]:
    """Flows once there is one that decides each request: the proxy's log comes a moment after its answer."""
    deadline = time.monotonic() + FLOW_TIMEOUT
    while True:
        flows = list(agent.lines("flows", last=_FLOWS))
        if all(evidence.decided(one.connection, flows) for one in asked) or time.monotonic() > deadline:
            return flows
        time.sleep(0.05)


def _end(probe: subprocess.Popen[str]) -> None:
    """Close its stdin, which ends it; one that hangs is killed."""
    try:
        probe.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
