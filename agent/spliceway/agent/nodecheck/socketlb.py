"""Who gives pods' sockets a Service's backend at connect(): our socket load balancer, or somebody else's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.gate import KernelRelease, version
from spliceway.bpf.socketlb import ForeignProgram, foreign_programs

#: The first Linux in which connect and sendmsg programs say why they refuse (bpf_set_retval).
_SINCE = "6.1"
#: Beginnings of programs' names (the kernel keeps 15 characters) → whose they are, and how theirs is switched off.
_KNOWN = {
    "cil_sock": ("Cilium's socket LB", "socketLB.enabled=false and kubeProxyReplacement=false"),
    "sock4_": ("Cilium's socket LB", "--enable-host-reachable-services=false"),
    "sock6_": ("Cilium's socket LB", "--enable-host-reachable-services=false"),
    "calico_connect": ("Calico's connect-time load balancing", "bpfConnectTimeLoadBalancing: Disabled"),
    "calico_sendmsg": ("Calico's connect-time load balancing", "bpfConnectTimeLoadBalancing: Disabled"),
}


def socket_lb(target: Target) -> Iterator[Check]:
    """Programs of others where Services are translated for pods' sockets, and whether ours can be."""
    yield from judge_release(KernelRelease.running(), target.settings.socket_lb)
    if not target.configured:
        yield skipped("socket-lb", "no configuration says where the pods' cgroup is", "name it: --config FILE")
        return
    if not target.settings.pods_cgroup.is_dir():
        yield skipped("socket-lb", f"{target.settings.pods_cgroup} is not there", "see cgroups: cgroups.pods")
        return
    try:
        found = foreign_programs(target.settings.bpffs, target.settings.pods_cgroup)
    except (DatapathError, OSError) as error:
        yield skipped("socket-lb", str(error))
        return
    yield judge(found, target.settings.socket_lb)


def judge_release(running: KernelRelease, mode: str) -> Iterator[Check]:
    """From the kernel's version: with programs that it does not load an agent does not start."""
    if mode != "off" and running.version < version(_SINCE):
        what = f"datapath.socketLb is {mode}, and {running} is older than {_SINCE}: the programs are not loaded"
        yield fail("socket-lb", what, f"set datapath.socketLb to off, or boot Linux {_SINCE} or newer")


def judge(found: Sequence[ForeignProgram], mode: str) -> Check:
    """From all of them, and `datapath.socketLb`."""
    name = "socket-lb"
    if not found:
        ours = "off" if mode == "off" else f"{mode}: pods' sockets get Services from us"
        return ok(name, f"nobody else translates for pods' sockets; datapath.socketLb is {ours}")
    owners = {owner: how for one in found for start, (owner, how) in _KNOWN.items() if one.name.startswith(start)}
    whose = ", ".join(owners) or "somebody"
    told = f"{whose} translates for pods' sockets: {', '.join(map(str, found))}"
    switch = "; ".join(f"{owner}: {how}" for owner, how in owners.items()) or "take these programs off"
    if mode == "on":
        return warn(
            name, told, f"ours stays off beside it: set datapath.socketLb to auto or off, or switch it off ({switch})"
        )
    if mode == "auto":
        return info(name, told, f"nothing: ours stays off until it has gone ({switch})")
    return info(name, told, "nothing: datapath.socketLb is off")
