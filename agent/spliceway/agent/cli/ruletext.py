"""Flows and rows of policies, put for people. Pure: decoded JSON in, lines and rows out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spliceway.agent.cli.render import address, labels_text
from spliceway.agent.printable import one_line

Json = dict[str, Any]


def policy_rows(policies: list[Json]) -> Iterator[tuple[str, ...]]:
    """Rows of `spliceway policy get`. Peers that differ in derived labels only are one, unless they are in two rows."""
    for policy in policies:
        names = ", ".join(policy["endpoints"])
        classes: dict[tuple[str, str], set[int]] = {}
        for row in policy["rows"]:
            for identity in row["identities"]:
                classes.setdefault((row["direction"], _identity(identity)), set()).add(row["class"])
        for direction in ("ingress", "egress"):
            if not policy[direction]:
                yield (names, direction, "any", "any", "*", "allow", "applied", "", "(no policy selects it)")
        for row in policy["rows"]:
            told = (
                _identity(identity, derived=len(classes[row["direction"], _identity(identity)]) > 1)
                for identity in row["identities"]
            )
            peers = "any other" if row["peers"] == "any other" else "; ".join(dict.fromkeys(told))
            http = "; ".join(map(_http_rule, row["http"]))
            rule = row["rule"] or f"({row['reason']})"
            yield (
                names, row["direction"], peers, row["protocol"], row["ports"], row["verdict"], row["state"], http, rule,
            )  # fmt: skip


def flow_line(flow: Json) -> str:
    """One flow as one line: time, ends, verdict, reason, what was asked, rule."""
    if "lost" in flow:
        return f"({flow['lost']} flows lost: this reader is too slow)"
    arrow = "<-" if flow["reply"] else "->"
    ends = f"{_end(flow['source'])} {arrow} {_end(flow['destination'])}"
    parts = [flow["time"], flow["hook"], ends, flow["protocol"] or "-", flow["verdict"], flow["reason"]]
    if http := flow["http"]:
        # A connection that was refused before it had a request has no method and got no answer.
        asked = (http["method"], http["path"], str(http["status"] or ""), f"{http['duration']} ms")
        parts.append(" ".join(filter(None, asked)))
    parts += [f"({flow['direction']})"] if flow.get("direction") else []
    parts += [f"[{text}]" for text in (flow["rule"], flow["nearestMiss"]) if text]
    # A denied request says why already; of one that passed it is what went wrong with its answer.
    if http and http.get("flags") and not flow["nearestMiss"]:
        parts.append(f"[{http.get('details') or http['flags']}]")
    parts += [f"[mismatch of {', '.join(headers)}]"] if (headers := flow.get("mismatches")) else []
    return one_line(" ".join(parts))


def _end(end: Json) -> str:
    where = end["pod"] or labels_text(end["labels"], derived=False)
    text = address(end["address"], end["port"]) if end["port"] else end["address"]
    return f"{where}({text})" if where else text


def _http_rule(rule: Json) -> str:
    parts = [rule["method"] or "*", rule["path"] or "*"]
    parts += [f"host {rule['host']}"] if rule["host"] else []
    for header in rule["headers"]:
        text = header["name"] if header["value"] is None else f"{header['name']}: {header['value']}"
        # With an action on mismatch it is no condition.
        parts.append(f"({header['mismatch']} {text})" if header["mismatch"] else text)
    for group in rule.get("tests", ()):
        told = " or ".join(map(_http_test, group))
        parts.append(f"and ({told})")
    return " ".join((*parts, "(audit)") if rule["audit"] else parts)


def _http_test(test: Json) -> str:
    said = [f"{part.strip(':')} {pattern}" for part, pattern in test["matches"].items()]
    said += [f"{part.strip(':')} other than {pattern}" for part, pattern in test["unless"].items()]
    return f"not {', '.join(said)}" if test["negated"] else ", ".join(said)


def _identity(identity: Json, *, derived: bool = False) -> str:
    return labels_text(identity["labels"], derived=derived) or str(identity["id"])
