"""Chains that drop what no rule accepts: which they are, and whether an agent can make them let steered packets pass.

Pure, but for reading the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spliceway.agent.nodecheck.marks import IPTABLES_TABLE
from spliceway.agent.nodecheck.model import Check, Target, info, ok, skipped, warn
from spliceway.agent.nodecheck.netfilter import Rules, read, variant

_POLICY = re.compile(r"^:(INPUT|FORWARD|OUTPUT) DROP\b", re.MULTILINE)
_BASE_CHAIN = re.compile(r"type filter hook (input|forward|output|prerouting|postrouting) .*policy drop;")


def drop_policies(_target: Target) -> Iterator[Check]:
    """Chains whose policy is DROP."""
    yield from judge(read())


def judge(found: Rules) -> Iterator[Check]:
    """From all rules."""
    name, clean = "drop-policies", True
    by_chain: dict[str, list[str]] = {}
    for text in found.iptables:
        filter_table = re.search(r"^\*filter\n(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL)
        for chain in _POLICY.findall(filter_table[1]) if filter_table else ():
            by_chain.setdefault(chain, []).append(variant(text))
    for chain, tools in sorted(by_chain.items()):
        clean = False
        todo = "nothing: the agent puts in what steered packets need, and puts it back when it goes"
        yield info(name, f"{chain} has the policy DROP ({', '.join(dict.fromkeys(tools))})", todo)
    for table, chain in _of_nftables(found.nftables):
        clean = False
        todo = "have its owner let pass what comes in by spliceway1, and what goes out with datapath.proxyMark"
        yield warn(name, f"nft {table}: chain {chain} has the policy drop", todo)
    if clean and found.unread and not found.iptables:
        yield skipped(name, "the rules of iptables can't be read", "see `marks`, which says why")
    elif clean:
        yield ok(name, "no chain has the policy DROP")


def _of_nftables(text: str) -> Iterator[tuple[str, str]]:
    """Table and chain of each base chain that drops, without the tables that iptables-nft made."""
    table = chain = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("table "):
            table = "" if IPTABLES_TABLE.match(line) else line.removesuffix(" {")
        elif line.startswith("chain "):
            chain = line.removeprefix("chain ").removesuffix(" {")
        elif table and _BASE_CHAIN.match(line):
            yield table, chain
