"""What `spliceway preflight` says of each kind of node: what is there is named, and nothing is wrong with it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import yaml

from spliceway.agent.testbed.agentprocess import agent_config
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support.foreign import Foreigner, needs_tcx
from support.profiled import PROFILES, manifests, services

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

#: Of the machine that the tests run on, and not of the profile.
_OF_THE_MACHINE = {"limits", "bpffs", "tcp-mem", "rmem-max", "wmem-max", "kernel-gate", "measure", "sockmaps"}
_MODES = {
    ("none", "nft"): "none of its rules on this node",
    ("iptables", "nft"): "mode iptables (chains KUBE-*, iptables-nft, ip6tables-nft)",
    ("iptables", "legacy"): "mode iptables (chains KUBE-*, iptables-legacy, ip6tables-legacy)",
    ("nftables", "nft"): "mode nftables (table kube-proxy)",
}


def expected(profile: Profile) -> dict[str, list[str]]:
    """Name of a check → what its results say (a part of it), all of them and no other."""
    mode = _MODES[profile.kube_proxy, profile.iptables]
    tools = f"iptables-{profile.iptables}, ip6tables-{profile.iptables}"
    found = {
        "kube-proxy": [mode],
        "drop-policies": [f"{chain} has the policy DROP ({tools})" for chain in sorted(profile.drop)]
        or ["no chain has the policy DROP"],
        "bridges": ["none"],
        "rp-filter": ["nowhere strict"],
        "tc-programs": ["nobody else has programs or filters"],
        "neighbours": ["no flannel, Cilium, Calico, AWS VPC CNI or Istio was seen"],
        "policy-kinds": ["nobody else was seen who enforces them"],
        "kill-switch": ["off: "],
        "rules": ["are free"],
        "route-table": ["is free"],
        "forwarding": ["ip_forward is 1", "forwarding is 1"],
        "devices": ["eth0 (veth)"],
        "socket-lb": ["nobody else translates"],
        "marks": ["no rule touches datapath.markMask 0x1002"],
    }
    if profile.bridged:
        found["bridges"] = ["cni0, with bridge-nf-call-iptables=1" if profile.br_netfilter else "cni0"]
    if profile.name == "vxlan":
        found["devices"] = ["eth0 (veth), flannel.1 (vxlan), flannel-v6.1 (vxlan)"]
        found["flannel"] = ["seen: flannel-v6.1, flannel.1"]
    if profile.name == "calico-like":
        found["calico"] = ["seen: 3 cali* interfaces"]
        found["policy-kinds"] = [
            "enforced by others, too: Calico: AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, "
            "NetworkPolicy"
        ]
        found["rp-filter"] = ["rp_filter=1 (strict)"]
        found["marks"] = ["bits 0xf4000"]
    if profile.name == "aws-like":
        found["devices"] = ["eth0 (veth), eth1 (veth)"]
        found["aws-vpc-cni"] = ["rules at priority 512"]
        found["tc-programs"] = ["u32 filter of priority 49152 at ingress, eth0"]
        found["marks"] = ["bits 0x4080"]
    if profile.name in ("vxlan", "calico-like", "aws-like"):
        del found["neighbours"]
    return found


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_is_explained_and_nothing_is_wrong(name: str) -> None:
    profile = PROFILES[name]
    with Testbed.up(manifests(), profile=profile) as bed:
        if profile.kube_proxy != "none":
            bed.set_services(services("server"))
        checks = preflight(bed)
    problems = [one for one in checks if one["status"] in ("warn", "fail") and one["name"] not in _OF_THE_MACHINE]
    assert problems == []
    wanted = expected(profile)
    for check, parts in wanted.items():
        said = [one["found"] for one in checks if one["name"] == check]
        assert len(said) == len(parts), f"{check}: {said}"
        assert [part for part, text in zip(parts, said, strict=True) if part not in text] == [], f"{check}: {said}"
    others = {"flannel", "cilium", "calico", "aws-vpc-cni", "istio", "neighbours"} - wanted.keys()
    assert [one for one in checks if one["name"] in others] == []


def test_a_table_of_nftables_that_drops_is_told() -> None:
    rules = "add table inet strict; add chain inet strict in { type filter hook input priority 0; policy drop; }"
    with Testbed.up(manifests()) as bed:
        made = bed.node.run_on_node(["nft", rules])
        assert made.returncode == 0, made.stderr
        (found,) = (one for one in preflight(bed) if one["name"] == "drop-policies")
    assert (found["status"], found["found"]) == ("warn", "nft table inet strict: chain in has the policy drop")
    assert "spliceway1" in found["toDo"]


@needs_tcx
@pytest.mark.parametrize("name", ["l3", "bridge", "aws-like"])
def test_programs_behind_ours_are_named_with_what_they_may_do_at_pods_devices(name: str) -> None:
    with (
        Testbed.up(manifests(), profile=PROFILES[name]) as bed,
        Foreigner(bed.node.info.netns) as other,
        Foreigner(bed.node.info.netns, name="cil_from_cont") as cilium,
    ):
        first, second = sorted(bed.pod(pod).interface for pod in ("client", "server"))
        cilium.link(first, "ingress")
        for device in (first, second, "eth0"):
            bed.node.run_on_node(["tc", "qdisc", "add", "dev", device, "clsact"])  # the profile may have one
            other.filter(device, "egress", priority=5)
        shaping = ["tc", "filter", "add", "dev", first, "ingress", "prio", "7", "protocol", "ip"]
        shaped = bed.node.run_on_node([*shaping, "u32", "match", "u32", "0", "0", "classid", "1:1"])
        assert shaped.returncode == 0, shaped.stderr
        told = [(one["status"], one["found"], one["toDo"]) for one in preflight(bed) if one["name"] == "tc-programs"]
    mine = [one for one in told if "priority 49152" not in one[1]]  # of the profile
    assert [one[:2] for one in mine] == [
        ("warn", f"TCX program cil_from_cont at ingress (Cilium's datapath), pods' devices: {first}"),
        ("info", "bpf filter other_prog of priority 5 at egress, eth0"),
        ("info", f"bpf filter other_prog of priority 5 at egress, pods' devices: {first}, {second}"),
        ("info", f"u32 filter of priority 7 at ingress, pods' devices: {first}"),
    ]
    said = ["bpf_redirect_peer", "nothing: ours comes before it", "ask its owner", "tc filter show"]
    assert [one for one, part in zip(mine, said, strict=True) if part not in one[2]] == []


def preflight(bed: Testbed) -> list[dict[str, Any]]:
    """All results, without the self-test."""
    path = bed.node.info.directory / "preflight.yaml"
    path.write_text(yaml.safe_dump(agent_config(bed.node)))
    argv = [sys.executable, "-m", "spliceway.agent", "preflight", "--config", str(path), "--no-self-test", "-o", "json"]
    done = bed.node.run_on_node(argv, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    return found
