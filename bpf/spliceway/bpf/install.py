"""The programs on the bpffs: where they are pinned, compiled, and put in place; who owns them.

Each version of the ABI has a directory of its own below `<bpffs>/spliceway` (see `upgrade.py`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from spliceway.bpf import abi, record
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.kernelstructs import offsets
from spliceway.bpf.loader import LoadRequest, load
from spliceway.bpf.source import program_names
from spliceway.bpf.types import DatapathSettings

_PINNED = ("programs", "links")
#: Descriptors that keep this process the owner of what is pinned on a bpffs.
_claims: list[int] = []


def pins(root: Path) -> frozenset[str]:
    """Programs and links that are pinned below `root`: «programs/judge»."""
    return frozenset(f"{each.parent.name}/{each.name}" for kind in _PINNED for each in _entries(root / kind))


def missing_pins(root: Path, wanted: frozenset[str]) -> list[str]:
    """A sentence when some of those that were there are gone, as after `cleanup --force`."""
    gone = sorted(wanted - pins(root))
    if not gone:
        return []
    told = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
    return [
        f"{len(gone)} of {len(wanted)} pins of programs and links in {root} are gone ({told}): policy is not enforced "
        "as it should be; restart the agent, which attaches them again"
    ]


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def claim(settings: DatapathSettings) -> None:
    """Make this process the only agent on the bpffs until it ends. Raises DatapathError when another one is."""
    check(settings)
    path = record.top(settings.bpffs)
    path.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DatapathError(f"bpffs: another agent runs on {path}; two would undo each other's work") from error
    _claims.append(descriptor)


def pin_root(settings: DatapathSettings, version: str = str(abi.ABI_VERSION)) -> Path:
    """Where everything of a version of the ABI is pinned."""
    return record.top(settings.bpffs) / f"v{version}"


def defines(settings: DatapathSettings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Definitions that the programs are compiled with; with ABI_VERSION in `extra` as those of that version."""
    version = (extra or {}).get("ABI_VERSION", str(abi.ABI_VERSION))
    return {
        "PIN_ROOT": f'"{pin_root(settings, version)}"',
        "MAX_ENDPOINTS": str(settings.max_endpoints),
        "MAX_IPCACHE": str(settings.max_ipcache),
        "MAX_ROWS": str(settings.max_rows),
        "MAX_PAIRS": str(settings.max_pairs),
        "MAX_CONNECTIONS": str(settings.max_connections),
        "EVENT_BYTES": str(settings.event_buffer_bytes),
        **(_socket_lb(settings) if settings.socket_lb != "off" else {}),
        **measuring()[0],
        **(extra or {}),
    }


def _socket_lb(settings: DatapathSettings) -> dict[str, str]:
    return {
        "SOCKET_LB": "1",
        "MAX_FRONTENDS": str(settings.max_frontends),
        "MAX_BACKENDS": str(settings.max_backends),
        "MAX_AFFINITIES": str(settings.max_affinities),
    }


def measuring() -> tuple[dict[str, str], str]:
    """Definitions with which the programs can look at a reader's queue, or none and why they can't."""
    try:
        found = offsets()
    except LookupError as error:
        return {}, str(error)
    return {"MEASURED": "1", **{name: str(offset) for name, offset in found.items()}}, ""


def check(settings: DatapathSettings) -> None:
    """Raises DatapathError when a cgroup or the bpffs isn't one."""
    for field, path in (("cgroups.pods", settings.pods_cgroup), ("cgroups.proxy", settings.proxy_cgroup)):
        if not (path / "cgroup.procs").exists():
            raise DatapathError(f"{field}: {path} is not a cgroup2 directory (is cgroup2 mounted there?)")
    if not settings.bpffs.is_dir():
        raise DatapathError(f"bpffs: {settings.bpffs} does not exist (mount -t bpf bpf {settings.bpffs})")
    if os.statvfs(settings.bpffs).f_namemax != 255 or not record.on_bpffs(settings.bpffs):
        raise DatapathError(f"bpffs: {settings.bpffs} is not a bpffs (mount -t bpf bpf {settings.bpffs})")


def loaded_digest(root: Path, names: Mapping[str, str]) -> str:
    """Names the programs that are in place; empty when not all are there that the definitions `names` ask for."""
    link = root / "digest"
    complete = all((root / "programs" / name).exists() for name in program_names(names))
    return str(link.readlink()) if complete and link.is_symlink() else ""


async def install(root: Path, names: dict[str, str], wanted: str, cache: Path | None) -> None:
    """Compile (or take from the cache) and pin beside what is there, then put the programs in place."""
    try:
        _prepare(root)
        await load(LoadRequest(pin_root=str(root), defines=names, cache=str(cache or "")))
        _put_in_place(root, program_names(names), wanted)
    except OSError as error:
        raise KernelRefusedError(f"pin below {root}", error.errno or 0, "is it a bpffs, and are you root?") from error


def _prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if (root / "staging").exists():
        shutil.rmtree(root / "staging")


def _put_in_place(root: Path, programs: tuple[str, ...], wanted: str) -> None:
    (root / "programs").mkdir(exist_ok=True)
    (root / "digest").unlink(missing_ok=True)  # first: whoever dies in between must not pass for complete
    for name in programs:
        (root / "staging" / name).rename(root / "programs" / name)
    (root / "digest").symlink_to(wanted)  # bpffs has no regular files
    (root / "staging").rmdir()
