"""The immutable PolicyTable: the only hand-off from policy to kernel and proxy.

`policy` compiles it; `bpf` turns it into map rows; `xds` turns its rule sets into listeners and routes. Neither of the
two ever sees YAML. Everything in a table is fully resolved: deny has already won, overlapping port ranges are disjoint
prefixes, and the longest matching prefix is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

import msgspec

from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

IPNetwork = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

#: Class of the peers that no rule of a policy treats specially. A class map without an entry means this class.
OTHER_PEERS = 0


class ClassKey(NamedTuple):
    """Key of the class map: how this policy classes an identity."""

    policy_id: int
    direction: Direction
    identity: int


class RowKey(NamedTuple):
    """Key of a policy row.

    `port` is in host order with the bits beyond `port_bits` zero; `port_bits` counts from the most significant bit
    (0: every port, 16: one port). For ICMP the port is `type << 8 | code`. Protocol.ANY implies `port_bits == 0`.
    Rows of a named protocol are more specific than rows of Protocol.ANY.
    """

    policy_id: int
    direction: Direction
    class_id: int
    protocol: Protocol
    port: int
    port_bits: int


class Row(msgspec.Struct, frozen=True):
    """Value of a policy row. `rule_set` is 0 unless verdict is REDIRECT; `rule` is 0 when no rule made it.

    A verdict that lets pass (ALLOW, REDIRECT) with a reason that denies (`Reason.denies`) is **audit**: a policy in
    audit mode would deny for that reason and by that rule.
    """

    verdict: Verdict
    reason: Reason
    rule: int
    rule_set: int = 0


class RuleRef(msgspec.Struct, frozen=True):
    """Where a rule was written: `CiliumNetworkPolicy default/api`, `spec.ingress[0].toPorts[0].rules.http[1]`."""

    policy: str
    path: str

    def __str__(self) -> str:
        return f"{self.policy} {self.path}"


class Mismatch(Enum):
    """What happens to a request that fails a header match (Cilium, `mismatch`)."""

    DENY = ""
    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


class HeaderMatch(msgspec.Struct, frozen=True):
    """A condition on a header. `name` is in lower case; `value` None: present with any value, else the exact value.

    A header that is there more than once never matches. `secret`: the value came from a Secret and must not be shown.
    `mismatch` other than DENY: the rule matches all the same, and the request is changed or logged.
    """

    name: str
    value: str | None = None
    secret: bool = False
    mismatch: Mismatch = Mismatch.DENY

    def __repr__(self) -> str:
        value = "(secret)" if self.secret else repr(self.value)
        return f"HeaderMatch({self.name!r}, {value}, {self.mismatch.name})"


class HttpTest(msgspec.Struct, frozen=True):
    """What an AuthorizationPolicy asks of a request, expressions as in HttpRule: all that is given must match.

    `unless_…` must not match; empty, nothing is excepted. `negated`: it holds for all other requests instead. Each test
    asks for something. `rule`: the rule that it is of, which only the agent knows.
    """

    method: str = ""
    path: str = ""
    host: str = ""
    unless_method: str = ""
    unless_path: str = ""
    unless_host: str = ""
    negated: bool = False
    rule: int = 0

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """What must match: the part of the request line, as Envoy names it, and the expression."""
        return _said(self.method, self.path, self.host)

    @property
    def unless(self) -> tuple[tuple[str, str], ...]:
        """What must not match, likewise."""
        return _said(self.unless_method, self.unless_path, self.unless_host)


def _said(method: str, path: str, host: str) -> tuple[tuple[str, str], ...]:
    parts = ((":method", method), (":path", path), (":authority", host))
    return tuple(part for part in parts if part[1])


class HttpRule(msgspec.Struct, frozen=True):
    """One HTTP rule of a rule set: all that it has must match. Empty fields match everything.

    `method`, `path` and `host` are RE2, whole, Latin-1. `path` is matched against `:path`, query included, `host`
    against the Host header as it came (`:authority`), as Cilium does. `tests`: of each group one must hold, too.
    """

    rule: int
    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()
    tests: tuple[tuple[HttpTest, ...], ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Its own id, and those of the rules that its tests are of."""
        return (self.rule, *(test.rule for group in self.tests for test in group if test.rule))


class RuleSet(msgspec.Struct, frozen=True):
    """The L7 rules that one class of connections meets. A request passes when any rule matches.

    `rules` None: every request passes (the rule set is there for `audit` only). `audit`: the rules that would be asked
    if policies in audit mode were enforced, None when they are the same; `()` would deny every request. `also`: the
    rules of the other end, where both ends of a connection have HTTP rules: a request must pass both (its id is that of
    the other end's own rule set, and has no part here).

    `id` and `name` stay the same when only the rules change, so that the listener stays and live connections see the
    new rules at their next request.
    """

    id: int
    name: str
    rules: tuple[HttpRule, ...] | None
    audit: tuple[HttpRule, ...] | None = None
    also: RuleSet | None = None

    @property
    def enforces(self) -> bool:
        """Whether it may refuse a request; otherwise all of it is in audit."""
        return self.rules is not None or (self.also is not None and self.also.enforces)


class EndpointPolicy(msgspec.Struct, frozen=True):
    """What the kernel must know of a local endpoint: its identity and which policy it has.

    `ingress`/`egress`: whether a policy selects the endpoint in that direction (otherwise everything passes).
    """

    identity: int
    policy_id: int
    ingress: bool
    egress: bool


class PolicyTable(msgspec.Struct, frozen=True):
    """All verdicts of one node at one revision.

    `endpoints` is keyed by «namespace/name» of the local pods; `ipcache` maps prefixes to identities and always has
    an entry for 0.0.0.0/0 and ::/0; `identities` gives the labels of every identity that appears anywhere in it.
    `pairs`: (rule set of the client's egress, rule set of the server's ingress) → the rule set that asks both.
    `delta`: what differs from an earlier table, when that is known.
    """

    revision: int
    identities: Mapping[int, tuple[str, ...]]
    ipcache: Mapping[IPNetwork, int]
    endpoints: Mapping[str, EndpointPolicy]
    classes: Mapping[ClassKey, int]
    rows: Mapping[RowKey, Row]
    rule_sets: Mapping[int, RuleSet]
    rules: Mapping[int, RuleRef]
    pairs: Mapping[tuple[int, int], int] = {}
    delta: TableDelta | None = None


class TableDelta(msgspec.Struct, frozen=True):
    """Keys whose values may differ from those of the table of revision `base`; values are in the table itself.

    A key that is in the delta and not in the table is gone. Deltas of consecutive tables add up by union.
    """

    base: int
    identities: frozenset[int] = frozenset()
    ipcache: frozenset[IPNetwork] = frozenset()
    endpoints: frozenset[str] = frozenset()
    classes: frozenset[ClassKey] = frozenset()
    rows: frozenset[RowKey] = frozenset()
    rule_sets: frozenset[int] = frozenset()
    pairs: frozenset[tuple[int, int]] = frozenset()
