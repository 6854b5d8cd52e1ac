"""Where the pods' sockets are: the kubelet's cgroup for pods, found below the cgroup2 hierarchies that are mounted.

The kubelet calls it `kubepods.slice` (systemd driver) or `kubepods` (cgroupfs driver), at the top or below its
`--cgroup-root`, with whose name the slice's then begins (kind: `kubelet.slice/kubelet-kubepods.slice`). Source:
`cm.NewCgroupName` and `CgroupName.ToSystemd` of pkg/kubelet/cm in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from spliceway.agent.config import Config
from spliceway.agent.errors import AgentError
from spliceway.agent.nodecheck.texts import Mount, mounts

#: What is looked at, and complained of, where nothing is found: the systemd driver's on a machine with cgroup2 only.
USUAL = Path("/sys/fs/cgroup/kubepods.slice")
_MOUNTS = Path("/proc/self/mountinfo")
_FIELD = "cgroups.pods"


def located(config: Config) -> Config:
    """The configuration with the directory of the pods, as configured or as found. Raises AgentError."""
    if config.cgroups.pods is not None:
        return config
    pods = locate(mounts(_MOUNTS.read_text()))
    return msgspec.structs.replace(config, cgroups=msgspec.structs.replace(config.cgroups, pods=pods))


def usual() -> Path:
    """The pods' directory of this machine, USUAL where it can't be told."""
    try:
        return locate(mounts(_MOUNTS.read_text()))
    except AgentError:
        return USUAL


def locate(mounted: Iterable[Mount]) -> Path:
    """The pods' directory in the cgroup2 hierarchies among these mounts, USUAL where there is none.

    Raises:
        AgentError: several might be it, or pods are in a hierarchy of version 1 only.
    """
    mounted = list(mounted)
    found = _each(mounted, "cgroup2")
    if len(found) > 1:  # one that is left of an earlier driver has no processes
        found = [path for path in found if _is_populated(path)] or found
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise AgentError(f"{_FIELD}: each of these may be the pods': {names}; say which")
    if found:
        return found[0]
    if others := _each(mounted, "cgroup"):
        raise AgentError(
            f"{_FIELD}: pods are in {others[0]}, a hierarchy of version 1, and not in cgroup2, the only one that "
            "sockets know (let the kubelet use the systemd driver, or boot with systemd.unified_cgroup_hierarchy=1)"
        )
    return USUAL


def _each(mounted: Iterable[Mount], kind: str) -> list[Path]:
    """Directories of that name, each once: a hierarchy may be mounted in several places."""
    found: dict[tuple[int, int], Path] = {}
    for mount in mounted:
        for path in _below(mount.path) if mount.kind == kind else ():
            status = path.stat()
            found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def _below(top: Path) -> Iterator[Path]:
    """At the top, or below one directory of it."""
    for pattern in ("kubepods", "kubepods.slice", "*/kubepods", "*/*-kubepods.slice"):
        yield from (path for path in sorted(top.glob(pattern)) if path.is_dir())


def _is_populated(path: Path) -> bool:
    try:
        return "populated 1" in (path / "cgroup.events").read_text().splitlines()
    except OSError:
        return False
