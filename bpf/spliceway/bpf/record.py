"""What was made that can't be told from the work of others later: kept as symbolic links on the bpffs.

They live as long as what they tell of: until it is removed, or the machine restarts. (A bpffs has no regular files.)
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from spliceway.bpf.netns import current_cookie
from spliceway.bpf.types import DatapathSettings

_CLSACT, _RULES, _LIVE, _NETNS = "clsact", "rules", "live", "netns"


class PolicyRule(msgspec.Struct, frozen=True, order=True):
    """A policy rule for steered packets, and the table that it leads to. `family`: AF_INET or AF_INET6."""

    family: int
    priority: int
    table: int
    mark: int
    mask: int

    def __str__(self) -> str:
        version = 4 if self.family == socket.AF_INET else 6
        return f"IPv{version} rule {self.priority}: fwmark {self.mark:#x}/{self.mask:#x} lookup {self.table}"


def rules_of(settings: DatapathSettings) -> tuple[PolicyRule, PolicyRule]:
    """The two rules of these settings."""
    numbers = settings.rule_priority, settings.route_table, settings.mark, settings.mark_mask
    return PolicyRule(socket.AF_INET, *numbers), PolicyRule(socket.AF_INET6, *numbers)


def top(bpffs: Path) -> Path:
    """The directory on a bpffs that is ours, whatever the version."""
    return bpffs / "spliceway"


def roots(bpffs: Path) -> list[Path]:
    """Where something is pinned: a directory for each version of the ABI."""
    found = sorted(top(bpffs).iterdir()) if top(bpffs).is_dir() else []
    return [path for path in found if path.name not in (_CLSACT, _RULES, _LIVE, _NETNS)]


def live(bpffs: Path) -> Path | None:
    """The root whose programs were attached last."""
    link = top(bpffs) / _LIVE
    return top(bpffs) / link.readlink() if link.is_symlink() else None


def set_live(bpffs: Path, root: Path) -> None:
    """The programs of this root are attached now."""
    if live(bpffs) != root:
        (top(bpffs) / _LIVE).unlink(missing_ok=True)
        (top(bpffs) / _LIVE).symlink_to(root.name)


def netns(bpffs: Path) -> int | None:
    """Cookie of the network namespace that interfaces and rules of the record are in, None: nobody has said."""
    link = top(bpffs) / _NETNS
    return int(link.readlink().name) if link.is_symlink() else None


def set_netns(bpffs: Path) -> None:
    """An agent begins here. What was made in another namespace can't be reached from this one: it is forgotten."""
    own = current_cookie()
    if (before := netns(bpffs)) == own:
        return
    if before is not None:
        _forget(bpffs)
    (top(bpffs) / _NETNS).unlink(missing_ok=True)
    (top(bpffs) / _NETNS).symlink_to(str(own))


def others(bpffs: Path) -> list[Path]:
    """Other bpffs, or directories on one, whose agents' interfaces and rules are in this network namespace.

    Of each mount that a process sees; paths begin with `/proc/PID/root`, where only another process sees them. root's.
    """
    own, known = current_cookie(), {_identity(top(bpffs))}
    found = []
    for mount in _mounts():
        for path in [top(mount), *sorted(mount.glob("*/spliceway")), *sorted(mount.glob("*/*/spliceway"))]:
            identity = _identity(path)
            if identity is not None and identity not in known and netns(path.parent) == own:
                found.append(path.parent)
            known.add(identity)
    return found


def _mounts() -> list[Path]:
    """Where each bpffs is mounted, of every mount namespace that a process is in, this process' own first."""
    seen: set[str] = set()
    found = []
    processes = sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    for root in (Path("/proc/self"), *(Path("/proc", str(pid)) for pid in processes)):
        try:
            if (namespace := str((root / "ns/mnt").readlink())) in seen:
                continue
            lines = (root / "mountinfo").read_text().splitlines()
        except OSError:  # it has ended, or is not ours to look at
            continue
        seen.add(namespace)
        before = Path("/") if root.name == "self" else root / "root"
        for fields in map(str.split, lines):
            if fields[fields.index("-") + 1] == "bpf":
                found.append(before / fields[4].encode().decode("unicode_escape").lstrip("/"))
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def on_bpffs(path: Path) -> bool:
    """Whether a path that is there lies on a bpffs."""
    device = path.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "bpf" and fields[2] == f"{os.major(device)}:{os.minor(device)}":
            return True
    return False


def add_clsact(bpffs: Path, ifindex: int) -> None:
    """We made the clsact of this interface."""
    _add(top(bpffs) / _CLSACT, str(ifindex))


def add_rule(bpffs: Path, rule: PolicyRule) -> None:
    """We made this rule, and the route in its table."""
    _add(top(bpffs) / _RULES, "-".join(map(str, msgspec.structs.astuple(rule))))


def clsacts(bpffs: Path) -> list[int]:
    """Interfaces whose clsact is ours, also those that have gone by now."""
    return [int(name) for name in _names(top(bpffs) / _CLSACT) if name.isdigit()]


def rules(bpffs: Path) -> list[PolicyRule]:
    """Rules that are ours, those of earlier settings, too."""
    found = []
    for name in _names(top(bpffs) / _RULES):
        numbers = [int(part) for part in name.split("-") if part.isdigit()]
        if len(numbers) == len(PolicyRule.__struct_fields__):
            found.append(PolicyRule(*numbers))
    return found


def drop_clsact(bpffs: Path, ifindex: int) -> None:
    """It is gone."""
    (top(bpffs) / _CLSACT / str(ifindex)).unlink(missing_ok=True)


def drop_rule(bpffs: Path, rule: PolicyRule) -> None:
    """It is gone."""
    (top(bpffs) / _RULES / "-".join(map(str, msgspec.structs.astuple(rule)))).unlink(missing_ok=True)


def clear(bpffs: Path) -> None:
    """Remove the record, and our directory when nothing else is in it."""
    _forget(bpffs)
    for name in (_LIVE, _NETNS):
        (top(bpffs) / name).unlink(missing_ok=True)
    _remove(top(bpffs))


def _forget(bpffs: Path) -> None:
    for name in (_CLSACT, _RULES):
        for each in _names(top(bpffs) / name):
            (top(bpffs) / name / each).unlink(missing_ok=True)
        _remove(top(bpffs) / name)


def _add(directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / name).is_symlink():
        (directory / name).symlink_to("made-by-spliceway")


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []


def _remove(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return  # not there, or somebody else has something in it
