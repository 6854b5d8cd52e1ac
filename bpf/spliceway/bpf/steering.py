"""The veth pair in the node's namespace by which the hooks hand packets to the proxy (see `c/handover.h`).

What comes in at its receiving end was sent by our programs and is delivered on the node, whatever bridge or device it
was taken from. It is made when the datapath opens, put back when somebody removes it, and goes with `cleanup`.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import bigtcp
from spliceway.bpf.errors import KernelRefusedError

SENDING, RECEIVING = "spliceway0", "spliceway1"
#: As in `c/handover.h`: frames are for this station.
_STATION = "02:53:57:00:00:01"
_SENDER = "02:53:57:00:00:00"
#: No packet that was cut for another device may be too large for this one.
_MTU = 65535
#: The two ends tell nobody of themselves. Packets come in with any source, also the node's own: its route is looked up
#: by the mark, and leads to this device. A device's rp_filter counts where it is greater than that for all, and 2 lets
#: pass what has any route; but where a device has no address, only what has its route by that device
#: (__fib_validate_source), and the node's own addresses have theirs before all rules.
_ADDRESS = "127.83.87.1"  # of this host alone, and nobody listens there
_SYSCTLS = {
    f"ipv4/conf/{RECEIVING}/accept_local": "1",
    f"ipv4/conf/{RECEIVING}/src_valid_mark": "1",
    f"ipv4/conf/{RECEIVING}/rp_filter": "2",
    f"ipv4/conf/{RECEIVING}/send_redirects": "0",
    f"ipv6/conf/{RECEIVING}/disable_ipv6": "0",
    f"ipv6/conf/{RECEIVING}/addr_gen_mode": "1",
    f"ipv6/conf/{RECEIVING}/accept_ra": "0",
    f"ipv6/conf/{SENDING}/addr_gen_mode": "1",
    f"ipv6/conf/{SENDING}/accept_ra": "0",
}


async def ensure(ipr: AsyncIPRoute) -> tuple[int, int]:
    """Make the pair, or find it, and set it up. Returns the indexes of the sending and the receiving end.

    Raises KernelRefusedError.
    """
    try:
        sending = await _index(ipr, SENDING)
        if sending and not await _index(ipr, RECEIVING):
            await ipr.link("del", index=sending)  # somebody renamed or moved the other end
            sending = 0
        if not sending:
            peer = {"ifname": RECEIVING, "address": _STATION, "mtu": _MTU}
            await ipr.link("add", ifname=SENDING, kind="veth", address=_SENDER, mtu=_MTU, peer=peer)
            sending = await _index(ipr, SENDING)
        receiving = await _index(ipr, RECEIVING)
        _set_sysctls()
        _allow_big_tcp(sending, receiving)
        for index in (sending, receiving):
            if not await _is_up(ipr, index):
                await ipr.link("set", index=index, state="up")
        await _add_address(ipr, receiving)
    except NetlinkError as error:
        raise KernelRefusedError(f"make the devices {SENDING} and {RECEIVING}", error.code) from error
    return sending, receiving


async def remove(ipr: AsyncIPRoute) -> bool:
    """Take the pair out. Returns whether there was one. Raises KernelRefusedError."""
    gone = False
    for name in (SENDING, RECEIVING):
        if not (index := await _index(ipr, name)):
            continue
        try:
            await ipr.link("del", index=index)
            gone = True
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise KernelRefusedError(f"remove the device {name}", error.code) from error
    return gone


async def _add_address(ipr: AsyncIPRoute, index: int) -> None:
    try:
        await ipr.addr("add", index=index, address=_ADDRESS, prefixlen=32, scope=254)  # RT_SCOPE_HOST
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _set_sysctls() -> None:
    for name, value in _SYSCTLS.items():
        path = Path("/proc/sys/net", name)
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)


def _allow_big_tcp(*indexes: int) -> None:
    """Packets of pods' BIG TCP go through as they are; a device of less would cut each into a hundred."""
    for index in indexes:
        with contextlib.suppress(OSError):  # Linux before 5.19 has 64 KiB, which is what it begins with
            bigtcp.set_sizes(index, bigtcp.LARGEST)


async def _index(ipr: AsyncIPRoute, name: str) -> int:
    found = await ipr.link_lookup(ifname=name)
    return int(found[0]) if found else 0


async def _is_up(ipr: AsyncIPRoute, index: int) -> bool:
    async for each in await ipr.link("dump"):
        if int(each["index"]) == index:
            return bool(int(each["flags"]) & 1)  # IFF_UP
    return False
