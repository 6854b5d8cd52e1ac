"""An evaluator of policies written from the words of the specifications alone, straight on YAML documents.

It shares no code with `spliceway.policy`, and is as plain as it can be, so that it can be read beside the texts:
`oracle_kubernetes`, `oracle_cilium` and `oracle_istio` say what their kinds mean, here are the tiers and both ends of a
connection.
"""

from __future__ import annotations

from typing import NamedTuple

from support import oracle_cilium, oracle_istio, oracle_kubernetes
from support.oracle_world import Ask, Match, World, name_of


class Verdict(NamedTuple):
    """What a connection gets: allow, deny or redirect, the reason, and the rule «kind name path» that made it."""

    verdict: str
    reason: str
    rule: str | None = None


def judge(world: World, ask: Ask) -> Verdict:
    """One end: Istio's policies, and the Admin tier, NetworkPolicy and Cilium's together, the Baseline tier."""
    istio = _istio(world, ask)
    found = _rest(world, ask)
    for one in (istio, found):
        if one.verdict == "deny":
            return one
    if istio.reason == "policy-denied":  # tried only: it is told
        return istio if istio.verdict == "redirect" else istio._replace(verdict=found.verdict)
    if found.verdict == "redirect" or (istio.verdict == "allow" and found.reason != "no-policy"):
        return found
    return istio


def _istio(world: World, ask: Ask) -> Verdict:
    said = oracle_istio.says(world, ask)
    for match in said.denials:
        if match.action == "Deny":
            return Verdict("deny", "policy-denied", match.rule)
    node = ask.peer.node
    tried = said.denials[0].rule if said.denials else None
    if not said.silent and node is not None and name_of(node) == ask.pod["spec"]["nodeName"]:
        found = Verdict("allow", "host-allowed")
    elif said.allowed:
        found = Verdict("redirect" if said.refuses else "allow", "policy-allowed", said.allowed[0].rule)
    elif said.asks:
        found = Verdict("redirect", "redirected", said.asks[0].rule)
    elif said.closed:
        return Verdict("deny", "default-deny")
    elif said.refuses:
        found = Verdict("redirect", "redirected", said.refuses[0].rule)
    else:
        found = Verdict("allow", "no-policy")
    if found.verdict == "redirect":
        found = found._replace(reason="redirected")
    return Verdict(found.verdict, "policy-denied", tried) if tried else found


def _rest(world: World, ask: Ask) -> Verdict:
    tiers = {tier: oracle_kubernetes.tier_rules(world, ask, tier) for tier in ("Admin", "Baseline")}
    policies = oracle_kubernetes.network_policies(world, ask)
    cilium = oracle_cilium.policies(world, ask)
    if all(found is None for found in (*tiers.values(), policies, cilium)):
        return Verdict("allow", "no-policy")
    if (decided := _first(tiers["Admin"] or [])) is not None:
        return decided
    # Rules are named by the first in the order of kinds: Cilium's stand before NetworkPolicy's.
    matches = [*(cilium.matches if cilium else []), *(policies or [])]
    for match in matches:
        if match.action == "Deny":
            return Verdict("deny", "policy-denied", match.rule)
    node = ask.peer.node
    if ask.direction == "ingress" and node is not None and name_of(node) == ask.pod["spec"]["nodeName"]:
        return Verdict("allow", "host-allowed")
    for match in matches:
        if not match.http:
            return Verdict("allow", "policy-allowed", match.rule)
    if matches:
        return Verdict("redirect", "redirected", matches[0].rule)
    if policies is not None or (cilium is not None and cilium.default_deny):
        return Verdict("deny", "default-deny")
    return _first(tiers["Baseline"] or []) or Verdict("allow", "no-policy")


def decide(world: World, source: str, destination: str, protocol: str, port: int) -> Verdict:
    """Both ends: a denial decides, the client's first; then a redirect; then what a policy said, the server's first."""
    client, server = world.who(source), world.who(destination)
    if client.pod is not None and client.pod is server.pod:
        return Verdict("allow", "no-policy")  # it never leaves the pod
    halves = []
    if client.pod is not None:
        halves.append(judge(world, Ask(client.pod, "egress", server, server, protocol, port)))
    if server.pod is not None:
        halves.append(judge(world, Ask(server.pod, "ingress", client, server, protocol, port)))
    for verdict in ("deny", "redirect"):
        for half in halves:
            if half.verdict == verdict:
                return half
    for half in reversed(halves):
        if half.reason != "no-policy":
            return half
    return Verdict("allow", "no-policy")


def _first(matches: list[Match]) -> Verdict | None:
    for match in matches:
        if match.action == "Accept":
            return Verdict("allow", "policy-allowed", match.rule)
        if match.action == "Deny":
            return Verdict("deny", "policy-denied", match.rule)
        return None
    return None
