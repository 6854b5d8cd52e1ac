"""What the agent answers over TCP: metrics where Prometheus comes, probes where the kubelet comes, debugging."""

from __future__ import annotations

import contextlib
import socket

from spliceway.agent.admin import debug_listener
from spliceway.agent.config import Config, listen_address
from spliceway.agent.listening import tcp_listener

_ANY = "0.0.0.0"


def web_listeners(stack: contextlib.AsyncExitStack, config: Config) -> dict[str, socket.socket]:
    """Listening sockets by what is served there: `metrics` (probes too), `health` (probes alone), `debug`.

    Raises AgentError.
    """
    metrics, found = config.metrics, {}
    if metrics.listen:
        found["metrics"] = stack.enter_context(tcp_listener(*listen_address(metrics.listen, "agent")))
    if metrics.health and not _is_answered(metrics.listen, metrics.health):
        host, port = listen_address(metrics.health, "agent", "metrics.health")
        found["health"] = stack.enter_context(tcp_listener(host, port, "metrics.health"))
    if config.debug.listen:
        found["debug"] = stack.enter_context(debug_listener(config.debug.listen))
    return found


def _is_answered(listen: str, health: str) -> bool:
    """Whether who listens at the one address is asked at the other, too. [::] is no IPv4 address of ours."""
    if not listen:
        return False
    (one, port), (other, wanted) = listen_address(listen, "agent"), listen_address(health, "agent")
    return port == wanted and (one == other or (one == _ANY and ":" not in other) or (one == "::" and ":" in other))
