"""Kernel programs that were compiled before are loaded again without the compiler: tests change versions often.

A program keeps the maps that it was loaded with. So what is remembered serves as long as these are the ones that it
would get now; otherwise it is compiled, and remembered anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from spliceway.bpf import install, libbpf
from spliceway.bpf.loader import LoadReply, LoadRequest, load
from spliceway.bpf.source import digest


def copy_pins(source: Path, target: Path) -> None:
    """Pin all that is pinned in one directory in another, too."""
    target.mkdir(parents=True, exist_ok=True)
    for one in source.iterdir():
        if not (target / one.name).exists():
            descriptor = libbpf.open_pin(one)
            libbpf.pin(descriptor, target / one.name)
            os.close(descriptor)


def remember_programs(stash: Path) -> None:
    """From now on in this process; `stash` is a directory on the bpffs, which the caller removes."""

    async def remembered(request: LoadRequest) -> LoadReply:
        root, known = Path(request.pin_root), stash / digest(request.defines)
        if known.is_dir() and not _serves(known / "maps", root / "maps"):
            shutil.rmtree(known)
        if not known.is_dir():
            await load(request)
            copy_pins(root / "staging", known / "programs")
            copy_pins(root / "maps", known / "maps")
        copy_pins(known / "maps", root / "maps")
        copy_pins(known / "programs", root / "staging")
        return LoadReply()

    vars(install)["load"] = remembered


def _serves(known: Path, now: Path) -> bool:
    names = [one.name for one in now.iterdir()] if now.is_dir() else []
    return all(libbpf.info_of(known / name).id == libbpf.info_of(now / name).id for name in names)
