"""What Istio's AuthorizationPolicy says, for the oracle: DENY by source and port, in front of all other policies.

Source: istio.io/latest/docs/reference/config/security/authorization-policy. It judges TCP alone, at the server.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from support.oracle_world import Ask, Doc, Match, Who, World, labels_of, namespace_of, selects, title

_ROOT, _TRUST_DOMAIN = "istio-system", "cluster.local"


def denials(world: World, ask: Ask) -> list[Match]:
    """Rules that deny this connection to its server, by namespace and name; `Try` in place of Deny changes nothing."""
    found: list[Match] = []
    if ask.direction != "ingress" or ask.protocol != "TCP":
        return found
    for policy in world.of("AuthorizationPolicy"):
        spec = policy.get("spec", {})
        if spec.get("action", "ALLOW") != "DENY" or not _is_for(policy, spec, ask.pod):
            continue
        dry = policy["metadata"].get("annotations", {}).get("istio.io/dry-run") == "true"
        for index, rule in enumerate(spec.get("rules", [])):
            sources, operations = rule.get("from", [{"source": {}}]), rule.get("to", [{"operation": {}}])
            if any(_comes(one["source"], policy, ask.peer) for one in sources) and any(
                _goes(one["operation"], ask.port) for one in operations
            ):
                found.append(Match("Try" if dry else "Deny", f"{title(policy)} spec.rules[{index}]"))
    return found


def _is_for(policy: Doc, spec: Doc, pod: Doc) -> bool:
    here = namespace_of(policy) in (_ROOT, namespace_of(pod))
    return here and selects(spec.get("selector", {}), labels_of(pod))


def _comes(source: Doc, policy: Doc, peer: Who) -> bool:
    """All of its fields hold, each by one of its values; of a `not…` by none."""
    namespace = account = None
    if peer.pod is not None:
        namespace = namespace_of(peer.pod)
        account = f"{namespace}/{peer.pod['spec'].get('serviceAccountName', 'default')}"
    principal = f"{_TRUST_DOMAIN}/ns/{account.replace('/', '/sa/')}" if account else None

    def is_account(value: str) -> bool:
        return account == (value if "/" in value else f"{namespace_of(policy)}/{value}")

    def is_in(value: str) -> bool:
        network = ip_network(value)
        return bool(peer.address.version == network.version and peer.address in network)

    ways: dict[str, Any] = {
        "namespaces": lambda value: namespace == value,
        "principals": lambda value: principal == value,
        "serviceAccounts": is_account,
        "ipBlocks": is_in,
    }
    return all(_holds(source, field, way) for field, way in ways.items())


def _goes(operation: Doc, port: int) -> bool:
    return _holds(operation, "ports", lambda value: int(value) == port)


def _holds(part: Doc, field: str, is_one: Any) -> bool:
    opposite = f"not{field[0].upper()}{field[1:]}"
    wanted = field not in part or any(map(is_one, part[field]))
    return wanted and not any(map(is_one, part.get(opposite, [])))
