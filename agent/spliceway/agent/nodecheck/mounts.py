"""Places: the cgroup2 hierarchy with the two directories, the BPF file system, the directory of policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import names, text
from spliceway.agent.nodecheck.texts import Mount, mount_of, mounts


def cgroup2(_target: Target) -> Iterator[Check]:
    """Where cgroup2 is mounted, and whether v1 hierarchies are beside it."""
    yield judge_cgroup2(mounts(text(Path("/proc/self/mountinfo"))))


def judge_cgroup2(found: Sequence[Mount]) -> Check:
    """From all mounts."""
    paths = [str(each.path) for each in found if each.kind == "cgroup2"]
    v1 = [each for each in found if each.kind == "cgroup"]
    if not paths:
        return fail("cgroup2", "not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    where = ", ".join(dict.fromkeys(paths))
    if v1:
        # Sockets know one cgroup, that of cgroup2 (sock_cgroup_data); net_cls and net_prio of v1 take its place.
        taking = [name for each in v1 for name in ("net_cls", "net_prio") if name in each.options]
        if taking:
            todo = "boot with cgroup_no_v1=net_cls,net_prio: a socket that has a class there has no cgroup2 any more"
            return warn("cgroup2", f"{where}, hybrid with v1 {', '.join(taking)}", todo)
        todo = "see that pods are in cgroup2, too (systemd.unified_cgroup_hierarchy=1 makes it the only one)"
        return info("cgroup2", f"{where}, hybrid: v1 controllers are mounted beside it", todo)
    return ok("cgroup2", where)


def cgroup_directories(target: Target) -> Iterator[Check]:
    """The two directories of the configuration."""
    if not target.configured:
        yield skipped("cgroups", "no configuration", "name it: --config FILE")
    for field, path in target.cgroups.items():
        if not path.is_dir():
            made = field == "cgroups.proxy" and _is_cgroup2(path.parent)
            if made:
                yield ok("cgroups", f"{field}: {path} is made by the agent")
            else:
                yield fail("cgroups", f"{field}: {path} is not there", f"make it, or correct {field}")
        elif not _is_cgroup2(path):
            yield fail("cgroups", f"{field}: {path} is not a cgroup2 directory", f"correct {field}")
        elif not (path / "cgroup.type").exists():  # the root has none
            todo = f"name a directory below it in {field}: programs there would see every socket of the machine"
            yield fail("cgroups", f"{field}: {path} is the root cgroup", todo)
        else:
            yield ok("cgroups", f"{field}: {path}, {_groups(path)}")
    pods, proxy = (path.resolve() for path in (target.settings.pods_cgroup, target.settings.proxy_cgroup))
    if target.configured and (pods == proxy or pods in proxy.parents or proxy in pods.parents):
        todo = "move one of them: whose is a socket that is in both?"
        yield fail("cgroups", f"{pods} and {proxy} contain one another", todo)


def bpffs(target: Target) -> Iterator[Check]:
    """The BPF file system that everything is pinned on."""
    yield judge_bpffs(mounts(text(Path("/proc/self/mountinfo"))), target.settings.bpffs, in_container=_in_container())


def judge_bpffs(found: Sequence[Mount], path: Path, *, in_container: bool) -> Check:
    """From all mounts. A file system that a container has mounted itself goes with it, and all verdicts with it."""
    on = mount_of(list(found), path)
    if on is None or on.kind != "bpf":
        return fail("bpffs", f"{path} is not on a bpffs", f"mount -t bpf bpf {path}")
    if on.read_only:
        return fail("bpffs", f"{path} is read-only", f"mount -o remount,rw {on.path}")
    if in_container and not (on.shared or on.follows):
        todo = "mount the host's with mountPropagation: HostToContainer, or what is pinned ends with the container"
        return warn("bpffs", f"{path} may be the container's own (its mount follows none of the host's)", todo)
    return ok("bpffs", f"{path} ({'shared' if on.shared else 'of the host' if on.follows else 'private'})")


def source(target: Target) -> Iterator[Check]:
    """The directory of policies and manifests: an agent does not start without it."""
    if (path := target.source) is None:
        if target.configured:
            yield skipped("source", "source.kubernetes: the agent itself asks the API server, and status tells")
        else:
            yield skipped("source", "no configuration", "name it: --config FILE")
    elif not path.is_dir():
        what = "is not a directory" if path.exists() else "is not there"
        yield fail("source", f"source.directory: {path} {what}", "make it, or correct source.directory")
    else:
        yield ok("source", f"source.directory: {path}")


def _in_container() -> bool:
    """Whether there are the usual signs of a container: its mounts end with it."""
    return any(Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv")) or bool(
        names(Path("/var/run/secrets/kubernetes.io"))
    )


def _is_cgroup2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists() and (path / "cgroup.procs").exists()


def _groups(path: Path) -> str:
    count = sum(1 for each in path.iterdir() if each.is_dir())
    return f"{count} cgroup{'' if count == 1 else 's'} in it"
