"""Our rules among those of the node's netfilter: they keep others from dropping and translating what is proxied.

Steered packets come in by `steering.RECEIVING` and are not tracked, nor is what the proxy answers: the connection that
netfilter knows is the one before a translation, or none. So what the proxy sends may look to it like the middle of
something unknown: that is accepted, and not masqueraded. An accept ends its own base chain only, so it stands where
others drop: first in the built-in chains of iptables, of whichever variant the node has tables. What brings nftables of
its own that drop (firewalld) has to let this pass by its own rules.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec

from spliceway.bpf import abi
from spliceway.bpf.steering import RECEIVING
from spliceway.bpf.types import DatapathSettings

#: Base chains of our own can take packets out of tracking, so this needs no table of others.
_TABLE = "spliceway"
#: Chain → what is not tracked there: what is steered, and the proxy's answers to it, known by the priority of its
#: sockets (`c/untracked.h`). Answers that have to be translated back are tracked.
_UNTRACKED = {
    "prerouting": f'iifname "{RECEIVING}"',
    "output": f"meta priority {abi.UNTRACKED_PRIORITY >> 16:x}:{abi.UNTRACKED_PRIORITY & 0xFFFF:x}",
}
_NFT = f"add table inet {_TABLE}\n" + "".join(
    f"add chain inet {_TABLE} {chain} {{ type filter hook {chain} priority raw; policy accept; }}\n"
    f"flush chain inet {_TABLE} {chain}\n"
    f"add rule inet {_TABLE} {chain} {what} notrack\n"
    for chain, what in _UNTRACKED.items()
)
_COMMENT = ("-m", "comment", "--comment", "spliceway")
_CHAINS = {"filter": ("INPUT", "OUTPUT"), "nat": ("POSTROUTING",)}
_SECONDS = 10.0


class Rule(msgspec.Struct, frozen=True, order=True):
    """One rule of iptables. `tool`: ip or ip6; `variant`: nft or legacy; `what` stands behind the chain."""

    tool: str
    variant: str
    table: str
    chain: str
    what: tuple[str, ...]

    def command(self, action: str) -> list[str]:
        """The command that checks for it (-C), inserts it (-I) or deletes it (-D)."""
        program = f"{self.tool}tables-{self.variant}"
        return [program, "-w", "5", "-t", self.table, action, self.chain, *self.what]

    def __str__(self) -> str:
        return f"{self.tool}tables-{self.variant}: {self.table} {self.chain} {' '.join(self.what)}"


def wanted(settings: DatapathSettings, tables: Iterable[tuple[str, str, str]]) -> list[Rule]:
    """The rules for these tables, (tool, variant, table). Pure."""
    mark = ("-m", "mark", "--mark", f"{settings.proxy_mark:#x}/{settings.mark_mask:#x}")
    found = []
    for tool, variant, table in sorted(tables):
        if table == "filter":
            found.append(Rule(tool, variant, table, "INPUT", ("-i", RECEIVING, *_COMMENT, "-j", "ACCEPT")))
            found.append(Rule(tool, variant, table, "OUTPUT", (*mark, *_COMMENT, "-j", "ACCEPT")))
        if table == "nat":  # what begins with a SYN of the proxy's is masqueraded like the pod's own
            answers = ("-p", "tcp", "!", "--syn", *mark)
            found.append(Rule(tool, variant, table, "POSTROUTING", (*answers, *_COMMENT, "-j", "ACCEPT")))
    return found


async def mend(settings: DatapathSettings) -> tuple[list[Rule], list[str]]:
    """Put in what is missing. Returns the rules that had to be put in, and sentences about what could not be."""
    problems, put = [], []
    if await _run(["nft", "list", "table", "inet", _TABLE]) != (0, _listed()):
        status, text = await _run(["nft", "-f", "-"], _NFT)
        if status:
            problems.append(f"nft: steered packets can't be taken out of connection tracking: {text.strip()}")
    for rule in wanted(settings, await tables()):
        if not (await _run(rule.command("-C")))[0]:
            continue
        status, text = await _run(rule.command("-I"))
        if status:
            problems.append(
                f"{rule}: can't be inserted: {text.strip()}; DROP policies of the node break proxied connections"
            )
        else:
            put.append(rule)
    return put, problems


async def find() -> list[Rule]:
    """Every rule of ours that is there, by its comment: also those of other settings."""
    found = []
    for tool, variant, table in sorted(await tables()):
        for chain in _CHAINS[table]:
            _, text = await _run([f"{tool}tables-{variant}", "-w", "5", "-t", table, "-S", chain])
            for line in text.splitlines():
                words = shlex.split(line)
                if words[:2] == ["-A", chain] and _COMMENT[2:] in pairwise(words):
                    found.append(Rule(tool, variant, table, chain, tuple(words[2:])))
    return found


async def has_table() -> bool:
    """Whether our own table of nftables is there."""
    return not (await _run(["nft", "list", "table", "inet", _TABLE]))[0]


async def remove(rule: Rule) -> bool:
    """Delete one rule, as often as it is there. Returns whether it was."""
    gone = False
    while not (await _run(rule.command("-D")))[0]:
        gone = True
    return gone


async def remove_table() -> bool:
    """Delete our own table. Returns whether it was there."""
    return not (await _run(["nft", "delete", "table", "inet", _TABLE]))[0]


async def tables() -> set[tuple[str, str, str]]:
    """Tables of iptables that this network namespace has: (tool, variant, table)."""
    found = set()
    status, text = await _run(["nft", "list", "tables"])
    for line in text.splitlines() if not status else ():
        words = line.split()  # «table ip filter»
        if len(words) == 3 and words[1] in ("ip", "ip6") and words[2] in _CHAINS:
            found.add((words[1], "nft", words[2]))
    for tool, file in (("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")):
        found |= {(tool, "legacy", name) for name in _legacy_tables(file) if name in _CHAINS}
    return {each for each in found if shutil.which(f"{each[0]}tables-{each[1]}")}


def _legacy_tables(file: str) -> list[str]:
    path = Path("/proc/thread-self/net", file)
    return path.read_text().split() if path.exists() else []


def _listed() -> str:
    chains = (
        f"\tchain {chain} {{\n\t\ttype filter hook {chain} priority raw; policy accept;\n\t\t{what} notrack\n\t}}\n"
        for chain, what in _UNTRACKED.items()
    )
    return f"table inet {_TABLE} {{\n" + "\n".join(chains) + "}\n"


async def _run(command: list[str], stdin: str = "") -> tuple[int, str]:
    """Exit status, and what was written: to stdout when it is 0, else to stderr."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), _SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, f"{command[0]}: no answer after {_SECONDS:.0f} s"
    return process.returncode or 0, (err if process.returncode else out).decode()
