"""The embedded proxy in the shape in which it runs on a node: supervisor and workers as the client of an XdsServer.

It takes an `EnvoyNode`'s place: the same methods, the same steered connections, the same flows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

import msgspec

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.proxy.model import Limits, ProxySettings
from spliceway.xds.accesslog.flow import HttpFlow
from support.envoy import NODE_ID, EnvoyNode, EnvoyThread, port_of
from support.steered import Reply, read_reply
from support.waiting import until

#: Connections that are there at the same time.
_TOGETHER = 200


class EmbeddedNode(EnvoyNode):
    """An `EnvoyNode` whose proxy is `spliceway proxy`."""

    what = "embedded"

    @property
    def proxy_settings(self) -> ProxySettings:
        """What the proxy is started with."""
        return ProxySettings(
            node_id=NODE_ID,
            xds_socket=self.bootstrap.xds_socket,
            admin_socket=self.bootstrap.admin_socket,
            handover_socket=self.directory / "handover.sock",
            state_file=self.directory / "proxy-state",
            workers=self._concurrency,
            limits=Limits(drain=1.0),
        )

    def command(self) -> list[str]:
        """What is run in the node's namespace, with its configuration written."""
        config = self.directory / "proxy.json"
        config.write_bytes(msgspec.json.encode(self.proxy_settings, enc_hook=str))
        run = [sys.executable, "-m", "spliceway.agent", "proxy", "--config", str(config)]
        # The log is what it writes to standard error.
        return ["sh", "-c", 'exec "$@" 2>"$0"', str(self.directory / f"{self.what}.log"), *run]


class Ends(NamedTuple):
    """Which connection it is: the kernel gives one port to connections of both families and to several destinations."""

    source: IPv4Address | IPv6Address
    source_port: int
    destination_port: int


class Asked(NamedTuple):
    """A request, for the listener of a rule set."""

    rule_set: int
    raw: bytes
    version: int = 4


class Got(NamedTuple):
    """The answer to it, its flow, and the heads that reached the server meanwhile."""

    reply: Reply
    flow: HttpFlow
    heads: tuple[bytes, ...]


class EmbeddedThread(EnvoyThread):
    """An `EmbeddedNode` for tests that are plain functions."""

    node: EmbeddedNode

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, EmbeddedNode)

    def ask_all(self, requests: Iterable[Asked]) -> list[Got]:
        """Send them one after another, each on a connection of its own; flows are waited for together."""
        found: list[Got] = []
        waiting = list(requests)
        while waiting:
            batch, waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
            found += self._ask_batch(batch)
        return found

    def ask(self, asked: Asked) -> Got:
        """One of them."""
        return self.ask_all([asked])[0]

    def _ask_batch(self, batch: list[Asked]) -> list[Got]:
        heads = self.node.upstream.heads
        self.node.flows.clear()
        with contextlib.ExitStack() as stack:  # the connections stay, so that each has ports of its own
            answers = []
            for rule_set, raw, version in batch:
                heads.clear()
                connection = stack.enter_context(self.node.connect(rule_set, version))
                connection.sendall(raw)
                reply = read_reply(connection, raw.startswith(b"HEAD "))
                ends = Ends(ip_address(connection.getsockname()[0]), connection.getsockname()[1], port_of(rule_set))
                answers.append((ends, reply, tuple(heads)))
            flows = self._flows({ends for ends, _, _ in answers})
        return [Got(reply, flows[ends], arrived) for ends, reply, arrived in answers]

    def _flows(self, ends: set[Ends]) -> dict[Ends, HttpFlow]:
        def found() -> dict[Ends, HttpFlow]:
            return {Ends(flow.source, flow.source_port, flow.destination_port): flow for flow in self.node.flows}

        until(lambda: ends <= found().keys(), told=lambda: f"no flows of {ends - found().keys()}")
        return found()


def as_known(rule_set: RuleSet) -> RuleSet:
    """It does not know which values are of Secrets: in a rule set with one it shows none."""
    return _hidden(rule_set) if _secrets(rule_set) else rule_set


def _secrets(end: RuleSet | None) -> bool:
    if end is None:
        return False
    rules = (*(end.rules or ()), *(end.audit or ()))
    return any(header.secret for rule in rules for header in rule.headers) or _secrets(end.also)


def _hidden(end: RuleSet) -> RuleSet:
    def hide(rules: tuple[HttpRule, ...] | None) -> tuple[HttpRule, ...] | None:
        return rules and tuple(
            msgspec.structs.replace(
                rule, headers=tuple(msgspec.structs.replace(one, secret=True) for one in rule.headers)
            )
            for rule in rules
        )

    also = _hidden(end.also) if end.also else None
    return msgspec.structs.replace(end, rules=hide(end.rules), audit=hide(end.audit), also=also)
