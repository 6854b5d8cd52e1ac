"""The ring buffer of verdicts, as an asynchronous stream of KernelFlow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from spliceway.bpf import abi
from spliceway.bpf.addresses import unpack_address
from spliceway.bpf.libbpf import RingBuffer
from spliceway.bpf.maps import Maps
from spliceway.bpf.types import Hook, KernelFlow, Leg
from spliceway.policy.verdict import Reason, Verdict

_WAITING = 16_384


def decode(record: bytes) -> KernelFlow:
    """One record of `struct event`."""
    e = abi.Event.from_buffer_copy(record)
    return KernelFlow(
        time=e.time,
        hook=Hook(e.hook),
        verdict=Verdict(e.verdict),
        reason=Reason(e.reason),
        rule=e.rule,
        rule_set=e.rule_set,
        source=unpack_address(bytes(e.src.w)),
        source_port=e.sport,
        source_identity=e.src_identity,
        destination=unpack_address(bytes(e.dst.w)),
        destination_port=e.dport,
        destination_identity=e.dst_identity,
        protocol=e.protocol,
        length=e.length,
        leg=Leg(e.leg),
        reply=bool(e.reply),
        ended=bool(e.ended),
    )


class EventStream:
    """Reads the buffer when the kernel says so. `lost` counts what waited too long for its consumer."""

    def __init__(self, maps: Maps, see: Callable[[KernelFlow], None]) -> None:
        """`see` gets every record first, whether anyone consumes the stream or not."""
        self._maps, self._see = maps, see
        self._waiting: asyncio.Queue[KernelFlow] = asyncio.Queue(_WAITING)
        self._buffer: RingBuffer | None = None
        self.lost = 0

    def start(self) -> None:
        """Begin to read, in the running event loop."""
        self._buffer = RingBuffer(self._maps.events.fd, self._take)
        asyncio.get_running_loop().add_reader(self._buffer.fileno(), self._buffer.consume)

    def stop(self) -> None:
        """Stop reading; the kernel goes on writing."""
        if self._buffer is not None:
            asyncio.get_running_loop().remove_reader(self._buffer.fileno())
            self._buffer.close()
            self._buffer = None

    def _take(self, record: bytes) -> None:
        flow = decode(record)
        self._see(flow)
        try:
            self._waiting.put_nowait(flow)
        except asyncio.QueueFull:
            self._waiting.get_nowait()  # the newest are worth more
            self._waiting.put_nowait(flow)
            self.lost += 1

    async def flows(self) -> AsyncIterator[KernelFlow]:
        """Records, oldest first."""
        while True:
            yield await self._waiting.get()
