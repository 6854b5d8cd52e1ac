"""When a redirected connection loses its verdict, its proxy socket is ended: the pod sees a reset, not silence.

The kernel programs drop its packets and messages at once; this makes the end visible. A lost record does no harm: the
next packet of the connection is dropped and reported again.
"""

from __future__ import annotations

from spliceway.bpf import diag
from spliceway.bpf.types import Hook, KernelFlow, Leg
from spliceway.policy.verdict import Reason, Verdict

_REVOKING = frozenset(
    {Reason.DEFAULT_DENY, Reason.POLICY_DENIED, Reason.RULE_SET_CHANGED, Reason.NOT_READY, Reason.NO_IDENTITY}
)


def proxy_socket(flow: KernelFlow) -> tuple[diag.IPAddress, int, diag.IPAddress, int]:
    """(local, port, remote, port) of the proxy's socket in a redirected connection, from a record about it."""
    source = (flow.source, flow.source_port)
    destination = (flow.destination, flow.destination_port)
    sent_by_proxy = flow.hook is Hook.TO_POD or (flow.hook is Hook.SK_MSG and flow.leg is Leg.UPSTREAM)
    local, remote = (source, destination) if sent_by_proxy else (destination, source)
    return (*local, *remote)


class Revoker:
    """Ends what the kernel has dropped."""

    def __init__(self) -> None:
        """Nothing ended yet."""
        self.ended = 0

    def see(self, flow: KernelFlow) -> None:
        """End the proxy's socket of a redirected connection that was just denied by policy."""
        if flow.verdict is Verdict.DENY and flow.leg is not Leg.DIRECT and flow.reason in _REVOKING:
            self.ended += diag.destroy(*proxy_socket(flow))
