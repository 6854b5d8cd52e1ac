"""What reconciliation is asked for, and how far it is."""

from __future__ import annotations

import msgspec

from spliceway.agent.inventory import Changes
from spliceway.agent.state import Held
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.table import IPAddress


class Intent(msgspec.Struct, frozen=True):
    """What shall be in force: the `changes` since the intent before, and all that is wired.

    `seen`: time.monotonic() of the change; `held`: what a restart needs of the source; `served`: addresses of other
    identities than the host's by which processes of the node answer pods (the node-local DNS cache's).
    """

    changes: Changes
    endpoints: tuple[LocalEndpoint, ...]
    held: Held
    seen: float
    served: frozenset[IPAddress] = frozenset()


class ReconcileStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Where the node is. `revision` is in force in the kernel, `wanted` is what the source says.

    `waiting`: rule sets that drop NO_LISTENER or keep an older policy in force, with what the proxy says of each.
    `error`: why the last attempt failed, empty when it did not; `applied`: how often rows were flipped.
    `service_error`: why Services are not all in the kernel as they should be; `service_changes`: how often a frontend
    was written there or taken out, `service_failures`: how often that failed; `service_pending`: some are on their way.
    """

    revision: int
    wanted: int
    generation: int
    rule_sets: int
    rows: int
    waiting: dict[str, str]
    error: str
    endpoint_error: str
    failures: int
    applied: int
    service_error: str = ""
    service_pending: bool = False
    service_changes: int = 0
    service_failures: int = 0
