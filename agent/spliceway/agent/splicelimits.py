"""How much may be spliced and unread: what the configuration leaves open, the node's memory says."""

from __future__ import annotations

import os
from pathlib import Path

from spliceway.agent.configsections import SpliceLimitsConfig
from spliceway.bpf.types import SpliceLimits

#: Three numbers of pages: low, pressure, high. Beyond the second one all TCP of the machine gets less memory. One for
#: all network namespaces, and to be seen in the first one only.
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")
#: Share of the memory that the kernel gives that mark by default. Source: tcp_init_mem() in net/ipv4/tcp.c
_PRESSURE_SHARE = 16
#: Share of that mark for the node, and of the node's for one pod.
_NODE_SHARE, _ENDPOINT_SHARE = 4, 8


def node_limits(config: SpliceLimitsConfig, tcp_mem: Path = TCP_MEM) -> SpliceLimits:
    """Limits in bytes: by default a quarter of TCP's pressure mark for the node, and an eighth of that for a pod.

    Never less than one connection may have, for a pod, or than a pod may have, for the node.
    """
    pressure = _pressure_pages(tcp_mem) * os.sysconf("SC_PAGE_SIZE")
    connection = config.connection_kib << 10
    node = (config.node_kib << 10) or pressure // _NODE_SHARE
    endpoint = (config.endpoint_kib << 10) or max(connection, node // _ENDPOINT_SHARE)
    return SpliceLimits(connection=connection, endpoint=endpoint, node=max(node, endpoint))


def _pressure_pages(tcp_mem: Path) -> int:
    try:
        return int(tcp_mem.read_text().split()[1])
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") // _PRESSURE_SHARE
