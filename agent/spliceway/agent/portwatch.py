"""Watches how many of the node's ports the proxy's connections to servers hold, and says when they run short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from spliceway.agent.errors import OWN_ERRORS
from spliceway.bpf.portuse import PortUse, port_use

log = structlog.get_logger(__name__)

#: How often it is looked, in seconds; less often where a look at all sockets takes long.
INTERVAL = 5.0
_SHARE_OF_TIME = 0.01
#: From this share of a pair's ports on it is said.
SHORT = 0.8


class PortWatch:
    """`use`: as of the last look."""

    def __init__(self, look: Callable[[], PortUse] = port_use) -> None:
        self.use = PortUse()
        self._look = look
        self._failed = False

    async def run(self) -> None:
        """Look again and again."""
        while True:
            took = await asyncio.to_thread(self._observe)
            await asyncio.sleep(max(INTERVAL, took / _SHARE_OF_TIME))

    def _observe(self) -> float:
        """Returns seconds of the processor's time."""
        began = time.thread_time()
        try:
            self.use, self._failed = self._look(), False
        except OWN_ERRORS as error:
            if not self._failed:
                log.warning("the proxy's ports can't be counted", error=str(error))
            self._failed = True
        return time.thread_time() - began

    def warnings(self) -> tuple[str, ...]:
        """A sentence when one client has nearly no ports left towards one server."""
        use = self.use
        if not use.ports or use.most < SHORT * use.ports:
            return ()
        return (
            f"ports: connections of {use.client} to {use.server} hold {use.most} of {use.ports}; "
            "those that find none get a 503 (docs/splicing.md, Ports)",
        )


def port_metrics(use: PortUse) -> Iterator[Metric]:
    """As Prometheus shall see it."""
    connections = GaugeMetricFamily(
        "spliceway_upstream_connections", "Connections of the proxy to servers that hold a port.", labels=["state"]
    )
    connections.add_metric(["open"], use.open)
    connections.add_metric(["time-wait"], use.time_wait)
    yield connections
    for name, text, value in (
        ("spliceway_upstream_ports", "Ports that one client has towards one server.", use.ports),
        ("spliceway_upstream_ports_used", "Ports that the busiest client holds towards one server.", use.most),
    ):
        yield GaugeMetricFamily(name, text, value=value)
