"""What an agent has on its node, and leaves there: in the kernel, on disk, as processes and sockets."""

from __future__ import annotations

import ctypes
import os
import re
from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.configsections import LabelsConfig
from spliceway.agent.hostaddresses import own_addresses
from spliceway.agent.testbed import netns, processes
from spliceway.bpf import libbpf
from spliceway.policy.engine import Engine, Options, objects
from spliceway.policy.labelfilter import LabelFilter
from spliceway.policy.numbering import Numbering
from support.kernel import NamespaceLoop
from support.kerneltable import differences, kernel_says, table_says
from support.kubecrowd import cluster_in
from support.lifenode import LifeNode
from support.waiting import until

_ID = re.compile(r"^(prog|map|link)_id:\s+(\d+)$", re.MULTILINE)
#: What the base CNI makes, and leaves.
_BASE = ("cni0", "CNI-", "CNI ", "10.240.1.128", "fd00:240:1::1:", "veth")


def traces(life: LifeNode) -> set[str]:
    """As others' tools show it, without what the base CNI makes."""
    node = life.testbed.node
    script = (
        "for device in $(ls /sys/class/net); do for side in ingress egress; do "
        'tc filter show dev $device $side | sed "s/^/$device $side /"; done; done; tc qdisc show | grep clsact; '
        "for version in -4 -6; do ip $version rule; ip $version route show table all; done; ip -o link; "
        "cat /proc/sys/net/ipv4/tcp_tw_reuse /proc/sys/net/ipv4/tcp_early_demux; nft list ruleset; "
        f"find {node.info.bpffs} {node.info.cgroups.agent} {node.info.cgroups.proxy} -type d; "
        f"cat {node.info.cgroups.agent}/cgroup.procs {node.info.cgroups.proxy}/cgroup.procs | sed 's/^/process /'"
    )
    done = processes.run(node.info.netns, node.info.cgroups.pods, ["sh", "-c", script], os.environ, 30.0)
    lines = done.stdout.splitlines()
    return {line.strip() for line in lines if not any(word in line for word in _BASE)}


def pinned(life: LifeNode) -> set[tuple[str, int]]:
    """Kind and number of all that is pinned in the node's bpffs."""
    found = set()
    for directory, _, names in os.walk(life.testbed.node.info.bpffs / "spliceway"):
        for name in names:
            if Path(directory, name).is_symlink():
                continue
            handle = libbpf.open_pin(Path(directory, name))
            try:
                told = _ID.findall(Path(f"/proc/self/fdinfo/{handle}").read_text())
                found |= {(kind, int(number)) for kind, number in told}
            finally:
                os.close(handle)
    return found


def there() -> set[tuple[str, int]]:
    """Kind and number of all that the kernel has."""
    found = set()
    for kind in ("prog", "map", "link"):
        following, number = getattr(libbpf.library(), f"bpf_{kind}_get_next_id"), ctypes.c_uint32(0)
        while following(number, ctypes.byref(number)) >= 0:
            found.add((kind, number.value))
    return found


def sockets(life: LifeNode, directory: Path) -> list[str]:
    """Unix sockets of the node that are bound in a directory."""

    def read() -> list[str]:
        lines = Path("/proc/thread-self/net/unix").read_text().splitlines()
        return [line.split()[-1] for line in lines if str(directory) in line]

    return netns.call(life.testbed.node.info.netns, read)


def in_step(life: LifeNode) -> None:
    """The kernel's rows are those of what the API server has, and of nothing that was; soon: clean-up comes last."""
    site = life.site
    loop = NamespaceLoop(life.testbed.node.info.netns)
    try:
        cluster = cluster_in(site.api, site.node.name, loop.run(own_addresses()))
    finally:
        loop.stop()
    options = Options(node=site.node.name, labels=LabelFilter(LabelsConfig().include, LabelsConfig().exclude))
    table = Engine(options, Numbering()).apply(objects(cluster), revision=1)
    wired = {f"{pod.namespace}/{pod.name}": ip_address(pod.address()) for pod in life.pods.values()}
    wanted = table_says(table, wired)
    until(
        lambda: kernel_says(site.node.info.bpffs) == wanted,
        told=lambda: differences(kernel_says(site.node.info.bpffs), wanted),
    )
