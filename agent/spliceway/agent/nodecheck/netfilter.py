"""Netfilter: whose rules touch our marks, how Services are done, bridges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spliceway.agent.nodecheck import devices, marks
from spliceway.agent.nodecheck.model import Check, Target, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, output, program, sysctl
from spliceway.bpf.types import DatapathSettings

_LISTED = ("iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save")
_NFT = ("nft", "list", "ruleset")
#: How many rules are told one by one.
_SHOWN = 5


class Rules:
    """What the programs print that list rules; each is asked once, `unread` says of which there is no answer."""

    def __init__(self, iptables: Sequence[str], nftables: str, unread: Sequence[str] = ()) -> None:
        self.iptables, self.nftables, self.unread = tuple(iptables), nftables, tuple(unread)

    @property
    def uses(self) -> list[marks.MarkUse]:
        """Rules that set or ask for marks, each once."""
        found = [use for text in self.iptables for use in marks.of_iptables(text)]
        return list(dict.fromkeys([*found, *marks.of_nftables(self.nftables)]))


def read() -> Rules:
    """Ask iptables and nftables for all rules. Programs that are not there are named in `unread`."""
    texts, unread = [], []
    for name in _LISTED:
        if name.endswith("legacy-save") and not program(name):
            continue  # then iptables-save is the only one
        try:
            texts.append(output((name,)))
        except Unreadable as error:
            unread.append(str(error))
    try:
        nftables = output(_NFT)
    except Unreadable as error:
        nftables = ""
        unread.append(str(error))
    return Rules(texts, nftables, unread)


def mark_uses(target: Target) -> Iterator[Check]:
    """Rules that touch the bits of `datapath.markMask`."""
    yield from judge_marks(read(), target.settings)


def judge_marks(found: Rules, settings: DatapathSettings) -> Iterator[Check]:
    """From all rules."""
    hits = marks.conflicts(found.uses, settings.mark, settings.proxy_mark, settings.mark_mask)
    ours = f"datapath.markMask {settings.mark_mask:#x}"
    for use in hits[:_SHOWN]:
        if use.kind == "set":
            todo = "let it keep our bits (by a mask), or move datapath.mark, proxyMark and markMask to free bits"
            yield warn("marks", f"sets bits of {ours}: {use.rule}", todo)
        else:
            todo = "move datapath.mark, proxyMark and markMask to free bits, if it is meant for other packets"
            yield warn("marks", f"our marks match: {use.rule}", todo)
    if len(hits) > _SHOWN:
        yield warn("marks", f"{len(hits) - _SHOWN} more rules touch {ours}", "see iptables-save and nft list ruleset")
    if found.unread:
        yield skipped("marks", "; ".join(found.unread), "see for yourself, or install it where preflight runs")
    if not hits and (found.iptables or found.nftables or not found.unread):
        uses = found.uses
        others = f"{len(uses)} rules use marks" + (f", bits {bits:#x}" if (bits := marks.bits(uses)) else "")
        yield ok("marks", f"no rule touches {ours} ({others})")


def variant(saved: str) -> str:
    """Which iptables has printed this: «iptables-nft», «ip6tables-legacy», by its first line."""
    first = saved.partition("\n")[0]
    return f"{'ip6' if 'ip6tables' in first else 'ip'}tables-{'nft' if 'nf_tables' in first else 'legacy'}"


def kube_proxy(_target: Target) -> Iterator[Check]:
    """How Services are done on this node."""
    yield judge_kube_proxy(read(), tuple(devices.kinds()))


def judge_kube_proxy(found: Rules, interfaces: Sequence[str]) -> Check:
    """From all rules and the names of the interfaces."""
    name = "kube-proxy"
    if "kube-ipvs0" in interfaces:
        return info(name, "mode ipvs (kube-ipvs0)", "nothing: packets are steered before ipvs and netfilter see them")
    if "table ip kube-proxy" in found.nftables or "table ip6 kube-proxy" in found.nftables:
        return info(name, "mode nftables (table kube-proxy)")
    chains = [text for text in found.iptables if ":KUBE-SERVICES " in text]
    if chains:
        tools = ", ".join(dict.fromkeys(variant(text) for text in chains))
        return info(name, f"mode iptables (chains KUBE-*, {tools})")
    if any("CILIUM" in text for text in found.iptables) or "cilium_host" in interfaces:
        return info(name, "none of its rules; Cilium may do Services itself")
    if found.unread and not found.iptables:
        return skipped(name, "the rules of iptables can't be read", "see `marks`, which says why")
    return info(name, "none of its rules on this node", "nothing, unless pods use Services")


def bridges(_target: Target) -> Iterator[Check]:
    """Bridges hand packets to iptables when bridge-nf-call-iptables is 1."""
    found = [name for name, kind in devices.kinds().items() if kind == "bridge"]
    try:
        on = sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    except Unreadable:
        on = False  # br_netfilter is not loaded
    yield judge_bridges(found, on=on)


def judge_bridges(found: Sequence[str], *, on: bool) -> Check:
    """From the names of all bridges."""
    if not found:
        return ok("bridges", "none")
    if on:
        return ok("bridges", f"{', '.join(found)}, with bridge-nf-call-iptables=1")
    todo = "net.bridge.bridge-nf-call-iptables=1 (and ip6tables) where kube-proxy translates Services for ports of it"
    return info("bridges", ", ".join(found), todo)
