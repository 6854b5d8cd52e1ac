"""One entry of ingress, egress, ingressDeny or egressDeny: its peers and its ports."""

from __future__ import annotations

from types import MappingProxyType

from spliceway.policy.fields import Fields
from spliceway.policy.model import Action, Rule
from spliceway.policy.parse_icmp import parse_icmp_rules
from spliceway.policy.parse_peers import parse_peers
from spliceway.policy.parse_ports import parse_port_rules
from spliceway.policy.verdict import Direction

#: Fields of Cilium's API that are not built.
_NOT_BUILT = MappingProxyType(
    {
        Direction.INGRESS: ("fromRequires", "fromGroups", "authentication"),
        Direction.EGRESS: ("toRequires", "toGroups", "toFQDNs", "authentication"),
    }
)


def parse_rule(fields: Fields, path: str, direction: Direction, *, deny: bool, namespace: str) -> Rule:
    """A rule. `path` is the field path that names it; `namespace` is the policy's, empty when it is clusterwide."""
    fields.unsupported(_NOT_BUILT[direction])
    peers = parse_peers(fields, direction, namespace)
    ports = parse_port_rules(fields, path, namespace, deny=deny)
    messages = parse_icmp_rules(fields, path)
    if ports and messages:
        fields.where.refuse("combining toPorts and icmps is not supported, as in Cilium (write two rules)")
    fields.done()
    action = Action.DENY if deny else Action.ALLOW
    to_ports = ports + messages
    return Rule(path, direction, action, peers, to_ports, void=peers is None and not to_ports)
