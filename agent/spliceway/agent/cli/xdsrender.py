"""What the agent says of xDS, put for people. Pure: decoded JSON in, rows and sentences out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from spliceway.agent.printable import one_line, printable

Json = dict[str, Any]

#: An answer that is awaited for longer than this, in seconds, is wrong: a healthy client answers in milliseconds.
PATIENCE = 5.0
#: Longest value that stands in a table, in characters; -o json has all of it.
_LONGEST = 160

CLIENT_COLUMNS = ("NODE", "CLUSTER", "AGENT", "VERSION", "PROTOCOL", "SERVICE", "PEER", "CONNECTED", "STREAM")
TYPE_COLUMNS = (
    "NODE", "TYPE", "STATE", "RESOURCES", "SENT", "ACKED", "SENT NONCE", "ACKED NONCE", "SIZE", "ACK MS", "NACKS",
)  # fmt: skip
DUMP_COLUMNS = ("TYPE", "NAME", "STATE", "VERSION", "SIZE", "FILE", "POLICY")
DIFF_COLUMNS = ("TYPE", "NAME", "STATE", "WHERE", "DESIRED", "ENVOY")


def client_rows(clients: Sequence[Json]) -> Iterator[tuple[Any, ...]]:
    """A row for each stream."""
    for status in clients:
        client = status["client"]
        yield (
            *(client[name] for name in ("node", "cluster", "agent", "version")),
            status["protocol"],
            status["service"],
            status["peer"],
            time_text(status["since"]),
            status["stream"] if status["current"] else f"{status['stream']} (replaced by a newer one)",
        )


def type_rows(clients: Sequence[Json]) -> Iterator[tuple[Any, ...]]:
    """A row for each type that a current stream has asked for."""
    for status in clients:
        for kind in status["types"] if status["current"] else ():
            synced = sum(resource["state"] == "SYNCED" for resource in kind["resources"])
            total = kind["count"]
            yield (
                status["client"]["node"],
                kind["type"],
                kind["state"],
                total if synced == total else f"{synced}/{total}",
                kind["sentVersion"],
                kind["ackedVersion"],
                kind["sentNonce"],
                kind["ackedNonce"],
                size_text(kind["size"]),
                "" if kind["ackSeconds"] is None else f"{kind['ackSeconds'] * 1000:.1f}",
                kind["nacks"],
            )


def status_notes(clients: Sequence[Json]) -> Iterator[str]:
    """What the tables can't show: what was refused, in the client's words, whole; also what is over by now."""
    yield from map(printable, _notes(clients))


def _notes(clients: Sequence[Json]) -> Iterator[str]:
    for status in clients:
        node = status["client"]["node"]
        if status["client"]["warning"]:
            yield f"{node}: {status['client']['warning']}"
        for url, count in status["unsupported"].items():
            yield f"{node}: asked {count} times for {url or 'no type at all'}, which is not served"
        for kind in status["types"]:
            refused = [resource for resource in kind["resources"] if resource["state"] == "NACK"]
            for resource in refused:
                yield f"{node}: {kind['type']} {resource['name']} refused: {resource['error']}"
            if (error := kind["lastError"]) and not refused:
                yield f"{node}: {kind['type']} {error['version']} was refused and is over: {error['message']}"


def status_problems(clients: Sequence[Json], now: float) -> list[str]:
    """What is wrong, one sentence each: then the exit status is 1. `now`: CLOCK_REALTIME in seconds."""
    if not clients:
        return ["no client is connected"]
    found = []
    for status in clients:
        node = status["client"]["node"]
        for kind in status["types"] if status["current"] else ():
            if kind["state"] == "NACK":
                names = [resource["name"] for resource in kind["resources"] if resource["state"] == "NACK"]
                found.append(f"{node}: {kind['type']}: NACK of {listed(names)}")
            elif kind["waiting"] and (late := now - _seconds(kind["sentAt"], now)) > PATIENCE:
                found.append(f"{node}: {kind['type']}: no answer to {kind['sentNonce']} for {late:.0f} s")
            elif not status["snapshot"]:
                found.append(f"{node}: {kind['type']}: there is nothing to send: no resources for this node")
    return [printable(text) for text in dict.fromkeys(found)]


def refused_problems(refused: Sequence[Json]) -> list[str]:
    """What `xds serve` was told and does not serve, one sentence each: then the exit status is 1."""
    return [one_line(f"refused: {one['reason']}") for one in refused if one["kind"] != "client"]


def refused_warnings(refused: Sequence[Json]) -> list[str]:
    """Clients that were not served in the last minute, one sentence each: no reason for an exit status of 1."""
    return [
        one_line(f"{one['name'] or '(without node id)'} is not served: {one['reason']} ({time_text(one['time'])})")
        for one in refused
        if one["kind"] == "client"
    ]


def dump_rows(resources: Sequence[Json]) -> Iterator[tuple[Any, ...]]:
    """A row for each resource and policy that is in it."""
    for resource in resources:
        # What `xds serve` has for everybody is sent to nobody under that name.
        state = "" if resource.get("node") == "*" else resource["state"]
        head = (resource["type"], resource["name"], state, resource["version"], size_text(resource["size"]))
        policies, origin = resource["policies"], resource["origin"]
        if not policies:
            yield (*head, "", "(configuration)") if origin == "configuration" else (*head, origin, "")
        for policy in policies:
            title = policy["name"] if not policy["namespace"] else f"{policy['namespace']}/{policy['name']}"
            rules = ", ".join(rule["path"] + (" (audit)" if rule["audit"] else "") for rule in policy["rules"])
            yield (*head, policy["file"], " ".join(part for part in (policy["kind"], title, rules) if part))


def diff_rows(resources: Sequence[Json]) -> Iterator[tuple[str, ...]]:
    """A row for each place in which a resource differs; versions where it does as a whole."""
    for item in resources:
        head = (item["type"], item["name"], item["state"])
        for field in item["fields"]:
            yield (*head, field["path"], _value(field["desired"]), _value(field["envoy"]))
        if not item["fields"]:
            yield (*head, "(version)", item["version"], item["envoyVersion"])


def diff_notes(resources: Sequence[Json]) -> Iterator[str]:
    """What the table can't show: what the proxy says of a resource, whole, and how many more places differ."""
    for item in resources:
        if item["message"]:
            yield printable(f"{item['type']} {item['name']}: {item['message']}")
        if item["more"]:
            yield printable(f"{item['type']} {item['name']}: {item['more']} more places differ")


def diff_sum(answer: Json) -> str:
    """How many resources were compared, and what came out."""
    counts = Counter(item["state"] for item in answer["resources"])
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), key=lambda item: item[0] == "same"))
    return printable(f"{answer['node']}: {len(answer['resources'])} resources: {told or 'nothing to compare'}")


def event_line(event: Json) -> str:
    """One event as one line."""
    if "lost" in event:
        return f"({event['lost']} events lost: this reader is too slow)"
    names = list(event["resources"])
    more = event["count"] - len(names)
    parts = [time_text(event["time"], milliseconds=True), event["kind"], event["node"] or "(no node)"]
    parts += [event["protocol"], event["type"], event["version"]]
    parts += [f"nonce {event['nonce']}"] if event["nonce"] else []
    parts += [", ".join(names) + (f" and {more} more" if more > 0 else "")] if names else []
    parts += [f"removed {listed(event['removed'])}"] if event["removed"] else []
    parts += [size_text(event["size"])] if event["size"] else []
    parts += [f"after {event['ackSeconds'] * 1000:.1f} ms"] if event["ackSeconds"] is not None else []
    parts += [f"({event['stream']})"] if event["stream"] and not event["type"] else []
    line = " ".join(part for part in parts if part) + (f": {event['error']}" if event["error"] else "")
    return printable(" ".join(line.splitlines()))


def _value(value: Any) -> str:
    """A value of a field as JSON, cut."""
    if value is None:
        return "(none)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def size_text(size: int) -> str:
    """Bytes, for people."""
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


def time_text(time: str, *, milliseconds: bool = False) -> str:
    """RFC 3339 in UTC, with less of the second than it came."""
    text = datetime.fromisoformat(time).isoformat(timespec="milliseconds" if milliseconds else "seconds")
    return text.replace("+00:00", "Z")


def _seconds(time: str | None, default: float) -> float:
    """CLOCK_REALTIME of RFC 3339."""
    return default if time is None else datetime.fromisoformat(time).timestamp()


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
