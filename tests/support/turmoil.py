"""Restarting what may be restarted on a node under load, at random with a seed, and knowing whom it may cut.

Only two things may end connections: a worker that is killed, those that it has (its sockets are looked at between
SIGSTOP and SIGKILL); a proxy that is killed, all that live then. Agents, programs and handovers: none.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import yaml

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed.agentprocess import AgentProcess, agent_config
from spliceway.agent.testbed.node import Node
from support.soakresults import Trouble
from support.sockettable import of_process

_TESTS = Path(__file__).resolve().parents[1]
#: How long a proxy that was taken over from goes on, in seconds; longer than any connection of the load lasts.
DRAIN = 90.0
_SHARES: dict[ProxyKind, dict[str, int]] = {
    "embedded": {
        "agent-killed": 3,
        "agent-ended": 2,
        "programs": 2,
        "handover": 2,
        "worker-killed": 6,
        "proxy-killed": 1,
    },
    "envoy": {"agent-killed": 4, "agent-ended": 3, "programs": 3, "proxy-killed": 1},
}


class Event(msgspec.Struct, frozen=True):
    """What was done, when (CLOCK_MONOTONIC, seconds), and the ends of the connections that died of it.

    `everything`: whatever lived while it lasted. With a worker go those that it has not accepted yet, too, whose ends
    nobody has: the kernel resets what waits at a listener that is closed.
    """

    name: str
    began: float
    ended: float
    dead: frozenset[tuple[str, int]] = frozenset()
    everything: bool = False

    def meets(self, trouble: Trouble) -> bool:
        """Whether a connection lived meanwhile."""
        return self.began <= trouble.ended and trouble.began <= self.ended

    def explains(self, trouble: Trouble) -> bool:
        """Whether a connection may have been cut by this."""
        if trouble.what != "cut" or not self.meets(trouble):
            return False
        waited = self.name == "worker-killed" and trouble.detail.startswith("connect: ConnectionResetError")
        return self.everything or trouble.peer in self.dead or waited


class Turmoil:
    """Runs in a thread while the context lasts. `events`: what was done; `agent`: the one that runs."""

    def __init__(self, node: Node, proxy: ProxyKind, seed: int, *, pace: float) -> None:
        """`pace`: seconds from the end of one event to the next, on average."""
        self.node, self.proxy = node, proxy
        self.events: list[Event] = []
        self.agent: AgentProcess | None = None
        self.starts = 0
        self._random = random.Random(seed)
        self._pace = pace
        self._variant = 0
        self._drain = DRAIN
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start_agent(self) -> None:
        """Start an agent with the programs and settings that are due; returns when its policies are in force."""
        proxy: dict[str, Any] = {"kind": self.proxy}
        if self.proxy == "embedded":
            proxy["limits"] = {"drain": self._drain}
        # A directory for the self-test's reports has room for one: the programs before have theirs when they come back.
        reports = {"selfTestDir": str(self.node.info.directory / "selftest")} if self._variant else {}
        config = agent_config(self.node, {"proxy": proxy, "splice": reports})
        path = self.node.info.directory / "agent.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        log = self.node.info.logs / "agent.log"
        module = ["support.variantagent", str(self._variant)] if self._variant else ["spliceway.agent"]
        argv = [sys.executable, "-m", *module, "agent", "--config", str(path)]
        search = os.pathsep.join((str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])))
        with log.open("ab") as output:
            process = self.node.spawn_on_node(argv, "agent", env={"PYTHONPATH": search}, stdout=output, stderr=output)
        self.agent = AgentProcess(process, path, log, Path(config["admin"]["socket"]))
        self.agent.wait_in_force(120)
        self.starts += 1

    @property
    def control(self) -> AgentProcess:
        """The agent, which must be there."""
        assert self.agent is not None
        return self.agent

    def status(self) -> dict[str, Any]:
        """The agent's status."""
        found: dict[str, Any] = self.control.client.get("status")
        return found

    def proxy_pid(self) -> int:
        """The proxy as the agent knows it."""
        return int(self.status()["proxy"]["process"]["pid"])

    def workers(self) -> list[int]:
        """The embedded proxy's workers."""
        pid = self.proxy_pid()
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def __enter__(self) -> Turmoil:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong with restarting."""
        if self._failure is not None:
            raise self._failure

    def unexplained(self, troubles: list[Trouble]) -> list[str]:
        """Those that no event explains, with the events while they lived."""
        return [
            f"{one} during {[event.name for event in self.events if event.meets(one)]}"
            for one in troubles
            if not any(event.explains(one) for event in self.events)
        ]

    def unannounced(self, shortened: list[Trouble]) -> list[Trouble]:
        """Connections that were told to close, though no proxy was draining while they lived."""
        drains = [event for event in self.events if event.name == "handover"]
        return [
            one
            for one in shortened
            if not any(event.began <= one.ended and one.began <= event.ended + DRAIN for event in drains)
        ]

    def summary(self) -> dict[str, int]:
        """How often each was done."""
        return dict(Counter(event.name for event in self.events))

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._random.uniform(0.5, 1.5) * self._pace):
                name = self._random.choices(*zip(*_SHARES[self.proxy].items(), strict=True))[0]
                began = time.monotonic()
                dead, everything = getattr(self, "_" + name.replace("-", "_"))()
                self.events.append(Event(name, began, time.monotonic(), dead, everything))
        except BaseException as error:
            self._failure = error

    def _agent_killed(self) -> tuple[frozenset[tuple[str, int]], bool]:
        self.control.kill()
        self._stop.wait(self._random.random())
        self.start_agent()
        return frozenset(), False

    def _agent_ended(self) -> tuple[frozenset[tuple[str, int]], bool]:
        self.control.stop()
        self._stop.wait(self._random.random())
        self.start_agent()
        return frozenset(), False

    def _programs(self) -> tuple[frozenset[tuple[str, int]], bool]:
        """The next agent has other programs, or those of before again; the one that runs is killed or asked."""
        self._variant = 1 - self._variant
        return self._agent_killed() if self._random.random() < 0.5 else self._agent_ended()

    def _handover(self) -> tuple[frozenset[tuple[str, int]], bool]:
        """The next agent has another proxy, which takes over."""
        old = self.proxy_pid()
        self._drain = DRAIN + 1 if self._drain == DRAIN else DRAIN
        self._agent_ended()
        _until(lambda: self.proxy_pid() != old, "a handover")
        return frozenset(), False

    def _worker_killed(self) -> tuple[frozenset[tuple[str, int]], bool]:
        pid = self._random.choice(self.workers())
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            _until(lambda: _state(pid) == "T", f"stop of worker {pid}")
            dead = frozenset(end for one in of_process(pid) for end in (one.local, one.remote))
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
        _until(lambda: len(self.workers()) > 1 and pid not in self.workers(), f"another worker than {pid}")
        return dead, False

    def _proxy_killed(self) -> tuple[frozenset[tuple[str, int]], bool]:
        old = self.proxy_pid()
        handle = os.pidfd_open(old)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
        _until(lambda: self.proxy_pid() not in (0, old), "another proxy")
        self.control.wait_in_force()
        return frozenset(), True


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def _until(condition: Any, what: str, wait: float = 60.0) -> None:
    deadline = time.monotonic() + wait
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {wait:g} s")
        time.sleep(0.01)
