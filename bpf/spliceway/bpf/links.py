"""The programs' bpf_links to cgroups and to the network namespace, and the sk_msg program at its sockhash."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from spliceway.bpf import libbpf
from spliceway.bpf.attach import attach_link
from spliceway.bpf.maps import Maps
from spliceway.bpf.source import PROGRAMS
from spliceway.bpf.types import DatapathSettings

_NETNS = Path("/proc/thread-self/ns/net")
#: Programs of the socket load balancer and where in the pods' cgroup they are attached (`enum bpf_attach_type`).
SOCKET_LB_LINKS = {spec.name: spec.attach_type for spec in PROGRAMS["services.bpf.c"]}


def attach_links(settings: DatapathSettings, maps: Maps, others: Iterable[Path]) -> None:
    """Put the programs of `maps.root` behind their links, in one step each: there is no moment without a program.

    The links of other versions' roots (`others`) are taken over; what they have besides is detached. Those of the
    socket load balancer are not made here (`socketlb.py`), only taken over.
    """
    root = maps.root
    targets = {
        "guard": (_NETNS, libbpf.BPF_SK_LOOKUP),
        "sockops_proxy": (settings.proxy_cgroup, libbpf.BPF_CGROUP_SOCK_OPS),
        "splice_room": (settings.proxy_cgroup, libbpf.BPF_CGROUP_GETSOCKOPT),
        "proxy_destination": (settings.proxy_cgroup, libbpf.BPF_CGROUP_GETSOCKOPT),
        "release_pod": (settings.pods_cgroup, libbpf.BPF_CGROUP_INET_SOCK_RELEASE),
        "release_proxy": (settings.proxy_cgroup, libbpf.BPF_CGROUP_INET_SOCK_RELEASE),
        "guard_ulp": (settings.pods_cgroup, libbpf.BPF_CGROUP_SETSOCKOPT),
        "sockops_pod": (settings.pods_cgroup, libbpf.BPF_CGROUP_SOCK_OPS),
    }
    (root / "links").mkdir(exist_ok=True)
    left = [link for other in others for link in _files(other / "links")]
    program = {name: libbpf.open_pin(root / "programs" / name) for name in (*targets, "splice_message")}
    try:
        libbpf.attach_to_map(program["splice_message"], maps.socks.fd, libbpf.BPF_SK_MSG_VERDICT)
        for link in left:
            if (link.name in targets or link.name in SOCKET_LB_LINKS) and not (root / "links" / link.name).exists():
                link.rename(root / "links" / link.name)
        for name, (target, kind) in targets.items():
            attach_link(root / "links" / name, target, kind, program[name])
    finally:
        for descriptor in program.values():
            os.close(descriptor)
    for link in left:
        link.unlink(missing_ok=True)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
