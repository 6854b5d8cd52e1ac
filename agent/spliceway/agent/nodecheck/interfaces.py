"""Interfaces of this network namespace. By netlink: /sys/class/net shows those of the namespace that mounted it."""

from __future__ import annotations

import asyncio

from spliceway.agent.nodecheck.reading import Unreadable


def kinds() -> dict[str, str]:
    """Name → kind (bridge, vxlan, veth …), empty for what has none (hardware). Raises Unreadable."""
    try:
        return asyncio.run(_read())
    except OSError as error:
        raise Unreadable(f"interfaces can't be listed: {error}") from error


async def _read() -> dict[str, str]:
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        async with AsyncIPRoute() as ipr:
            return {
                link.get_attr("IFLA_IFNAME"): link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
                async for link in await ipr.link("dump")
            }
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
