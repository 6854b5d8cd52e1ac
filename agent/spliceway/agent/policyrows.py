"""The rows of a table as `policy get` shows them: peers, rules and HTTP rules by name. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from spliceway.agent.provenance import Unapplied, worst
from spliceway.agent.verdicts import verdict_label
from spliceway.policy.rulesets import NO_VALUE
from spliceway.policy.table import OTHER_PEERS, HeaderMatch, HttpTest, PolicyTable, RowKey, RuleSet
from spliceway.policy.verdict import Direction, Protocol


def policy_rows(
    table: PolicyTable, policy_ids: Collection[int], missing: Mapping[int, Unapplied] | None = None
) -> dict[int, list[dict[str, Any]]]:
    """Rows by policy id. `missing`: rule sets that the proxy has not taken over as they are."""
    why = _by_end(table, missing or {})
    members: dict[tuple[int, Direction, int], list[int]] = defaultdict(list)
    for key, class_id in table.classes.items():
        if key.policy_id in policy_ids:
            members[key.policy_id, key.direction, class_id].append(key.identity)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(key for key in table.rows if key.policy_id in policy_ids):
        inside = sorted(members.get((row.policy_id, row.direction, row.class_id), ()))
        found[row.policy_id].append(_row(table, row, inside) | _state(why.get(table.rows[row].rule_set, ())))
    return found


def _by_end(table: PolicyTable, missing: Mapping[int, Unapplied]) -> dict[int, list[Unapplied]]:
    """What is missing, by the rule set that rows name: itself, and the pairs that it is one end of."""
    found: dict[int, list[Unapplied]] = defaultdict(list)
    for number, each in missing.items():
        found[number].append(each)
    for pair, both in table.pairs.items() if missing else ():
        if (each_of_both := missing.get(both)) is not None:
            for end in pair:
                found[end].append(each_of_both)
    return found


def _state(why: Sequence[Unapplied]) -> dict[str, Any]:
    return {"state": worst(each.state for each in why), "why": why}


def _row(table: PolicyTable, key: RowKey, identities: list[int]) -> dict[str, Any]:
    row = table.rows[key]
    rule_set = table.rule_sets.get(row.rule_set)
    return {
        "direction": key.direction,
        "class": key.class_id,
        "peers": "any other" if key.class_id == OTHER_PEERS else "these",
        "identities": [{"id": identity, "labels": table.identities.get(identity, ())} for identity in identities],
        "protocol": key.protocol,
        "ports": port_text(key),
        "verdict": verdict_label(row.verdict, row.reason),
        "reason": row.reason,
        "rule": str(table.rules[row.rule]) if row.rule in table.rules else "",
        "ruleSet": rule_set.name if rule_set else "",
        "http": _http(table, rule_set) if rule_set else [],
    }


def _http(table: PolicyTable, rule_set: RuleSet) -> list[dict[str, Any]]:
    return [
        {
            "method": rule.method,
            "path": rule.path,
            "host": rule.host,
            "headers": [_header(header) for header in rule.headers],
            "tests": [[_test(table, test) for test in group] for group in rule.tests],
            "audit": audit,
            "rule": str(table.rules.get(rule.rule, "")),
        }
        for audit, rules in ((False, rule_set.rules), (True, rule_set.audit))
        for rule in rules or ()
    ]


def _test(table: PolicyTable, test: HttpTest) -> dict[str, Any]:
    """What an AuthorizationPolicy asks beside the rule."""
    return {
        "negated": test.negated,
        "matches": dict(test.wanted),
        "unless": dict(test.unless),
        "rule": str(table.rules.get(test.rule, "")),
    }


def _header(header: HeaderMatch) -> dict[str, str | None]:
    """A header match, without the value of a Secret; whether there is one that a header can have."""
    value = header.value
    if header.secret and value is not None:
        value = "(secret is missing or can be no header: never matches)" if value == NO_VALUE else "(secret)"
    return {"name": header.name, "value": value, "mismatch": header.mismatch.value}


def port_text(key: RowKey) -> str:
    """`*`, `80`, `64-127`; for ICMP the type (and code)."""
    if key.port_bits == 0:
        return "*"
    last = key.port | ((1 << (16 - key.port_bits)) - 1)
    if key.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return f"type {key.port >> 8}" + (f" code {key.port & 0xFF}" if key.port_bits == 16 else "")
    return str(key.port) if last == key.port else f"{key.port}-{last}"
