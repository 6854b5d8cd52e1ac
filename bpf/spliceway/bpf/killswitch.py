"""The kill switch in the kernel: a flag that every program looks at first. It needs no agent, only what is pinned."""

from __future__ import annotations

from pathlib import Path

from spliceway.bpf import abi, record
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.libbpf import BpfMap
from spliceway.bpf.maps import LAYOUT, ZERO

_FLAG = abi.ConfigFlag.DISABLED.value


def is_on(bpffs: Path) -> bool:
    """Whether the programs that are attached pass everything; False where none are. Raises KernelRefusedError."""
    live = record.live(bpffs)
    config = live / "maps" / "config" if live is not None else None
    return config is not None and config.exists() and bool(_read(config).flags & _FLAG)


def left_disabled(bpffs: Path) -> bool:
    """The same for an agent that starts: what can't be read is no reason to let everything pass."""
    try:
        return is_on(bpffs)
    except DatapathError:
        return False


def turn(bpffs: Path, on: bool) -> list[Path]:
    """Set or clear the flag for the programs of every version that are pinned there; returns their roots.

    An agent that runs writes what it thinks itself a moment later. Raises DatapathError for a directory that is not on
    a bpffs, for programs that don't know the flag, and for clearing what an agent has set: the proxy was told then to
    let every request pass, and only an agent can tell it otherwise.
    """
    top = record.top(bpffs)
    if top.exists() and not record.on_bpffs(top):
        raise DatapathError(f"bpffs: {top} is not on a bpffs: nothing of it is ours")
    turned = []
    for root in record.roots(bpffs):
        path = root / "maps" / "config"
        if not path.exists():
            continue
        opened = _open(path)
        try:
            value = _value(opened)
            if not on and value.flags & abi.ConfigFlag.LENIENT:
                raise DatapathError(
                    "the proxy was told by an agent to let every request pass, and only an agent can tell it to ask "
                    "rules again: everything passes until one runs, which turns the switch off by itself"
                )
            value.flags = value.flags | _FLAG if on else value.flags & ~_FLAG
            opened.update(ZERO, bytes(value))
        finally:
            opened.close()
        turned.append(root)
    return turned


def _open(path: Path) -> BpfMap:
    opened = BpfMap.open(path, "config")
    if (opened.key_size, opened.value_size) != LAYOUT["config"][:2]:
        opened.close()
        raise DatapathError(f"{path} is of another version of Spliceway: use the `spliceway` of the agent there")
    return opened


def _value(opened: BpfMap) -> abi.Config:
    raw = opened.lookup(ZERO)
    if raw is None:
        raise KernelRefusedError("read the map config", 0)
    return abi.Config.from_buffer_copy(raw)


def _read(path: Path) -> abi.Config:
    opened = _open(path)
    try:
        return _value(opened)
    finally:
        opened.close()
