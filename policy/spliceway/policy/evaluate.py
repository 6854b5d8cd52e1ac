"""The reference interpreter: what a connection or request gets, read straight from the policies.

It shares with the compiler what policies *are* (`model`, selectors, HTTP decisions), and nothing of how they are
compiled: no identities as numbers, no classes, no rows, no prefixes. It is slow and short, so that it can be trusted;
tests compare every data path with it. `evaluator.py` has the same answers for many questions.
"""

from __future__ import annotations

import msgspec

from spliceway.policy.evaluate_facts import Facts, find_pod
from spliceway.policy.evaluate_http import rule_set
from spliceway.policy.evaluate_peers import find_peer, peers_match, ports_match
from spliceway.policy.evaluate_tiers import Half, applied, both, judge
from spliceway.policy.http import HttpDecision, HttpRequest, decide
from spliceway.policy.model import Cluster, IPAddress, Pod, PortRule, Rule
from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Direction, Reason, Verdict

__all__ = ["Connection", "Decision", "Half", "evaluate", "evaluate_half"]


class Connection(msgspec.Struct, frozen=True):
    """A connection, or a packet without one. `protocol` is the IP protocol number; `port` the destination port.

    For ICMP the port is `type << 8 | code`; 0 for protocols without ports.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int


class Decision(msgspec.Struct, frozen=True):
    """Verdict on a connection; verdict, reason and rule are as `evaluate_tiers.both` says.

    `egress` and `ingress` are None where no endpoint stands, and where a pod talks to itself. `http` is there when a
    request was given and the connection is redirected; `http_rule` is the rule that let it pass, that of the server's
    end when both ends have rules.
    """

    verdict: Verdict
    reason: Reason
    rule: RuleRef | None
    egress: Half | None
    ingress: Half | None
    http: HttpDecision | None = None
    http_rule: RuleRef | None = None
    nearest_miss: str = ""


def evaluate(cluster: Cluster, connection: Connection, request: HttpRequest | None = None) -> Decision:
    """What this connection, and this request on it, gets. Only pods have policies; other addresses have none.

    A pod always reaches itself: what it sends to its own address never leaves it (Kubernetes, «Network Policies»: a pod
    cannot block access to itself). Raises ValueError when both addresses are not of one family.
    """
    if connection.source.version != connection.destination.version:
        raise ValueError("source and destination are not of one address family")
    facts = Facts(cluster)
    client = find_pod(facts, connection.source)
    server = find_pod(facts, connection.destination)
    egress = ingress = None
    if client is not None and client is not server:
        egress = evaluate_half(cluster, client, Direction.EGRESS, connection)
    if server is not None and client is not server:
        ingress = evaluate_half(cluster, server, Direction.INGRESS, connection)
    verdict, reason, rule = both(egress, ingress)
    if verdict is not Verdict.REDIRECT or request is None:
        return Decision(verdict, reason, rule, egress, ingress)
    rules, names = rule_set(cluster, egress, ingress)
    http = decide(request, rules, names)
    return Decision(verdict, reason, rule, egress, ingress, http, names.get(http.rule), http.nearest_miss)


def evaluate_half(cluster: Cluster, pod: Pod, direction: Direction, connection: Connection) -> Half:
    """What this pod's policies say about a connection to it (ingress) or from it (egress)."""
    incoming = direction is Direction.INGRESS
    peer = find_peer(Facts(cluster), pod.node, connection.source if incoming else connection.destination)
    serving = pod.ports if incoming else peer.ports

    def matches(rule: Rule, entry: PortRule | None) -> bool:
        return ports_match(entry, connection.protocol, connection.port, serving) and peers_match(
            cluster, rule.peers, peer
        )

    specs = applied(cluster.ordered_policies(), cluster.labels_of(pod), direction)
    return judge(specs, direction, matches, host=peer.host, audit=cluster.audit)
