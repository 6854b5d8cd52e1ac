"""All checks in their order. One that can't be made is skipped, with the reason: none ends the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from spliceway.agent.config import Config
from spliceway.agent.nodecheck import (
    cni,
    devices,
    drops,
    hooks,
    kernel,
    killswitch,
    mounts,
    neighbours,
    netfilter,
    owners,
    paths,
    rights,
    routing,
    socketlb,
    tcp,
)
from spliceway.agent.nodecheck.model import Check, Report, Target, report, skipped
from spliceway.agent.nodecheck.reading import Unreadable
from spliceway.bpf import gate
from spliceway.bpf.types import DatapathSettings

#: Name → check. The name is that of its first result.
CHECKS: dict[str, Callable[[Target], Iterator[Check]]] = {
    "user": rights.user,
    "agent": rights.agent_runs,
    "kill-switch": killswitch.kill_switch,
    "kernel-release": kernel.release,
    "kernel-config": kernel.config,
    "measure": kernel.measured,
    "capabilities": rights.capabilities,
    "lockdown": rights.lockdown,
    "limits": rights.limits,
    "libbpf": rights.libraries,
    "cgroup2": mounts.cgroup2,
    "cgroups": mounts.cgroup_directories,
    "bpffs": mounts.bpffs,
    "source": mounts.source,
    "cni": cni.cni,
    "cgroup-programs": owners.owners,
    "socket-lb": socketlb.socket_lb,
    "tc-programs": hooks.tc_programs,
    "devices": devices.devices,
    "forwarding": routing.forwarding,
    "rp-filter": routing.rp_filter,
    "pod-routes": paths.pod_routes,
    "rules": routing.rules,
    "marks": netfilter.mark_uses,
    "kube-proxy": netfilter.kube_proxy,
    "drop-policies": drops.drop_policies,
    "bridges": netfilter.bridges,
    "neighbours": neighbours.neighbours,
    "tcp": tcp.tcp,
    "self-test": kernel.self_test,
}


def run(target: Target) -> Report:
    """Make all checks, in this network namespace."""
    return report(str(gate.KernelRelease.running()), _all(target))


def target_of(config: Config | None, *, bpffs: Path | None = None, self_test: bool = True) -> Target:
    """What is to be looked at: the configuration, or the defaults without one; `bpffs` in place of what it says."""
    if config is None:
        nowhere = Path("/nonexistent")
        settings = DatapathSettings(
            bpffs=bpffs or Path("/sys/fs/bpf"),
            state_dir=Path("/var/lib/spliceway"),
            pods_cgroup=nowhere,
            proxy_cgroup=nowhere,
        )
        return Target(settings=settings, configured=False, self_test=self_test)
    settings = config.datapath_settings()
    if bpffs is not None:
        settings = msgspec.structs.replace(settings, bpffs=bpffs)
    return Target(
        settings=settings,
        configured=True,
        source=config.source.directory,
        fixes=config.splice.kernel_fixes,
        self_test=self_test,
        kill_switch=config.kill_switch.file,
        kinds=config.policies.kinds,
        cni=config.cni,
    )


def _all(target: Target) -> Iterator[Check]:
    for name, check in CHECKS.items():
        try:
            yield from check(target)
        except Unreadable as error:
            yield skipped(name, str(error))
        except Exception as error:
            # A node that is odd in a way nobody thought of: say so, and go on.
            yield skipped(name, f"{type(error).__name__}: {error}", "please report it: this check should not end so")
