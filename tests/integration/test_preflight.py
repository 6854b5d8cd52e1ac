"""`spliceway preflight` on a virtual node: on a good one, on one with something wrong, and with fewer rights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.nodecheck.runner import CHECKS
from spliceway.agent.testbed.agentprocess import agent_config
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

_CLI = (sys.executable, "-m", "spliceway.agent", "preflight")


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client", {"role": "client"})]) as made:
        yield made


@pytest.fixture(scope="module")
def config(testbed: Testbed) -> Path:
    path = testbed.node.info.directory / "preflight.yaml"
    path.write_text(yaml.safe_dump(agent_config(testbed.node)))
    return path


def preflight(testbed: Testbed, *arguments: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return testbed.node.run_on_node([*wrap, *_CLI, *arguments], timeout=120)


def results(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, str]]]:
    """Name of a check → its results. Whatever the node is like, all checks are there and nothing is a traceback."""
    assert "Traceback" not in done.stderr + done.stdout
    said: dict[str, Any] = json.loads(done.stdout)
    assert set(said) == {"kernel", "checks", "failed", "warned"}
    assert done.returncode == (1 if said["failed"] else 0)
    found: dict[str, list[dict[str, str]]] = {}
    for check in said["checks"]:
        assert set(check) == {"name", "status", "found", "toDo"}
        assert check["status"] in ("ok", "warn", "fail", "info", "skipped")
        assert check["found"]
        assert "\n" not in check["found"] + check["toDo"]
        assert check["toDo"] or check["status"] not in ("warn", "fail")
        assert "please report it" not in check["toDo"], check
        found.setdefault(check["name"], []).append(check)
    return found


def statuses(found: dict[str, list[dict[str, str]]], name: str) -> set[str]:
    return {check["status"] for check in found[name]}


def rules_and_filters(testbed: Testbed) -> str:
    info = testbed.node.info
    script = "ip rule; ip -6 rule; ip route show table all; tc qdisc show; nft list ruleset"
    script += f"; find {info.bpffs} {info.cgroups.pods.parent} -maxdepth 3; grep {info.directory} /proc/self/mountinfo"
    return testbed.node.run_on_node(["sh", "-c", script]).stdout


def test_a_good_node_with_the_self_test(testbed: Testbed, config: Path) -> None:
    before = rules_and_filters(testbed)
    found = results(preflight(testbed, "--config", str(config), "-o", "json"))
    assert rules_and_filters(testbed) == before
    assert not [check for checks in found.values() for check in checks if check["status"] == "fail"]
    for name in (
        "kernel-release",
        "measure",
        "capabilities",
        "bcc",
        "libbpf",
        "cgroups",
        "forwarding",
        "rules",
    ):
        assert statuses(found, name) == {"ok"}, found[name]
    assert "ok" in statuses(found, "self-test"), found["self-test"]
    assert statuses(found, "self-test") <= {"ok", "info"}, found["self-test"]
    assert "none runs" in found["agent"][0]["found"]


def test_what_is_wrong_with_a_node_is_found_and_fails(testbed: Testbed, config: Path) -> None:
    wrong = yaml.safe_load(config.read_text())
    wrong["bpffs"] = "/tmp"
    wrong["cgroups"]["pods"] = "/sys/fs/nothing"
    wrong.setdefault("datapath", {})["devices"] = ["nobody0"]
    path = config.with_name("wrong.yaml")
    path.write_text(yaml.safe_dump(wrong))
    set_up = (
        "ip rule add prio 5 fwmark 0x1000/0x1000 lookup 99; ip route add 10.9.0.0/16 dev eth0 table 2480;"
        "iptables -t mangle -A PREROUTING -j MARK --set-mark 0x1; nft add table inet theirs;"
        "nft 'add chain inet theirs c { type filter hook prerouting priority 0; }';"
        "nft add rule inet theirs c meta mark 0x1000 accept;"
        "iptables -t nat -N KUBE-SERVICES; echo 0 >/proc/sys/net/ipv4/ip_forward;"
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/rp_filter"
    )
    undo = (
        "ip rule del prio 5; ip route flush table 2480; iptables -t mangle -F; iptables -t nat -X KUBE-SERVICES;"
        "nft delete table inet theirs; echo 1 >/proc/sys/net/ipv4/ip_forward;"
        "echo 0 >/proc/sys/net/ipv4/conf/eth0/rp_filter"
    )
    made = testbed.node.run_on_node(["sh", "-ec", set_up])
    try:
        assert made.returncode == 0, made.stderr
        done = preflight(testbed, "--config", str(path), "--no-self-test", "-o", "json")
        table = preflight(testbed, "--config", str(path), "--no-self-test")
    finally:
        testbed.node.run_on_node(["sh", "-c", undo])
    found = results(done)
    for name in ("bpffs", "cgroups", "rules", "route-table", "forwarding"):
        assert "fail" in statuses(found, name), found[name]
    assert [check["found"] for check in found["devices"] if check["status"] == "warn"] == [
        "none: what comes from outside is judged and steered at the pods only",
        "no interface is called nobody0",
        "eth0 (veth) is not in datapath.devices: what comes by it is judged and steered at the pods only",
    ]
    assert "info" in statuses(found, "rp-filter")
    marks = " ".join(check["found"] for check in found["marks"])
    assert "--set-xmark 0x1/0xffffffff" in marks
    assert "nft table inet theirs" in marks
    assert "mode iptables" in found["kube-proxy"][0]["found"]
    assert table.returncode == 1
    assert "TO DO" in table.stdout
    rows = [line.split()[0] for line in table.stdout.splitlines()]
    assert f"{len(rows) - 1} results: {rows.count('fail')} fail, {rows.count('warn')} warn" in table.stderr
    assert max(map(len, table.stdout.splitlines())) < 400


def test_without_a_configuration_and_without_rights(testbed: Testbed) -> None:
    found = results(preflight(testbed, "--no-self-test", "-o", "json"))
    assert statuses(found, "cgroups") == {"skipped"}
    wrap = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    found = results(preflight(testbed, "-o", "json", wrap=wrap))
    assert statuses(found, "capabilities") == {"fail", "warn"}
    assert statuses(found, "sockmaps") == {"skipped"}
    assert "Operation not permitted" in found["sockmaps"][0]["found"]


def test_nobody_gets_a_traceback(testbed: Testbed) -> None:
    """As a user without any right, and without the programs that list rules."""
    wrap = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run(
        [*wrap, sys.executable, "-c", "import spliceway.agent"], capture_output=True, check=False
    ).returncode:
        wrap += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # the checkout is root's own
    found = results(preflight(testbed, "-o", "json", wrap=tuple(wrap)))
    assert (next(iter(found)), found["user"][0]["status"]) == ("user", "fail")
    assert "user id 65534" in found["user"][0]["found"]
    assert len(found) >= len(CHECKS)
