"""What reconciliation drives: who makes tables, the kernel side (`bpf.Datapath`), the proxy side (`proxylink`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from spliceway.agent.inventory import Changes
from spliceway.bpf.services import Applied, FrontendRow
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.loadbalancing import Changes as ServiceChanges
from spliceway.policy.table import IPAddress, PolicyTable, RuleSet


class Acceptance(Enum):
    """What the proxy says of a rule set's listener and routes, as they were published last."""

    WAITING = "waiting"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    PORT_TAKEN = "port-taken"


class Answer(msgspec.Struct, frozen=True):
    """The same with what it is about: short type and name of the resource, and the proxy's own message."""

    acceptance: Acceptance
    type: str = ""
    resource: str = ""
    message: str = ""


class DatapathControl(Protocol):
    """The kernel side. Every method raises DatapathError and then has changed nothing that is in force."""

    async def endpoints_moved(self) -> bool:
        """Whether a veth was made anew under its name since it was attached."""

    def knows_endpoints(self) -> bool:
        """Whether the kernel has endpoints, also those of an earlier agent."""

    def attached(self, endpoint: LocalEndpoint) -> LocalEndpoint | None:
        """This endpoint as it is attached: about splicing and meshes it may say what it said before."""

    async def set_endpoints(self, endpoints: Sequence[LocalEndpoint], *, rows: bool = True) -> None:
        """Attach to these endpoints and to no others. What is in no table yet drops NOT_READY.

        Without `rows` all that is attached now does so until the next `apply`.
        """

    async def set_served(self, addresses: frozenset[IPAddress]) -> None:
        """Processes of the node answer by these addresses, though their identities are others than the host's."""

    async def set_service_addresses(self, changes: Mapping[IPAddress, bool]) -> None:
        """Services are dialled by these addresses from now on, or (False) not any more."""

    async def swept(self, seconds: float) -> None:
        """Return when connections that may not go on have been ended, or after so many seconds."""

    async def apply(self, table: PolicyTable, live: Callable[[], None] = lambda: None) -> int:
        """Bring all rows of a table into force in one step; the kernel generation.

        `live` may be called before that returns: from then on packets are judged by them, but some may still be on
        their way that were judged by the rows before.
        """

    async def set_listeners(self, ports: Mapping[int, int]) -> None:
        """Rule set id → port: where rows may steer to."""

    async def set_services(self, changes: ServiceChanges) -> Applied:
        """Make these frontends so, or take them out (None). All others stay."""

    async def held_services(self) -> list[FrontendRow]:
        """All frontends that the kernel has, also those of an earlier agent."""


#: Ports with a listener on both loopback addresses.
ListeningPorts = Callable[[], Awaitable[frozenset[int]]]


class ProxyControl(Protocol):
    """The proxy side."""

    def publish(self, rule_sets: Mapping[int, RuleSet], ports: Mapping[int, int]) -> None:
        """Have the proxy serve these rule sets on these ports, and no others. Returns before the proxy answered.

        Raises XdsError when that can't be expressed; then the proxy keeps what it has.
        """

    def acceptance(self, rule_set: int) -> Acceptance:
        """What the proxy says of this rule set as it was published last."""


class TableMaker(Protocol):
    """Makes tables of changes (`compiler.Compiler`)."""

    def apply(self, changes: Changes, revision: int) -> PolicyTable:
        """The table with these changes. Runs in a thread; one call at a time.

        Raises one of OWN_ERRORS; then the same changes come again, with what changed meanwhile.
        """

    @property
    def hopeful(self) -> bool:
        """Whether something that was refused may come into force by now: `apply` tries it, also without changes."""

    def settle(self, table: PolicyTable) -> None:
        """This table is in force everywhere: numbers that it does not use may be forgotten."""
