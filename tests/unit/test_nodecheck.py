"""Checks of a node, from what /proc and the kernel say: pure judgement, no node."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from spliceway.agent.cli.splices import other_owner_notes
from spliceway.agent.nodecheck import (
    kernel,
    mounts,
    neighbours,
    netfilter,
    owners,
    rights,
    routing,
    runner,
    socketlb,
    tcp,
    texts,
)
from spliceway.agent.nodecheck.model import Check, Status, Target, ok, report
from spliceway.agent.nodecheck.neighbours import Signs
from spliceway.agent.nodecheck.netfilter import Rules
from spliceway.agent.nodecheck.owners import Holders, Seen
from spliceway.agent.nodecheck.reading import Unreadable
from spliceway.agent.nodecheck.routing import Route, Rule
from spliceway.agent.nodecheck.runner import CHECKS
from spliceway.bpf.gate import KernelRelease
from spliceway.bpf.loaded import LoadedMap, LoadedProgram, MapType, ProgramType
from spliceway.bpf.types import DatapathSettings

V4, V6 = socket.AF_INET, socket.AF_INET6
SETTINGS = DatapathSettings(
    bpffs=Path("/sys/fs/bpf"), state_dir=Path("/s"), pods_cgroup=Path("/c/pods"), proxy_cgroup=Path("/c/proxy")
)
MOUNTINFO = r"""
22 27 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
29 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
30 24 0:27 / /sys/fs/cgroup/net_cls,net_prio rw shared:10 - cgroup cgroup rw,net_cls,net_prio
31 24 0:28 / /sys/fs/bpf rw,nosuid shared:11 - bpf bpf rw,mode=700
32 24 0:29 / /run/node\0401/bpf rw - bpf bpf rw
33 24 0:30 / /run/readonly ro - bpf bpf ro
"""


def statuses(checks: object) -> list[str]:
    return [str(check.status) for check in checks]  # type: ignore[attr-defined]


def texts_of(*checks: Check) -> None:
    """What every result must be: one line each, and something to do where something is wrong."""
    for check in checks:
        assert check.found
        assert "\n" not in check.found + check.to_do
        assert check.to_do or check.status not in (Status.FAIL, Status.WARN)


def test_mounts_are_parsed_and_the_one_below_a_path_is_found() -> None:
    found = texts.mounts(MOUNTINFO.strip() + "\ngarbage\n")
    assert [each.kind for each in found] == ["proc", "tmpfs", "cgroup2", "cgroup", "bpf", "bpf", "bpf"]
    assert [each.shared for each in found] == [False, False, True, True, True, False, False]
    assert found[5].path == Path("/run/node 1/bpf")
    on = texts.mount_of(found, Path("/sys/fs/bpf/spliceway/v3"))
    assert on is not None
    assert (on.kind, on.path) == ("bpf", Path("/sys/fs/bpf"))
    assert texts.mount_of(found, Path("/var")) is None


@pytest.mark.parametrize(
    ("path", "in_container", "status"),
    [
        ("/sys/fs/bpf", True, Status.OK),
        ("/run/node 1/bpf", False, Status.OK),
        ("/run/node 1/bpf", True, Status.WARN),
        ("/run/readonly", False, Status.FAIL),
        ("/proc", False, Status.FAIL),
    ],
)
def test_bpffs(path: str, in_container: bool, status: Status) -> None:
    check = mounts.judge_bpffs(texts.mounts(MOUNTINFO.strip()), Path(path), in_container=in_container)
    assert check.status is status
    texts_of(check)


def test_cgroup2_and_hybrid_hierarchies() -> None:
    found = texts.mounts(MOUNTINFO.strip())
    assert mounts.judge_cgroup2(found).status is Status.WARN
    assert "net_cls" in mounts.judge_cgroup2(found).found
    others = [each for each in found if each.kind != "cgroup"]
    assert mounts.judge_cgroup2(others).status is Status.OK
    plain = texts.mounts("30 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")
    assert mounts.judge_cgroup2([*others, *plain]).status is Status.INFO
    assert mounts.judge_cgroup2(plain).status is Status.FAIL


def test_capabilities_one_by_one() -> None:
    everything = (1 << 41) - 1
    assert statuses(rights.judge_capabilities(everything)) == ["ok"]
    no_admin = everything & ~(1 << 12)
    (missing,) = rights.judge_capabilities(no_admin)
    assert (missing.status, "CAP_NET_ADMIN" in missing.found) == (Status.FAIL, True)
    # CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
    assert statuses(rights.judge_capabilities(everything & ~(1 << 39 | 1 << 38))) == ["ok"]
    assert statuses(rights.judge_capabilities(everything & ~(1 << 39 | 1 << 38 | 1 << 21))) == ["fail", "fail", "warn"]
    texts_of(*rights.judge_capabilities(0))
    assert texts.capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n") == everything
    with pytest.raises(ValueError, match="CapEff"):
        texts.capabilities("Name: x")


def test_lockdown_limits_and_fdinfo() -> None:
    assert texts.lockdown("none [integrity] confidentiality\n") == "integrity"
    assert texts.lockdown("") == "none"
    limits = texts.limits(
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            1024                 20000                files\n"
        "Max locked memory         unlimited            unlimited            bytes\n"
    )
    assert limits["Max open files"] == ("1024", "20000")
    assert rights.judge_files("20000").status is Status.WARN
    assert rights.judge_files("1048576").status is Status.OK
    assert rights.judge_files("unlimited").status is Status.OK
    assert texts.fdinfo("pos:\t0\nmap_type:\t18\nmap_id:\t27\n") == {"map_id": 27}
    assert texts.fdinfo("link_type:\tcgroup\nlink_id:\t3\nprog_id:\t14\n") == {"link_id": 3, "prog_id": 14}


def test_kernel_config() -> None:
    needed = dict.fromkeys((*kernel._NEEDED, *kernel._WANTED), "y")
    assert statuses(kernel.judge_config(needed)) == ["ok"]
    assert statuses(kernel.judge_config({**needed, "CONFIG_NET_CLS_BPF": "m"})) == ["ok"]
    text = "# CONFIG_CGROUP_BPF is not set\nCONFIG_BPF_SYSCALL=y\n"
    assert texts.kernel_config(text) == {"CONFIG_BPF_SYSCALL": "y"}
    without = {name: "y" for name in needed if name not in ("CONFIG_CGROUP_BPF", "CONFIG_DEBUG_INFO_BTF")}
    found = list(kernel.judge_config(without))
    assert [(check.status, check.found.split()[0]) for check in found] == [
        (Status.FAIL, "CONFIG_CGROUP_BPF"),
        (Status.WARN, "CONFIG_DEBUG_INFO_BTF"),
    ]


def test_the_gate_tells_faults_and_what_declared_fixes_do() -> None:
    old = KernelRelease.parse("5.15.0")
    found = list(kernel.judge_gate(old, ()))
    assert Status.WARN in {check.status for check in found}
    texts_of(*found)
    told = [check for check in found if "nothing is switched off" in check.found]
    assert told
    assert all(check.to_do.startswith("nothing that you must do") for check in told)
    with pytest.raises(ValueError, match="no fix that the kernel gate knows"):
        list(kernel.judge_gate(old, ("abcdefabcdef",)))


def test_reverse_path_filter_takes_the_greater_of_both() -> None:
    assert routing.judge_rp_filter({"all": 0, "default": 1, "eth0": 0, "spliceway1": 1}).status is Status.OK
    assert routing.judge_rp_filter({"all": 1, "eth0": 0}).status is Status.INFO
    assert routing.judge_rp_filter({"all": 1, "eth0": 2}).status is Status.OK
    strict = routing.judge_rp_filter({"all": 0, "eth0": 1, "eth1": 0})
    assert (strict.status, strict.found.startswith("eth0:")) == (Status.INFO, True)
    assert "and 4 more" in routing.judge_rp_filter({"all": 0, **{f"veth{i}": 1 for i in range(9)}}).found


OURS = (Rule(V4, 7, 2480, 0x1000, 0x1002), Rule(V6, 7, 2480, 0x1000, 0x1002))
KERNELS = (Rule(V4, 0, 255, 0, 0), Rule(V4, 32766, 254, 0, 0), Rule(V4, 32767, 253, 0, 0))


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (Rule(V4, 512, 254, 0, 0), None),  # AWS: to pods
        (Rule(V4, 9, 2004, 0x200, 0xF00), None),  # Cilium's proxy
        (Rule(V4, 1024, 254, 0x80, 0x80), None),
        (Rule(V4, 5, 99, 0x1000, 0x1000), Status.FAIL),  # takes steered packets first
        (Rule(V4, 7, 99, 0x1000, 0xFFFFFFFF), Status.FAIL),
        (Rule(V4, 100, 99, 0x1000, 0xFFFFFFFF), Status.FAIL),  # its packets would be ours
        (Rule(V4, 100, 99, 0x1, 0xFFFFFFFF), None),  # Istio and others: our bit must be 0 there
        (Rule(V4, 7, 99, 0, 0), Status.WARN),
        (Rule(V4, 3, 254, 0, 0), Status.WARN),
    ],
)
def test_rules_of_others(rule: Rule, status: Status | None) -> None:
    found = list(routing.judge_rules([*KERNELS, *OURS, rule], SETTINGS))
    assert [check.status for check in found] == ([Status.OK] if status is None else [status])
    texts_of(*found)


def test_the_table_is_ours_or_free_or_somebody_elses() -> None:
    ours = Route(V4, "default", True)
    assert routing.judge_table(OURS, [ours], SETTINGS).status is Status.OK
    assert routing.judge_table([], [], SETTINGS).status is Status.OK
    foreign = routing.judge_table(OURS, [ours, Route(V4, "10.0.0.0/8", False)], SETTINGS)
    assert (foreign.status, "10.0.0.0/8" in foreign.found) == (Status.FAIL, True)
    assert routing.judge_table([Rule(V4, 9, 2480, 0, 0)], [], SETTINGS).status is Status.FAIL


KUBE = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n"


@pytest.mark.parametrize(
    ("rules", "devices", "words"),
    [
        (Rules([KUBE], ""), ["eth0"], "mode iptables"),
        (Rules([KUBE], ""), ["eth0", "kube-ipvs0"], "mode ipvs"),
        (Rules([], "table ip kube-proxy {\n}\n"), [], "mode nftables"),
        (Rules([""], ""), ["cilium_host"], "Cilium"),
        (Rules([""], ""), ["eth0"], "none of its rules on this node"),
        (Rules([], "", ["nft is not installed"]), [], "can't be read"),
    ],
)
def test_kube_proxy_mode(rules: Rules, devices: list[str], words: str) -> None:
    assert words in netfilter.judge_kube_proxy(rules, devices).found


def test_marks_of_others_are_told_with_their_rules() -> None:
    assert statuses(netfilter.judge_marks(Rules([KUBE], ""), SETTINGS)) == ["ok"]
    wipe = "*mangle\n-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n"
    (check,) = netfilter.judge_marks(Rules([wipe], ""), SETTINGS)
    assert (check.status, "--restore-mark" in check.found) == (Status.WARN, True)
    many = "*mangle\n" + "".join(f"-A C{i} -j MARK --set-xmark 0x1000/0x1000\n" for i in range(9))
    found = list(netfilter.judge_marks(Rules([many], ""), SETTINGS))
    assert len(found) == 6
    assert found[-1].found.startswith("4 more")
    assert statuses(netfilter.judge_marks(Rules([], "", ["nft is not installed"]), SETTINGS)) == ["skipped"]


def test_bridges() -> None:
    assert netfilter.judge_bridges([], on=True).status is Status.OK
    assert "bridge-nf-call-iptables=1" in netfilter.judge_bridges(["cni0"], on=True).found


def test_neighbours() -> None:
    assert statuses(neighbours.judge(Signs())) == ["ok"]
    found = list(
        neighbours.judge(
            Signs(
                devices=["cilium_host", "cali0", "cali1"],
                cni=["10-aws.conflist", "10-calico.conflist"],
                cilium_maps=["cilium_ipcache"],
                istio_in_cni=True,
                programs=["ztunnel"],
                rules=[Rule(V4, 512, 254, 0, 0)],
            )
        )
    )
    assert [check.name for check in found] == ["cilium", "calico", "aws-vpc-cni", "istio"]
    assert "2 cali* interfaces" in found[1].found
    assert found[2].found == "seen; 1 rules at priority 512"
    texts_of(*found)


def test_tcp_settings() -> None:
    listeners = (23000, 23999)
    assert tcp.judge_ports("32768 60999", listeners).status is Status.OK
    assert tcp.judge_ports("1024 65535", listeners).status is Status.WARN
    assert tcp.judge_ports("40000 41000", listeners).status is Status.WARN
    assert tcp.judge_memory("192303 256407 384606", 4096, 8 << 30).status is Status.OK
    assert tcp.judge_memory("1923030 2564070 3846060", 4096, 8 << 30).status is Status.WARN
    assert tcp.judge_memory("4096 8192 16384", 4096, 8 << 30).status is Status.WARN
    assert tcp.judge_buffer("2097152", 4 << 20).status is Status.OK
    small = tcp.judge_buffer("212992", 4 << 20)
    assert (small.status, small.to_do) == (
        Status.WARN,
        "sysctl -w net.core.rmem_max=2097152: spliced connections leave at 416 KiB unread",
    )
    assert tcp.judge_send_buffer("4194304").status is Status.OK
    assert tcp.judge_send_buffer("212992").status is Status.WARN


SPLICE = LoadedProgram(1, ProgramType.SK_MSG, "splice_message", (10,))
SOCKOPS = LoadedProgram(2, ProgramType.SOCK_OPS, "sockops_pod", (10,))
THEIRS = LoadedProgram(3, ProgramType.SOCK_OPS, "beyla_sockops", (11,))
OTHER = LoadedProgram(4, ProgramType.SOCK_OPS, "tcp_rtt", ())
HASH, THEIR_HASH = LoadedMap(10, MapType.SOCKHASH, "socks"), LoadedMap(11, MapType.SOCKMAP, "sock_dir")
MINE = frozenset({("prog", 1), ("prog", 2), ("map", 10)})


def test_other_owners_are_told_with_what_they_do_and_who_holds_them() -> None:
    seen = Seen((SPLICE, SOCKOPS, THEIRS, OTHER), (HASH, THEIR_HASH), MINE)
    holders = Holders({("prog", 3): ["held by beyla (pid 7)"], ("map", 11): ["pinned at /sys/fs/bpf/b"]})
    found = list(owners.judge_cgroups({2: "/c/pods", 3: "/c/pods", 4: "/c/proxy", 99: "gone"}, seen, holders))
    assert [check.status for check in found] == [Status.WARN, Status.INFO]
    assert (
        "beyla_sockops (id 3) at /c/pods (held by beyla (pid 7)) puts sockets into sockmap sock_dir" in found[0].found
    )
    texts_of(*found)
    (theirs,) = owners.judge_sockmaps(seen, holders)
    assert theirs.found == "sockmap sock_dir (id 11) (pinned at /sys/fs/bpf/b)"
    assert theirs.status is Status.WARN


def test_ours_is_no_conflict_and_other_nodes_are_told_apart() -> None:
    seen = Seen((SPLICE, SOCKOPS), (HASH,), MINE)
    assert statuses(owners.judge_cgroups({2: "/c/pods"}, seen, Holders({}))) == ["ok"]
    assert statuses(owners.judge_sockmaps(seen, Holders({}))) == ["ok"]
    stranger = Seen((SPLICE,), (HASH,), frozenset())
    assert statuses(owners.judge_sockmaps(stranger, Holders({}))) == ["info", "ok"]
    crowd = Seen((), tuple(LoadedMap(100 + i, MapType.SOCKMAP, f"m{i}") for i in range(20)), frozenset())
    assert [check.found for check in owners.judge_sockmaps(crowd, Holders({}))][-1] == "12 more"


def test_a_check_that_can_not_be_made_is_skipped_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_target: Target) -> list[Check]:
        raise Unreadable("/proc/x: Permission denied")

    def broken(_target: Target) -> list[Check]:
        raise KeyError("odd")

    checks = {"one": unreadable, "two": broken, "three": lambda _target: [ok("three", "fine")]}
    monkeypatch.setattr(runner, "CHECKS", checks)
    found = runner.run(runner.target_of(None))
    assert [(check.name, str(check.status)) for check in found.checks] == [
        ("one", "skipped"),
        ("two", "skipped"),
        ("three", "ok"),
    ]
    assert found.checks[0].found == "/proc/x: Permission denied"
    assert (found.failed, found.warned) == ((), ())


def test_a_report_sums_up_by_name() -> None:
    made = report("6.18", [Check("a", Status.FAIL, "x", "y"), Check("a", Status.FAIL, "z", "y"), ok("b", "fine")])
    assert (made.failed, made.warned) == (("a",), ())


def test_without_a_configuration_the_defaults_are_looked_at() -> None:
    target = runner.target_of(None, bpffs=Path("/b"))
    assert (target.settings.bpffs, target.configured, target.cgroups) == (Path("/b"), False, {})


def test_a_directory_of_policies_that_is_not_there_fails(tmp_path: Path) -> None:
    """No agent starts without it."""
    target = Target(settings=SETTINGS, configured=True, source=tmp_path / "none")
    (told,) = mounts.source(target)
    assert (told.status, told.found) == (Status.FAIL, f"source.directory: {tmp_path}/none is not there")
    texts_of(told)
    (tmp_path / "none").mkdir()
    assert statuses(mounts.source(target)) == ["ok"]
    assert statuses(mounts.source(runner.target_of(None))) == ["skipped"]
    (told,) = mounts.source(Target(settings=SETTINGS, configured=True))
    assert (told.status, "source.kubernetes" in told.found) == (Status.SKIPPED, True)


def test_without_the_pods_cgroup_nobody_is_looked_for_in_it() -> None:
    (told,) = socketlb.socket_lb(Target(settings=SETTINGS, configured=True))
    assert (told.status, told.found, told.to_do) == (
        Status.SKIPPED,
        "/c/pods is not there",
        "see cgroups: cgroups.pods",
    )


@pytest.mark.parametrize(
    ("count", "notes"),
    [
        (0, []),
        (1, ["splice: 1 connection on TCP, in another program's sockmap: `spliceway preflight` names it"]),
        (7, ["splice: 7 connections on TCP, in another program's sockmap: `spliceway preflight` names it"]),
    ],
)
def test_status_says_that_another_program_has_sockets(count: int, notes: list[str]) -> None:
    assert other_owner_notes({"byWhy": {"other-owner": count, "sent-first": 3}}) == notes
    assert other_owner_notes({"byWhy": {}}) == []


def test_the_docs_tell_every_check() -> None:
    written = Path(routing.__file__).parent.glob("*.py")
    named = re.compile(r'(?:\b(?:ok|info|warn|fail|skipped)\(|name(?:, clean)? = )"([a-z0-9-]+)"')
    names = {name for path in written for name in named.findall(path.read_text())} | {"libbpf", "bcc"}
    told = (Path(__file__).parents[2] / "docs" / "preflight.md").read_text()
    first_cells = "".join(re.findall(r"^\| (`[^|]*`) \|", told, re.MULTILINE))
    rows = set(re.findall(r"`([a-z0-9-]+)`", first_cells))
    assert names == rows
    assert CHECKS.keys() <= rows | {"tcp"}
