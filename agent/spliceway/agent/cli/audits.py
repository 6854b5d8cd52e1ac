"""What audit mode would deny, put for people. Pure: decoded JSON in, rows and sentences out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from spliceway.agent.cli.render import labels_text

Json = dict[str, Any]

COLUMNS = ("COUNT", "REASON", "RULE", "FROM", "TO", "PORT", "REQUEST", "FIRST", "LAST")
_MOST = 3


class By(StrEnum):
    """What `policy audit` sums up by."""

    POLICY = "policy"
    PAIR = "pair"
    PORT = "port"


def group_columns(by: By) -> tuple[str, ...]:
    """Head of the table of `audit_groups`."""
    return ("COUNT", *_GROUPS[by][0], *_SPREAD[by], "REASONS", "FIRST", "LAST")


def audit_groups(summary: Json, by: By) -> Iterator[tuple[Any, ...]]:
    """Rows under `group_columns`, most frequent first: what is alike in it, and how much of the rest there is."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for item in summary["entries"]:
        groups.setdefault(_GROUPS[by][1](item), []).append(item)
    for key, items in sorted(groups.items(), key=lambda one: (-_count(one[1]), one[0])):
        spread = (_some({_SPREADS[column](item) for item in items}) for column in _SPREAD[by])
        reasons = ", ".join(sorted({item["reason"] for item in items}))
        first, last = min(item["first"] for item in items), max(item["last"] for item in items)
        yield _count(items), *key, *spread, reasons, first, last


def audit_rows(summary: Json) -> Iterator[tuple[Any, ...]]:
    """Rows of `spliceway policy audit`."""
    for item in summary["entries"]:
        rule = item["rule"] or (
            f"(rule set {item['ruleSet']})" if item["ruleSet"] else f"({item['direction'] or 'none'})"
        )
        if item["direction"] and not item["rule"] and item.get("policies"):
            rule = f"({item['direction']}: {policies_text(item)})"
        request = f"{item['method']} {item['path']}".strip()
        source, destination = _party(item["source"]), _party(item["destination"])
        yield (
            item["count"],
            item["reason"],
            rule,
            source,
            destination,
            _port(item),
            request,
            item["first"],
            item["last"],
        )


def audit_notes(summary: Json) -> list[str]:
    """What the table of `spliceway policy audit` can't show, one sentence each."""
    found = [f"{_records(summary['records'])} since {summary['since']}"]
    if summary["uncounted"]:
        found.append(f"! {summary['uncounted']} more records of other pairs: too many to keep apart")
    found += [
        f"! {count} records were lost ({place}): some of them may have been audits"
        for place, count in summary["lost"].items()
        if count
    ]
    return found


def policies_text(item: Json) -> str:
    """Whose an entry is: «NetworkPolicy shop/web, CiliumNetworkPolicy shop/all», or that it is nobody's."""
    return ", ".join(item.get("policies", ())) or (
        "(gone)" if item["rule"] or item["ruleSet"] or item["reason"] == "default-deny" else "(no policy)"
    )


def _party(end: Json) -> str:
    """Namespace and labels of one end of an audit, and for what is no pod the latest address."""
    text = labels_text(end["labels"], derived=False) or str(end["identity"])
    return text if any(label.startswith("k8s:") for label in end["labels"]) else f"{text} ({end['address']})"


def _port(item: Json) -> str:
    return f"{item['protocol']} {item['port']}" if item["protocol"] else "(others)"


def _count(items: list[Json]) -> int:
    return sum(item["count"] for item in items)


def _some(texts: set[str]) -> str:
    shown = sorted(texts)
    return "; ".join(shown[:_MOST]) + (f" and {len(shown) - _MOST} more" if len(shown) > _MOST else "")


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"


#: What the rows of a table are alike in: its columns, and the values of an entry.
_GROUPS: dict[By, tuple[tuple[str, ...], Callable[[Json], tuple[str, ...]]]] = {
    By.POLICY: (("POLICIES",), lambda item: (policies_text(item),)),
    By.PAIR: (("FROM", "TO"), lambda item: (_party(item["source"]), _party(item["destination"]))),
    By.PORT: (("TO", "PORT"), lambda item: (_party(item["destination"]), _port(item))),
}
_SPREAD: dict[By, tuple[str, ...]] = {
    By.POLICY: ("FROM", "TO", "PORTS"),
    By.PAIR: ("PORTS", "POLICIES"),
    By.PORT: ("FROM", "POLICIES"),
}
_SPREADS: dict[str, Callable[[Json], str]] = {
    "FROM": lambda item: _party(item["source"]),
    "TO": lambda item: _party(item["destination"]),
    "PORTS": _port,
    "POLICIES": policies_text,
}
