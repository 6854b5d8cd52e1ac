"""A datapath with a real proxy behind it, and no agent: for tests that need a program compiled with a test hook."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.embedded import EmbeddedSupervisor
from spliceway.agent.envoy import EnvoySettings, EnvoySupervisor
from spliceway.agent.proxysupervisor import PROXY_STATE, ProxySupervisor
from spliceway.agent.testbed.node import Node
from spliceway.proxy.model import ProxySettings
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import BootstrapSettings, ResourceSettings
from spliceway.xds.server.server import XdsServer
from support.kernel import KernelNode


class ProxiedNode(KernelNode):
    """`KernelNode` whose rule sets have listeners. Policies are set once, at the start; `serve` is for later ones."""

    resources = ResourceSettings()

    def __init__(
        self,
        node: Node,
        *policies: str,
        proxy: ProxyKind = "embedded",
        test_defines: Mapping[str, str] | None = None,
        **settings: Any,
    ):
        super().__init__(node, test_defines=test_defines, **settings)
        self.kind: ProxyKind = proxy
        #: What the proxy's access log has told.
        self.requests: list[HttpFlow] = []
        self._ports: dict[int, int] = {}
        try:
            self.apply(*policies)
            self.run(self._start_proxy())
        except BaseException:
            self.close()
            raise

    async def _start_proxy(self) -> None:
        self.xds = XdsServer(self.node.info.state / "xds.sock", on_flow=self.requests.append)
        await self.xds.start()
        ports = self._publish()
        self.proxy = self._supervisor()
        await self.proxy.start()
        self._watch = asyncio.create_task(self.proxy.run())
        await self._steer(ports)

    async def serve(self) -> None:
        """Have the proxy listen for the rule sets of the table that is live now. Nothing is steered meanwhile."""
        await self.datapath.set_listeners({})
        await self._steer(self._publish())

    def _publish(self) -> dict[int, int]:
        """Tell the proxy; rule set → the port of its listener, which is never another one's."""
        assert self.table is not None
        for key in self.table.rule_sets:
            self._ports.setdefault(key, self.settings.listener_ports[0] + len(self._ports))
        ports = {key: self._ports[key] for key in self.table.rule_sets}
        version, previous = str(self.table.revision), self.xds.snapshot("node1")
        self.xds.set_snapshot("node1", build_snapshot(self.table.rule_sets, ports, self.resources, version, previous))
        return ports

    async def _steer(self, ports: Mapping[int, int]) -> None:
        await self.xds.wait_acked("node1", 20)
        async with asyncio.timeout(10):
            while not all([await self.datapath.listening(port) for port in ports.values()]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await self.datapath.set_listeners(ports)

    def _supervisor(self) -> ProxySupervisor:
        state = self.node.info.state
        directory, cgroup = state / "proxy", self.settings.proxy_cgroup
        if self.kind == "envoy":
            bootstrap = BootstrapSettings(
                node_id="node1", xds_socket=state / "xds.sock", admin_socket=state / "admin.sock"
            )
            return EnvoySupervisor(EnvoySettings(state_dir=directory, cgroup=cgroup, concurrency=2), bootstrap)
        settings = ProxySettings(
            node_id="node1",
            xds_socket=state / "xds.sock",
            admin_socket=state / "admin.sock",
            handover_socket=state / "handover.sock",
            state_file=directory / PROXY_STATE,
            workers=2,
        )
        return EmbeddedSupervisor(settings, directory, cgroup=cgroup)

    def close(self) -> None:
        """Stop the proxy, then take the datapath out."""

        async def work() -> None:
            if hasattr(self, "_watch"):
                await self.proxy.stop()
                await self._watch
            if hasattr(self, "xds"):
                await self.xds.stop()

        try:
            self.run(work())
        finally:
            super().close()
