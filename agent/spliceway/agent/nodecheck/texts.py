"""Reading the texts of /proc. Pure: text in, values out."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One mount (proc_pid_mountinfo(5)). `shared`: in a peer group, so that other namespaces see what is in it.

    `follows`: what is mounted in another namespace appears here, too; so this one came from there.
    """

    path: Path
    root: str
    kind: str
    device: str
    shared: bool
    read_only: bool
    options: tuple[str, ...] = ()
    follows: bool = False


def mounts(mountinfo: str) -> list[Mount]:
    """/proc/PID/mountinfo, in the order in which the mounts were made."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, after = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(after) < 3:
            continue
        found.append(
            Mount(
                path=Path(_unescape(fields[4])),
                root=_unescape(fields[3]),
                kind=after[0],
                device=fields[2],
                shared=any(each.startswith("shared:") for each in fields[6:]),
                read_only="ro" in fields[5].split(","),
                options=tuple(after[2].split(",")),
                follows=any(each.startswith("master:") for each in fields[6:]),
            )
        )
    return found


def mount_of(found: list[Mount], path: Path) -> Mount | None:
    """The mount that a path is on: of the longest mount points the one made last."""
    best = None
    for each in found:
        if path.is_relative_to(each.path) and (best is None or len(each.path.parts) >= len(best.path.parts)):
            best = each
    return best


def kernel_config(text: str) -> dict[str, str]:
    """A kernel's configuration: option → y, m or a value; those that are not set are left out."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))


def capabilities(status: str, field: str = "CapEff") -> int:
    """A bit mask of /proc/PID/status. Raises ValueError when it isn't there."""
    found = re.search(rf"^{field}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"no {field}")
    return int(found[1], 16)


def lockdown(text: str) -> str:
    """/sys/kernel/security/lockdown: the mode in force, «none [integrity] confidentiality»."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "none"


def limits(text: str) -> dict[str, tuple[str, str]]:
    """/proc/PID/limits: name → soft and hard limit, as they stand there."""
    found = re.findall(r"^(Max .+?)\s{2,}(\S+)\s+(\S+)", text, re.MULTILINE)
    return {name: (soft, hard) for name, soft, hard in found}


def fdinfo(text: str) -> dict[str, int]:
    """`prog_id`, `map_id` and `link_id` of /proc/PID/fdinfo/N."""
    return {
        name: int(number) for name, number in re.findall(r"^(prog_id|map_id|link_id):\s*(\d+)$", text, re.MULTILINE)
    }


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
