"""The embedded proxy's data path between three network namespaces: one relay in a process, no agent, no xDS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from spliceway.agent.testbed import netns
from spliceway.policy.table import RuleSet
from spliceway.proxy.model import AccessRecord, Change, ClusterConfig, Limits, ListenerConfig
from support.relayprocess import Apply, Ask, Close, Command, Drain, Line, Share, State
from support.steered import PROXY_MARK, SERVER, SteeredNet, dial

#: Seconds in which what must happen has happened, on a busy machine too.
PATIENCE = 20.0
FIRST_PORT = 23000
DENIED_BODY = b"Access denied"
_TESTS = Path(__file__).parents[1]
_REDIRECTS = "table inet own_ports {{ chain prerouting {{ type nat hook prerouting priority -150\n{rules}\n}}\n}}\n"


def port_of(rule_set: int) -> int:
    """The listener's port of a rule set."""
    return FIRST_PORT + rule_set


def send_to(net: SteeredNet, ports: Mapping[int, int]) -> None:
    """In the server's namespace: connections of these rule sets reach these ports, all others port 80."""
    lines = "\n".join(f"tcp dport {port_of(key)} redirect to :{port}" for key, port in ports.items())
    text = _REDIRECTS.format(rules=lines)
    netns.call(net.server, lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True))


def listener_of(rule_set: int, **options: Any) -> ListenerConfig:
    """A listener with the defaults of these tests on 127.0.0.1 and ::1."""
    settings: dict[str, Any] = {
        "name": f"listener-{rule_set}",
        "addresses": (("127.0.0.1", port_of(rule_set)), ("::1", port_of(rule_set))),
        "backlog": 4096,
        "buffer_limit": 65536,
        "upstream_mark": PROXY_MARK,
        "route": f"rules-{rule_set}",
        "headers_timeout": 30.0,
        "idle_timeout": 300.0,
        "max_head_bytes": 64 * 1024,
        "max_headers": 100,
        "denied_body": DENIED_BODY,
    }
    return ListenerConfig(**{**settings, **options})


class RelayNode:
    """A relay on the node of a SteeredNet; use as a context manager. `options` are fields of listeners by rule set.

    `buffer_limit`: of all listeners and the cluster.

    `records` are the access records so far. Whatever the process writes to stderr is a failure when it ends.
    """

    def __init__(
        self,
        net: SteeredNet,
        rule_sets: tuple[RuleSet, ...],
        *,
        limits: Limits | None = None,
        options: Mapping[int, Mapping[str, Any]] | None = None,
        connect_timeout: float = 5.0,
        buffer_limit: int = 65536,
    ) -> None:
        self.net = net
        self.records: list[AccessRecord] = []
        self._rule_sets = rule_sets
        self._options = {one.id: {"buffer_limit": buffer_limit, **(options or {}).get(one.id, {})} for one in rule_sets}
        self._limits = limits or Limits()
        self._cluster = ClusterConfig(
            name="original-destination",
            connect_timeout=connect_timeout,
            buffer_limit=buffer_limit,
            max_headers=100,
            max_head_bytes=64 * 1024,
        )
        self._changed = threading.Condition()
        self._answers: list[Line] = []
        self._ended = False
        self._revision = 0

    def __enter__(self) -> Self:
        enter = shutil.which("nsenter") or "nsenter"
        command = [enter, f"--net={self.net.node}", sys.executable, "-X", "dev", "-m", "support.relayprocess"]
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*command, msgspec.json.encode(self._limits).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=_TESTS,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            names = {one.id: listener_of(one.id, **self._options[one.id]) for one in self._rule_sets}
            listeners = {one.name: one for one in names.values()}
            self.apply(
                listeners=listeners,
                sockets=tuple(listeners),
                rules={names[one.id].route: one for one in self._rule_sets},
                cluster=self._cluster,
            )
        except BaseException:
            self._process.kill()
            self._stop()
            self._errors.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        errors = self.errors()
        self._errors.close()
        if kind is None:
            assert not errors, f"the relay said: {errors}"
            assert self._process.returncode == 0, f"the relay ended with {self._process.returncode}"

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def errors(self) -> str:
        """What the process has written to stderr."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode(errors="replace")

    def apply(self, **fields: Any) -> None:
        """Apply a Change; returns when the relay has."""
        self._revision += 1
        self._do(Apply(Change(revision=self._revision, **fields)))

    def set_rules(self, rule_set: RuleSet) -> None:
        """New rules of a listener."""
        self.apply(rules={listener_of(rule_set.id).route: rule_set})

    def state(self) -> State:
        """Counters, connections and open files now."""
        state = self._do(Ask())
        assert state is not None
        return state

    def share(self, millionths: int) -> None:
        """How many of a million allowed requests are recorded."""
        self._do(Share(millionths))

    def drain(self) -> None:
        """`Relay.drain`."""
        self._do(Drain())

    def close(self) -> None:
        """`Relay.close`."""
        self._do(Close())

    def memory(self) -> int:
        """Resident memory of the process, in bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def connect(self, rule_set: int, version: int = 4) -> socket.socket:
        """A connection from the client to the server, through the rule set's listener; 20 s of patience."""
        made = dial(self.net.client, (SERVER[version], port_of(rule_set)), version)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(PATIENCE)
        return made

    def records_of(self, connection: tuple[str, int], count: int = 1) -> list[AccessRecord]:
        """The records of the connection from this address; waits until there are `count`."""

        def found() -> list[AccessRecord]:
            return [one for one in self.records if (one.source, one.source_port) == connection[:2]]

        self.until(lambda: len(found()) >= count, lambda: f"{len(found())} of {count} records of {connection}")
        return found()

    def until(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait until the records or answers that came satisfy the condition."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition() or self._ended, PATIENCE), what()
            assert condition(), f"{what()}; the relay ended: {self.errors()}"

    def settled(self, condition: Callable[[State], bool], what: str) -> State:
        """Ask until the state satisfies the condition; it was asked with what happened before, at least once."""
        for attempt in range(int(PATIENCE * 100)):
            if condition(state := self.state()):
                return state
            threading.Event().wait(0.01 if attempt else 0)
        raise AssertionError(f"{what}: {state.connections} connections, {state.listed} listed, {state.files} files")

    def _do(self, command: Command) -> State | None:
        with self._changed:
            count = len(self._answers)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        self._process.stdin.flush()
        self.until(lambda: len(self._answers) > count, lambda: f"no answer to {command}")
        answer = self._answers[-1]
        assert not answer.error, answer.error
        return answer.state

    def _read(self) -> None:
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(Line)
        for text in self._process.stdout:
            line = decoder.decode(text)
            with self._changed:
                if line.answered:
                    self._answers.append(line)
                if line.record is not None:
                    self.records.append(line.record)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
