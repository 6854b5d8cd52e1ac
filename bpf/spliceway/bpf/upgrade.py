"""From one version of the programs to another, newer or older, while connections go on.

Every ABI version has its own root below `<bpffs>/spliceway`. The one that starts shares the maps whose layout is its
own with the root that was live before (the same map has two pins then), takes over its links in place, and replaces its
filters. Sockets that were spliced before keep the old sk_msg program and its maps, until they are closed: the old root
drains, and goes when its sockhash is empty. They are judged by the maps that are shared. Where one of those is not,
nothing could be withdrawn from them any more, so they are ended.

With a root goes what is attached by pins in it, also in ways that came after this version. So none goes before the
programs of this version are at all endpoints: until then those of the other one may be the only ones there. An endpoint
that can't be attached keeps it only if its device may have something of that version.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import structlog
from pyroute2 import AsyncIPRoute

from spliceway.bpf import abi, diag, libbpf, record
from spliceway.bpf.background import Background
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.maps import LAYOUT, SERVICES_LAYOUT

#: What an sk_msg program judges a connection by.
_JUDGING = ("generation", "endpoints", "ipcache", "classes", "policy", "pairs", "listeners")
#: What the spliced connections of one version have to themselves, unless all of it can be shared.
_SPLICING = frozenset({"splices", "socks", "sock_tags", "sidecar_socks", "unread"})
#: Layouts of versions that did not record them.
_UNRECORDED: dict[str, dict[str, str]] = {}
#: Of what a root has, this attaches nothing.
_PASSIVE = frozenset({"maps", "programs", "staging", "layout", "digest"})
_NAME = re.compile(r"v\d+")
_INTERVAL = 2.0

_log = structlog.get_logger(__name__)


def live_root(bpffs: Path) -> Path | None:
    """The root whose programs are attached, as far as that is known."""
    named = record.live(bpffs)
    if named is not None and named.is_dir():
        return named
    linked = [root for root in record.roots(bpffs) if (root / "links").is_dir() and any((root / "links").iterdir())]
    return linked[-1] if linked else None


def share_maps(live: Path | None, root: Path, layouts: Mapping[str, str]) -> None:
    """Give `root` the maps of the live root that have these layouts, before its programs are loaded.

    A map by which connections are judged, and that can't be shared, begins empty. Programs in `root` that used another
    map no longer count as loaded. Raises KernelRefusedError or OSError; then it can be tried again.
    """
    if live is None or live == root:
        return
    (root / "maps").mkdir(parents=True, exist_ok=True)
    shared = _shareable(live, layouts)
    for name in layouts:
        source, target = live / "maps" / name, root / "maps" / name
        stale = target.exists() and (name in _JUDGING or (name in _SPLICING and _is_same(source, target)))
        if _is_same(source, target) if name in shared else not stale:
            continue
        (root / "digest").unlink(missing_ok=True)  # first: its programs have another map
        target.unlink(missing_ok=True)
        if name in shared:
            _pin_again(source, target)


def record_layouts(root: Path, layouts: Mapping[str, str]) -> None:
    """Keep what this root's maps look like, for the version that comes after."""
    (root / "layout").mkdir(exist_ok=True)
    for name, layout in layouts.items():
        link = root / "layout" / name
        if not link.is_symlink() or str(link.readlink()) != layout:
            link.unlink(missing_ok=True)
            link.symlink_to(layout)  # bpffs has no regular files


class Drain(Background):
    """Roots of other versions: kept as long as sockets are in their sockhash, or endpoints may go by their programs.

    It runs until all are gone.
    """

    def __init__(self, bpffs: Path, root: Path) -> None:
        """`root`: the one that is live now."""
        super().__init__("drain")
        self._bpffs, self._root = bpffs, root
        self._kept: dict[str, str] = {}
        self._behind: tuple[str, ...] | None = None
        self._waiting: tuple[str, ...] = ()
        self._looking = asyncio.Lock()

    @property
    def others(self) -> list[Path]:
        """Roots of other versions."""
        return [root for root in record.roots(self._bpffs) if root != self._root and _NAME.fullmatch(root.name)]

    @property
    def left(self) -> tuple[str, ...]:
        """What drains, and why it is kept, for people: «v2: 7 connections»."""
        return tuple(f"{name}: {why}" for name, why in sorted(self._kept.items()))

    async def settle(self, hooks: Hooks, ipr: AsyncIPRoute, waiting: Mapping[int, str]) -> list[str]:
        """The endpoints have been attached, but for those at the devices `waiting` (index → name).

        Returns what failed; then it is tried again.
        """
        failures = await hooks.settle(ipr, waiting)
        try:
            devices = await hooks.earlier(waiting)
        except KernelRefusedError as error:
            return [*failures, str(error)]
        if devices or not failures:
            self.in_place(devices, sorted(waiting.values()))
        return failures

    def in_place(self, but: Collection[str] = (), waiting: Collection[str] = ()) -> None:
        """Packets of all endpoints meet the programs of this version, but at the devices `but`.

        `waiting`: devices of endpoints that could not be attached. Once there is neither, that is not asked again.
        """
        if self._behind is None or self._behind or self._waiting:
            self._behind, self._waiting = tuple(but), tuple(waiting)

    async def look(self) -> None:
        """Count what is left, and remove the roots that have nothing. Raises KernelRefusedError or OSError."""
        async with self._looking:
            looking = asyncio.get_running_loop().run_in_executor(None, self._look)
            try:
                await asyncio.shield(looking)
            except asyncio.CancelledError:
                await looking
                raise

    def _look(self) -> None:
        kept = {}
        for other in self.others:
            members = {} if self._shares(other, "socks") else _members(other)
            if members and not self._is_judged(other):
                cookies = set(members.values())
                diag.destroy_many([one for one in diag.connections() if one[2] in cookies])
            if members:
                kept[other.name] = f"{len({key[:-4] for key in members})} connections"  # without the end
            elif why := self._needed(other):
                kept[other.name] = why
            else:
                shutil.rmtree(other)
                _log.info("an earlier version's programs are removed", root=str(other))
        self._kept = kept

    def _needed(self, other: Path) -> str:
        """Why endpoints may still go by that root's programs, empty: none does."""
        if self._behind is None:
            return "until the endpoints have the programs of this version"
        if self._behind:
            return f"its programs are at {', '.join(self._behind)}, where this version's can't be attached"
        if self._waiting and (kinds := ", ".join(_attaching(other))):
            return (
                f"its programs ({kinds}) may be at {', '.join(self._waiting)}, where this version's can't be attached"
            )
        return ""

    def _is_judged(self, other: Path) -> bool:
        return all(self._shares(other, name) for name in _JUDGING)

    def _shares(self, other: Path, name: str) -> bool:
        return _is_same(other / "maps" / name, self._root / "maps" / name)

    async def _run(self) -> None:
        while self.others:
            try:
                await self.look()
            except (KernelRefusedError, OSError) as error:
                _log.warning("an earlier version's programs could not be removed, trying again", error=str(error))
            await asyncio.sleep(_INTERVAL)


def _attaching(root: Path) -> list[str]:
    """Kinds of pins in a root that may be all by which its programs are attached somewhere."""
    kinds = [path for path in root.iterdir() if path.name not in _PASSIVE]
    return sorted(path.name for path in kinds if not path.is_dir() or any(path.iterdir()))


def _members(root: Path) -> dict[bytes, bytes]:
    """Keys and socket cookies in a root's sockhash; nothing when it has none (an agent that died while it began)."""
    path = root / "maps" / "socks"
    if not path.exists():
        return {}
    opened = libbpf.BpfMap.open(path, "socks")
    try:
        return {key: cookie for key in opened.keys() if (cookie := opened.lookup(key)) is not None}  # noqa: SIM118
    finally:
        opened.close()


def _recorded(root: Path) -> dict[str, str]:
    if not (root / "layout").is_dir():
        return _UNRECORDED.get(root.name, {})
    return {link.name: str(link.readlink()) for link in (root / "layout").iterdir()}


def _shareable(live: Path, layouts: Mapping[str, str]) -> frozenset[str]:
    recorded, maps = _recorded(live), live / "maps"
    found = {
        name
        for name, layout in layouts.items()
        if recorded.get(name) == layout and (maps / name).exists() and _is_as_expected(maps / name, name)
    }
    return frozenset(found if found >= _SPLICING else found - _SPLICING)


def _is_as_expected(path: Path, name: str) -> bool:
    info, (key_size, value_size, _) = libbpf.info_of(path), {**LAYOUT, **SERVICES_LAYOUT}[name]
    if name == "reasons" and info.max_entries != abi.HOOKS * abi.VERDICTS * abi.REASON_SLOTS:
        return False
    return (info.key_size, info.value_size) == (key_size, value_size)


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and libbpf.info_of(one).id == libbpf.info_of(other).id


def _pin_again(source: Path, target: Path) -> None:
    descriptor = libbpf.open_pin(source)
    try:
        libbpf.pin(descriptor, target)
    finally:
        os.close(descriptor)
