"""Verdicts, directions and the one enumerated reason that every verdict carries.

The numbers are shared with the BPF programs (`bpf/spliceway/bpf/include/abi.h`); a test compares the two.
Sources: architecture.md, «Up: from a packet to a verdict»; style rule 5.
"""

from __future__ import annotations

from enum import IntEnum


class Direction(IntEnum):
    """Direction of a connection seen from the endpoint whose policy is asked."""

    INGRESS = 0
    EGRESS = 1

    @property
    def label(self) -> str:
        """Lower-case name, as in flows and tables."""
        return self.name.lower()


class Verdict(IntEnum):
    """What happens to a connection, a packet or a request.

    NONE is «no row»: it never leaves the kernel's maps. REDIRECT means: steered to the listener of a rule set,
    where the HTTP rules decide.
    """

    NONE = 0
    ALLOW = 1
    REDIRECT = 2
    DENY = 3

    @property
    def label(self) -> str:
        """Lower-case name, as in flows and tables."""
        return self.name.lower()


class Protocol(IntEnum):
    """IP protocol numbers that a policy can name; ANY is a row for every protocol."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class Reason(IntEnum):
    """Why a verdict is what it is. Below 32: passed. 32 to 63: dropped in the kernel. From 64: HTTP."""

    UNKNOWN = 0
    POLICY_ALLOWED = 1  # a rule allows it
    NO_POLICY = 2  # no policy selects the endpoint in this direction, or none of them asks for default deny
    REDIRECTED = 3  # a rule with HTTP rules matches: steered to its listener
    REPLY = 4  # belongs to a connection that was allowed
    HOST_ALLOWED = 5  # the node itself (kubelet probes), always allowed in
    RELATED = 6  # ICMP error about an allowed connection
    CONTROL = 7  # ARP, neighbour discovery
    FROM_PROXY = 8  # the proxy's own leg of a redirected connection
    SERVICE = 9  # a pod dials a Service: decided where that leads, by the real server

    DEFAULT_DENY = 32  # a policy selects the endpoint and no rule allows
    POLICY_DENIED = 33  # a deny rule matches
    SPOOFED_SOURCE = 34  # the source address is not the endpoint's own
    MALFORMED = 35  # the packet can't be parsed
    UNSUPPORTED_PROTOCOL = 36  # neither IP nor ARP
    FRAGMENT = 37  # a fragment of a redirected flow, or one whose first fragment was not seen
    NO_ENDPOINT = 38  # the interface belongs to no endpoint
    NO_IDENTITY = 39  # the peer's address has no identity
    NOT_STEERED = 40  # HTTP rules apply and the packet did not come through the proxy
    NO_LISTENER = 41  # the rule set's listener is not there (proxy starting, gone, or not acknowledged)
    ASSIGN_FAILED = 42  # the kernel refused to hand the packet to the proxy's socket
    RULE_SET_CHANGED = 43  # the connection began under another rule set
    TUPLE_CONFLICT = 44  # another leg already uses these addresses and ports
    UNTRACKED = 45  # an ICMP error about no known connection
    NOT_FOR_LISTENERS = 46  # dialled a listener's port directly
    NOT_READY = 47  # the endpoint's policy is not there yet
    FOREIGN_SOURCE = 48  # a process on the node used an address that is not the node's
    SOURCE_ROUTE = 49  # a source route or a routing header would send the packet somewhere else
    TUNNEL = 50  # a pod sent a tunnel's packet to a node
    WRAPPED = 51  # IPsec has hidden where a Service led before that could be judged

    HTTP_ALLOWED = 64  # a rule matches the request
    HTTP_DENIED = 65  # no rule matches the request
    HTTP_AMBIGUOUS = 66  # could be read in two ways, so refused before matching
    HTTP_MALFORMED = 67  # not HTTP that the proxy accepts
    HTTP_TLS = 68  # TLS where the proxy can only enforce rules on plain HTTP
    HTTP_2 = 69  # HTTP/2 from the first byte, which the embedded proxy does not speak
    HTTP_HEAD_TOO_LARGE = 70  # the head of a request has more bytes or fields than the listener takes
    HTTP_TIMEOUT = 71  # the client did not finish a head or a body in time
    CONNECTION_LIMIT = 72  # the proxy has as many connections as it may have, of this client or of all

    @property
    def label(self) -> str:
        """Kebab-case name, as in flows, metrics, status and tests: `default-deny`."""
        return self.name.lower().replace("_", "-")

    @property
    def denies(self) -> bool:
        """Whether this is a reason to drop or refuse. With a verdict that lets pass, that verdict is an audit."""
        return self >= Reason.DEFAULT_DENY and self is not Reason.HTTP_ALLOWED
