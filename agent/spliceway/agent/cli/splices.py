"""What is spliced and what is not, put for people. Pure: decoded JSON in, rows and sentences out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from spliceway.agent.cli.render import address
from spliceway.agent.printable import printable

Json = dict[str, Any]

SOCK_COLUMNS = (
    "POD", "ADDRESS", "PEER", "LEG", "STATE", "WHY", "TO PROXY", "MESSAGES TO", "FROM PROXY", "MESSAGES FROM",
    "UNREAD", "AGE S", "RULE SET",
)  # fmt: skip
WATCH_COLUMNS = ("POD", "ADDRESS", "PEER", "LEG", "STATE", "WHY", "TO PROXY/S", "FROM PROXY/S", "UNREAD", "AGE S")
_BY_TCP = "tcp-only"
_UNITS = ("B", "KiB", "MiB", "GiB")


def splice_line(splice: Json) -> str:
    """Value of the row `splice` of `spliceway status`."""
    counters = splice["counters"]
    what = " and ".join(splice["spliced"]) or "nothing"
    mode = splice["mode"] if splice["mode"] == "off" else f"{splice['mode']}, {what}"
    never, left = by_kind(counters["byWhy"])
    return (
        f"{mode}: {counters['spliced']} spliced, of them {_sum('went on by TCP', left)}, "
        f"{_sum('never spliced', never)}, {size(counters['redirectedBytes'])} redirected, "
        f"{size(splice['unread'])} of {size(splice['limits']['node'])} unread"
    )


def self_test_line(splice: Json) -> str:
    """Value of the row `self-test` of `spliceway status`."""
    report = splice["selfTest"]
    if report is None:
        return "not run" if splice["decided"] else "runs"
    if report["error"]:
        return f"failed: {report['error']}"
    counts: dict[str, int] = {}
    for check in report["checks"]:
        counts[check["result"]] = counts.get(check["result"], 0) + 1
    told = ", ".join(f"{count} {result}" for result, count in counts.items()) or "no checks"
    return f"{told} in {report['seconds']:.1f} s (Linux {report['kernel']})"


def gate_line(splice: Json) -> str:
    """Value of the row `gate` of `spliceway status`."""
    if not splice["gate"]:
        return "nothing is known that speaks against splicing on this kernel"
    heeded = [text for text in splice["gate"] if text in (*splice["why"], *splice["warnings"])]
    told = len(splice["gate"]) - len(heeded)
    counts = ((len(heeded), "against splicing (below)"), (told, "without effect"))
    parts = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"known of this kernel: {parts}; -o json tells them"


def splice_notes(splice: Json) -> list[str]:
    """What keeps connections from being spliced, or is not heeded, one sentence each."""
    found = []
    if not splice["decided"]:
        found.append("splice: nothing is spliced until the self-test is over")
    if out := [name for name in ("clients", "servers") if name not in splice["spliced"]]:
        found += [f"splice: {' and '.join(out)} not spliced: {text}" for text in splice["why"]]
    found += [f"splice: spliced (force) in spite of: {text}" for text in splice["warnings"]]
    return [printable(text) for text in found]


def other_owner_notes(counters: Json) -> list[str]:
    """Whether connections stayed on TCP because another program's sockmap has their sockets."""
    count = counters["byWhy"].get("other-owner", 0)
    if not count:
        return []
    which = "1 connection" if count == 1 else f"{count} connections"
    return [f"splice: {which} on TCP, in another program's sockmap: `spliceway preflight` names it"]


def splice_wish(endpoint: Json) -> str:
    """What a pod's annotations say: «yes», «no», «not 9000, 9001»."""
    if not endpoint["splice"]:
        return "no"
    ports = ", ".join(map(str, endpoint["unsplicedPorts"]))
    return f"not {ports}" if ports else "yes"


def most(by_why: dict[str, int]) -> list[tuple[str, int]]:
    """Reasons that occurred, the most frequent first."""
    return sorted(((reason, count) for reason, count in by_why.items() if count), key=lambda one: (-one[1], one[0]))


def by_kind(by_why: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Reasons of connections that never were spliced, and of those that were and went on by TCP."""
    from spliceway.bpf.abi import LEFT

    left = {why.label for why in LEFT}
    never = {reason: count for reason, count in by_why.items() if reason not in left}
    return never, {reason: count for reason, count in by_why.items() if reason in left}


def _sum(what: str, reasons: dict[str, int]) -> str:
    """«3 never spliced (2 sent-first, 1 opted-out)»."""
    told = ", ".join(f"{count} {reason}" for reason, count in most(reasons))
    return f"{sum(reasons.values())} {what}{f' ({told})' if told else ''}"


def size(count: float) -> str:
    """Bytes in a unit that suits: «512 B», «1.5 MiB»."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def chosen(socks: Iterable[Json], *, pod: str | None, state: str | None, reason: str | None) -> list[Json]:
    """Those of a pod («namespace/name»), in a state, with a reason."""
    wanted = {"endpointPod": pod, "state": state, "why": reason}
    return [sock for sock in socks if all(value in (None, sock[name]) for name, value in wanted.items())]


def sock_rows(socks: Iterable[Json]) -> Iterator[tuple[Any, ...]]:
    """Rows of `spliceway sock list`, under SOCK_COLUMNS.

    None where nothing is counted: in a connection that never was spliced.
    """
    for sock in socks:
        sums = (sock["toProxyBytes"], sock["toProxyMessages"], sock["fromProxyBytes"], sock["fromProxyMessages"])
        yield (
            *_who(sock),
            *((None,) * len(sums) if _never_spliced(sock) else sums),
            _unread(sock),
            sock["ageSeconds"],
            sock["ruleSetName"],
        )


def with_rates(socks: Iterable[Json], before: Iterable[Json], seconds: float) -> list[Json]:
    """The same with bytes a second since `before`, `seconds` ago; busiest first.

    None for one that was not there, and for one that goes by TCP, where nothing is counted; those come last.
    """
    old = {_tuple(sock): sock for sock in before}
    rated = []
    for sock in socks:
        rates: dict[str, float | None] = {}
        was = old.get(_tuple(sock))
        # Ports are used again: a connection only ever gets older.
        if was is not None and (was["ageSeconds"] > sock["ageSeconds"] or sock["state"] == _BY_TCP):
            was = None
        for way in ("toProxy", "fromProxy"):
            more = None if was is None else sock[f"{way}Bytes"] - was[f"{way}Bytes"]
            rates[f"{way}BytesPerSecond"] = None if more is None else round(more / seconds, 1)
        rated.append({**sock, **rates})
    return sorted(rated, key=lambda sock: (sock["toProxyBytesPerSecond"] is None, -_rate(sock)))


def watch_rows(rated: Iterable[Json]) -> Iterator[tuple[Any, ...]]:
    """Rows of `spliceway sock list --watch`, under WATCH_COLUMNS."""
    for sock in rated:
        measured = (sock["toProxyBytesPerSecond"], sock["fromProxyBytesPerSecond"], _unread(sock))
        yield (*_who(sock), *(None if value is None else size(value) for value in measured), sock["ageSeconds"])


def totals_line(rated: Iterable[Json]) -> str:
    """«3 connections: 2 spliced, 1 tcp-only; 1.5 MiB/s spliced»."""
    rated = list(rated)
    states = Counter(sock["state"] for sock in rated)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common()) or "none"
    return f"{len(rated)} connection{'' if len(rated) == 1 else 's'}: {told}; {size(sum(map(_rate, rated)))}/s spliced"


def counted(counters: Json, socks: Iterable[Json]) -> list[Json]:
    """Connections by state and reason: `total` since the programs were loaded, `now` those that are there.

    `left`: they were spliced, and are in that total, too; `tcp-only`: they never were.
    """
    now = Counter((sock["state"], sock["why"]) for sock in socks)
    found = [_count("spliced", "", counters["spliced"], now), _count("revoked", "", counters["revoked"], now)]
    never, left = by_kind(counters["byWhy"])
    found += [_count("left", reason, count, now) for reason, count in most(left)]
    found += [_count("tcp-only", reason, count, now) for reason, count in most(never)]
    return found


def _count(state: str, reason: str, total: int, now: Counter[tuple[str, str]]) -> Json:
    listed = _BY_TCP if state == "left" else state  # `sock list` tells both by TCP, with the reason
    there = sum(count for (its_state, why), count in now.items() if its_state == listed and reason in ("", why))
    return {"state": state, "reason": reason, "total": total, "now": there}


def _who(sock: Json) -> tuple[str, ...]:
    return (
        sock["endpointPod"] or "-",
        address(sock["endpoint"], sock["endpointPort"]),
        address(sock["peer"], sock["peerPort"]),
        sock["leg"],
        sock["state"],
        sock["why"],
    )


def _never_spliced(sock: Json) -> bool:
    """Whether all of it goes by TCP, where nothing is counted."""
    return bool(sock["state"] == _BY_TCP and by_kind({sock["why"]: 1})[0])


def _unread(sock: Json) -> int | None:
    """Spliced bytes that wait for both readers; None where none can come any more, and none is left."""
    waiting: int = sock["toProxyUnread"] + sock["fromProxyUnread"]
    return None if sock["state"] == _BY_TCP and not waiting else waiting


def _tuple(sock: Json) -> tuple[Any, ...]:
    return sock["endpoint"], sock["endpointPort"], sock["peer"], sock["peerPort"], sock["leg"], sock["endpointPod"]


def _rate(rated: Json) -> float:
    return (rated["toProxyBytesPerSecond"] or 0.0) + (rated["fromProxyBytesPerSecond"] or 0.0)
