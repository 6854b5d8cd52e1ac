"""Which rules of ours the tables of a node get."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spliceway.agent.nodecheck.marks import of_iptables
from spliceway.bpf import netfilter
from spliceway.bpf.netfilter import wanted
from spliceway.bpf.types import DatapathSettings

SETTINGS = DatapathSettings(
    bpffs=Path("/b"), state_dir=Path("/s"), pods_cgroup=Path("/p"), proxy_cgroup=Path("/q"), proxy_mark=0x1002
)


def test_no_table_no_rule() -> None:
    assert wanted(SETTINGS, []) == []


def test_a_table_gets_its_rules_in_its_variant() -> None:
    found = wanted(SETTINGS, [("ip", "legacy", "filter"), ("ip6", "nft", "nat")])
    assert [(rule.tool, rule.variant, rule.chain) for rule in found] == [
        ("ip", "legacy", "INPUT"),
        ("ip", "legacy", "OUTPUT"),
        ("ip6", "nft", "POSTROUTING"),
    ]
    assert found[0].command("-I") == [
        *("iptables-legacy", "-w", "5", "-t", "filter", "-I", "INPUT"),
        *("-i", "spliceway1", "-m", "comment", "--comment", "spliceway", "-j", "ACCEPT"),
    ]
    assert "--syn" in found[2].what, "the proxy's own connections are masqueraded like the pods'"
    assert str(found[1]).startswith("iptables-legacy: filter OUTPUT -m mark --mark 0x1002/0x1002 ")


def test_preflight_does_not_take_them_for_others() -> None:
    for rule in wanted(SETTINGS, [("ip", "nft", "filter"), ("ip", "nft", "nat")]):
        assert not of_iptables(f"*{rule.table}\n-A {rule.chain} {' '.join(rule.what)}\nCOMMIT\n")


@pytest.mark.kernel
def test_nft_lists_the_table_as_it_is_asked_for() -> None:
    """Otherwise it would be put in again and again."""
    script = f"nft -f - <<'END'\n{netfilter._NFT}END\nnft list table inet spliceway"
    done = subprocess.run(["unshare", "--net", "sh", "-ec", script], capture_output=True, text=True, check=True)
    assert done.stdout == netfilter._listed()
