"""The embedded proxy in the shape in which it runs on a node: supervisor and workers as the client of an XdsServer.

It takes an `EnvoyNode`'s place: the same methods, the same steered connections, the same flows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from spliceway.proxy.model import Limits, ProxySettings
from support.envoy import NODE_ID, EnvoyNode, EnvoyThread


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


class EmbeddedThread(EnvoyThread):
    """An `EmbeddedNode` for tests that are plain functions."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, EmbeddedNode)
