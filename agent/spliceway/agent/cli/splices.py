"""What is spliced and what is not, put for people. Pure: decoded JSON in, rows and sentences out."""

from __future__ import annotations

from typing import Any

from spliceway.agent.printable import printable

Json = dict[str, Any]

_UNITS = ("B", "KiB", "MiB", "GiB")


def splice_line(splice: Json) -> str:
    """Value of the row `splice` of `spliceway status`."""
    counters = splice["counters"]
    what = " and ".join(splice["spliced"]) or "nothing"
    mode = splice["mode"] if splice["mode"] == "off" else f"{splice['mode']}, {what}"
    why = ", ".join(f"{count} {reason}" for reason, count in most(counters["byWhy"]))
    return (
        f"{mode}: {counters['spliced']} spliced, {counters['tcpOnly']} on TCP{f' ({why})' if why else ''}, "
        f"{size(counters['redirectedBytes'])} redirected, "
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


def splice_notes(splice: Json) -> list[str]:
    """What keeps connections from being spliced, or is not heeded, one sentence each."""
    found = []
    if not splice["decided"]:
        found.append("splice: nothing is spliced until the self-test is over")
    if out := [name for name in ("clients", "servers") if name not in splice["spliced"]]:
        found += [f"splice: {' and '.join(out)} not spliced: {text}" for text in splice["why"]]
    found += [f"splice: spliced (force) in spite of: {text}" for text in splice["warnings"]]
    return [printable(text) for text in found]


def most(by_why: dict[str, int]) -> list[tuple[str, int]]:
    """Reasons that occurred, the most frequent first."""
    return sorted(((reason, count) for reason, count in by_why.items() if count), key=lambda one: (-one[1], one[0]))


def size(count: float) -> str:
    """Bytes in a unit that suits: «512 B», «1.5 MiB»."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
