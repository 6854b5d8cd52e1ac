"""What a NACK says. Pure.

Of listeners and clusters an xDS server takes what Envoy's text doesn't name for good («Error adding/updating
listener(s) a: why»), so that names must stand in it whole, and not too many: what is left out here comes again, and is
named then. Of routes a server finds out by sending each alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spliceway.proxy.ads.values import CLUSTER, LISTENER

_KINDS = {CLUSTER: "cluster(s)", LISTENER: "listener(s)"}
#: Characters of a reason, and of all of them. A server looks for each name of a response in the whole text, and has
#: its limits: 16 Ki characters are fine for 30,000 names.
LONGEST_REASON, LONGEST = 1000, 16 << 10


def refusal_text(type_url: str, refused: Mapping[str, str], *, alone: bool = False) -> str:
    """The message of `error_detail`; `refused`: name -> reason, not empty. `alone`: the response had nothing else."""
    if (kind := _KINDS.get(type_url)) is not None:
        return f"Error adding/updating {kind} " + "\n".join(_lines(refused))
    if alone:
        [reason] = refused.values()
        return _one_line(reason)
    return "\n".join(_lines(refused))


def _lines(refused: Mapping[str, str]) -> Iterator[str]:
    """`name: reason`, as many as there is room for and at least one."""
    left = LONGEST
    for name, reason in refused.items():
        line = f"{name}: {_one_line(reason)}"
        if len(line) > left and left < LONGEST:
            return
        left -= len(line)
        yield line


def _one_line(reason: str) -> str:
    reason = " ".join(reason.split())
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"
