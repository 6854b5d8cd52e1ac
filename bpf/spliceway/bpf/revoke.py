"""When a redirected connection loses its verdict, its proxy socket is ended: the pod sees a reset, not silence.

The kernel programs drop its packets and messages at once; this makes the end visible. A lost record does no harm: the
next packet of the connection is dropped and reported again.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from spliceway.bpf import abi, diag, libbpf
from spliceway.bpf.addresses import pack_address
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.types import Hook, KernelFlow, Leg
from spliceway.policy.verdict import Reason, Verdict

_REVOKING = frozenset(
    {Reason.DEFAULT_DENY, Reason.POLICY_DENIED, Reason.RULE_SET_CHANGED, Reason.NOT_READY, Reason.NO_IDENTITY}
)

#: Seconds before the same connection is ended again, and how many are remembered.
_PAUSE = 1.0
_REMEMBERED = 16_384
_ETHERNET = bytes(14)

_log = structlog.get_logger(__name__)


def proxy_socket(flow: KernelFlow) -> tuple[diag.IPAddress, int, diag.IPAddress, int]:
    """(local, port, remote, port) of the proxy's socket in a redirected connection, from a record about it."""
    source = (flow.source, flow.source_port)
    destination = (flow.destination, flow.destination_port)
    sent_by_proxy = flow.hook is Hook.TO_POD or (flow.hook is Hook.SK_MSG and flow.leg is Leg.UPSTREAM)
    local, remote = (source, destination) if sent_by_proxy else (destination, source)
    return (*local, *remote)


def _revokes(flow: KernelFlow) -> bool:
    # No listener for a rule set is for want of a proxy. Without a rule set there is none for this pair of ends.
    return flow.reason in _REVOKING or (flow.reason is Reason.NO_LISTENER and not flow.rule_set)


class Revoker:
    """Ends what the kernel has dropped: each connection once in a while, however many of its packets are dropped."""

    def __init__(self, program: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`program`: where `judge` is pinned."""
        self.ended = 0
        self.failed = 0
        self._program, self._clock = program, clock
        self._seen: dict[tuple[object, ...], float] = {}

    def see(self, flow: KernelFlow) -> None:
        """End the proxy's socket of a redirected connection that was just denied by policy."""
        if flow.verdict is not Verdict.DENY or flow.ended or flow.leg is Leg.DIRECT or not _revokes(flow):
            return
        ends, now = proxy_socket(flow), self._clock()
        if now - self._seen.get(ends, -_PAUSE) < _PAUSE:
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[ends] = now
        try:
            self._end(flow, ends)
        except (DatapathError, OSError) as error:
            self.failed += 1
            _log.warning("a revoked connection could not be ended", error=str(error))

    def _end(self, flow: KernelFlow, ends: tuple[diag.IPAddress, int, diag.IPAddress, int]) -> None:
        descriptor = libbpf.open_pin(self._program)
        try:
            ask = libbpf.asker(descriptor)
            stopped = ask(_stop(*ends))
            ended = diag.destroy(*ends)
            self.ended += ended
            # What a message met is counted, and so is what a sweep has stopped before.
            counts = ended and stopped == abi.Judgement.DENIED and flow.hook is not Hook.SK_MSG
            if counts or stopped == abi.Judgement.DENIED_NOW:
                ask(_ETHERNET + bytes(abi.Question(note=abi.Note.ENDED)))
        finally:
            os.close(descriptor)


def _stop(local: diag.IPAddress, local_port: int, remote: diag.IPAddress, remote_port: int) -> bytes:
    """The proxy's socket has the pod's peer as its own end, on both legs."""
    pod, peer = (abi.Addr((ctypes.c_uint8 * 16)(*pack_address(end))) for end in (remote, local))
    key = abi.SpliceKey(pod=pod, peer=peer, pod_port=socket.htons(remote_port), peer_port=socket.htons(local_port))
    return _ETHERNET + bytes(abi.Question(key=key, note=abi.Note.STOP))
