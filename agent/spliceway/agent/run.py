"""Starting things for real: the event loop, signals, and the components that talk to this machine.

The loop is asyncio's own: uvloop refuses the netlink sockets of pyroute2 («cannot open a UDP handle, invalid family»).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial

from spliceway.agent import log, memory, preflight
from spliceway.agent.app import Agent
from spliceway.agent.config import Config
from spliceway.agent.embedded import EmbeddedSupervisor
from spliceway.agent.envoy import EnvoySupervisor
from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.evidence import KernelEvidence
from spliceway.agent.proxypod.supervisor import PodSupervisor
from spliceway.agent.proxypod.takeback import take_back
from spliceway.agent.sides import ProxyProcess
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.install import claim
from spliceway.bpf.types import DatapathSettings


def run_agent(config: Config, *, log_level: str = "info", cleanup: bool = False) -> None:
    """Run the agent in this process until SIGTERM or SIGINT. Raises one of OWN_ERRORS when it can't."""
    log.configure(log_level)
    memory.set_up()
    agent = Agent(
        config,
        open_datapath=_open_datapath,
        make_proxy=make_proxy,
        evidence=KernelEvidence(),
    )
    asyncio.run(_until_signal(agent, cleanup=cleanup))


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


def make_proxy(config: Config, on_exit: Callable[[str], None]) -> ProxyProcess:
    """The proxy of this configuration."""
    cgroup, ports = config.cgroups.proxy, config.proxy.listener_ports
    if not config.proxy.managed:
        return PodSupervisor(
            config.proxy.kind, config.state_dir, cgroup=cgroup, ports=(ports.first, ports.last), on_exit=on_exit
        )
    supervisor: EmbeddedSupervisor | EnvoySupervisor
    if config.proxy.kind == "envoy":
        supervisor = EnvoySupervisor(*preflight.envoy_settings(config), on_exit)
    else:
        settings = preflight.proxy_settings(config)
        supervisor = EmbeddedSupervisor(settings, config.state_dir, cgroup=cgroup, on_exit=on_exit)
    supervisor.before_start = partial(take_back, config.state_dir, config.proxy.kind)
    return supervisor


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
