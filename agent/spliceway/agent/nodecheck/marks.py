"""Who else uses bits of our packet marks: rules of iptables, nftables and `ip rule`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

ALL_BITS = 0xFFFF_FFFF
#: Tables that iptables-nft makes: iptables-save tells them better.
IPTABLES_TABLE = re.compile(r"table (?:ip|ip6|bridge|arp) (?:filter|nat|mangle|raw|security|broute) \{")
_NUMBER = r"(0x[0-9a-fA-F]+|\d+)"
_IPT_MATCH = re.compile(rf"(! )?--mark {_NUMBER}(?:/{_NUMBER})?")
_IPT_SET = re.compile(rf"--(?:set-x?mark|set-mark|tproxy-mark) {_NUMBER}(?:/{_NUMBER})?")
_IPT_RESTORE = re.compile(rf"--restore-mark(?: --nfmask {_NUMBER})?")
_NFT_SET = re.compile(r"\bmeta mark set ([^;{}]+)")
_NFT_MATCH = re.compile(rf"(?<!ct )\bmark (?:(?:&|and) {_NUMBER} )?(==|!=)? ?{_NUMBER}(?![-,\w])")
_NFT_VALUE = re.compile(
    rf"(?P<ct>ct )?(?:meta )?mark(?: (?:&|and) (?P<keep>{_NUMBER}))?(?: (?:\||or) (?P<put>{_NUMBER}))?(?:\s|$)"
)


class MarkUse(msgspec.Struct, frozen=True):
    """One rule that sets or asks for marks.

    `value` under `mask`: what is set or asked for; a `value` of None is one that the rule doesn't tell (a connection's
    mark). `rule` is its text.
    """

    kind: Literal["set", "match"]
    value: int | None
    mask: int
    rule: str


def of_iptables(text: str) -> list[MarkUse]:
    """From the output of iptables-save."""
    found = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        if not line.startswith("-A ") or "--comment spliceway " in line:  # none, or ours (bpf.netfilter)
            continue
        rule = f"iptables -t {table} {line}"
        for no, value, mask in _IPT_MATCH.findall(line):
            if not no:  # «not this mark»: everything else passes there, too
                found.append(MarkUse("match", _number(value), _number(mask, ALL_BITS), rule))
        for value, mask in _IPT_SET.findall(line) if "-j CONNMARK" not in line else ():
            # Bits of the value outside of the mask are flipped (--set-xmark 0x4000/0x0), or set.
            found.append(MarkUse("set", _number(value), _number(mask, ALL_BITS) | _number(value), rule))
        for mask in _IPT_RESTORE.findall(line):
            found.append(MarkUse("set", None, _number(mask, ALL_BITS), rule))
    return found


def of_nftables(text: str) -> list[MarkUse]:
    """From the output of `nft list ruleset`, without the tables that iptables-nft made."""
    found: list[MarkUse] = []
    table = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("table "):
            table = "" if IPTABLES_TABLE.match(line) else line.removesuffix(" {")
        elif table:
            found += _nft_rule(line, f"nft {table}: {line}")
    return found


def _nft_rule(line: str, rule: str) -> Iterator[MarkUse]:
    for value in _NFT_SET.findall(line):
        yield MarkUse("set", *_nft_value(value.strip()), rule)
    for mask, operator, value in _NFT_MATCH.findall(_NFT_SET.sub("", line)):
        if operator != "!=":
            yield MarkUse("match", _number(value), _number(mask, ALL_BITS), rule)


def _nft_value(text: str) -> tuple[int | None, int]:
    """Value and mask of what `meta mark set` writes. What can't be read may be anything."""
    if re.match(rf"{_NUMBER}(?:\s|$)", text):
        return int(text.split()[0], 0), ALL_BITS
    part = _NFT_VALUE.match(text)
    if part is None:
        return None, ALL_BITS
    put = _number(part["put"], 0)
    if part["ct"]:
        return None, ALL_BITS
    return put, (~_number(part["keep"], ALL_BITS) & ALL_BITS) | put


def bits(uses: Iterable[MarkUse]) -> int:
    """All bits that rules set or ask for one by one."""
    found = 0
    for use in uses:
        found |= use.mask if use.mask != ALL_BITS else 0
    return found


def conflicts(uses: Iterable[MarkUse], mark: int, proxy_mark: int, mask: int) -> list[MarkUse]:
    """Rules that may change our bits of a packet's mark, or that our marks match."""
    return [use for use in uses if use.mask & mask and (use.kind == "set" or _matches(use, (mark, proxy_mark), mask))]


def _matches(use: MarkUse, marks: tuple[int, ...], mask: int) -> bool:
    common = use.mask & mask
    return use.value is None or any(use.value & common == mark & common for mark in marks)


def _number(text: str, default: int = 0) -> int:
    return int(text, 0) if text else default
