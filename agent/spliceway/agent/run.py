"""Starting things for real: the event loop, signals, and the components that talk to this machine.

The loop is asyncio's own: uvloop refuses the netlink sockets of pyroute2 («cannot open a UDP handle, invalid family»).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from spliceway.agent import log, preflight
from spliceway.agent.app import Agent
from spliceway.agent.config import Config
from spliceway.agent.envoy import EnvoySettings, EnvoySupervisor
from spliceway.agent.envoyprocess import is_running, load_identity
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.sides import ProxyProcess
from spliceway.agent.state import StateStore
from spliceway.bpf.datapath import Datapath, claim, pin_root
from spliceway.bpf.types import DatapathSettings
from spliceway.xds.resources.settings import BootstrapSettings


def run_agent(config: Config, *, log_level: str = "info", cleanup: bool = False) -> None:
    """Run the agent in this process until SIGTERM or SIGINT. Raises one of OWN_ERRORS when it can't."""
    log.configure(log_level)
    asyncio.run(_until_signal(Agent(config, open_datapath=_open_datapath, make_proxy=envoy), cleanup=cleanup))


def run_cleanup(config: Config) -> None:
    """Remove what an agent with this configuration left. Raises one of OWN_ERRORS, also when it still runs."""
    log.configure("warning")
    asyncio.run(_cleanup(config))


async def _open_datapath(settings: DatapathSettings) -> Datapath:
    claim(settings)
    return await Datapath.open(settings)


async def _until_signal(agent: Agent, *, cleanup: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await agent.run(stop, cleanup=cleanup)
    except BaseExceptionGroup as group:
        own = group.subgroup(lambda error: isinstance(error, OWN_ERRORS))
        if own is None:
            raise
        raise _first(own) from group


async def _cleanup(config: Config) -> None:
    store = StateStore(config.state_dir)
    with store.lock():
        settings = config.datapath_settings()
        if pin_root(settings).exists():
            datapath = await _open_datapath(settings)
            await datapath.remove()
        identity = load_identity(config.state_dir / "envoy.json")
        if identity is not None and is_running(identity):
            proxy = envoy(config, lambda _how: None)
            await proxy.start()  # takes it over
            await proxy.stop()
        store.clear()


def envoy(config: Config, on_exit: Callable[[str], None]) -> ProxyProcess:
    """The Envoy of this configuration."""
    return EnvoySupervisor(
        EnvoySettings(
            binary=config.proxy.binary,
            state_dir=config.state_dir,
            cgroup=config.cgroups.proxy,
            concurrency=preflight.workers(config),
        ),
        BootstrapSettings(
            node_id=config.node_name,
            cluster=preflight.PROXY_CLUSTER,
            xds_socket=preflight.xds_socket(config),
            admin_socket=preflight.envoy_admin_socket(config),
            delta=config.proxy.api_type == "DELTA_GRPC",
        ),
        on_exit,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
