"""Removing all that any agent left on this node (`spliceway cleanup`). Needs no agent and no configuration.

The CNI plugin leaves the node's chain first: without an agent to answer it no pod could start. Then the proxy goes:
that resets its connections while the kernel still keeps what belongs to them; without it a connection could go on with
a hole in it, where spliced bytes were. Then `bpf/leftovers` takes out the kernel's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from spliceway.agent.cni import build, place
from spliceway.agent.cni.wirings import FILE as WIRINGS
from spliceway.agent.errors import StateError
from spliceway.agent.proxypod import place as proxydirectory
from spliceway.agent.proxypod.supervisor import end_of_pods, pids_of_pods
from spliceway.agent.proxysupervisor import KINDS, end_kind, running_pids
from spliceway.agent.sources.kubernetes.kinds import FILE as SEEN_KINDS
from spliceway.agent.state import StateStore
from spliceway.bpf import leftovers
from spliceway.bpf.types import DatapathSettings

#: How long a proxy has to end by itself, in seconds.
GRACE = 1.0
#: Files of the state directory besides those that go with the proxy, and the lock, which an agent may be waiting for.
_STATE = (
    *("state.json", ".state.json.new", "xds.sock", WIRINGS, SEEN_KINDS, place.RECORD),
    *(f"{kind}.log" for kind in KINDS),
)


class Item(msgspec.Struct, frozen=True):
    """One thing. `kind`: cni, proxy, cgroup, link, filter, clsact, rule, sysctl, pins, state."""

    kind: str
    what: str


class Cleaned(msgspec.Struct, frozen=True):
    """What was found; of that what was removed, and what was kept (others use it, or it was not asked for)."""

    found: tuple[Item, ...]
    removed: tuple[Item, ...]
    kept: tuple[Item, ...]


def sees_all() -> bool:
    """Whether this process may look everywhere: bpffs and state directory are root's, and so are the processes."""
    return os.geteuid() == 0


def elsewhere(settings: DatapathSettings) -> bool:
    """Whether the agent ran in another network namespace: of what is bound to it nothing is found from here."""
    return leftovers.elsewhere(settings.bpffs)


def foreign(settings: DatapathSettings, found: Iterable[Item]) -> str:
    """Why what was found would take the rules of an agent with another bpffs, or nothing."""
    shared = any(item.kind in leftovers.SHARED for item in found)
    if not shared or elsewhere(settings) or not (others := leftovers.strangers(settings.bpffs)):
        return ""
    places = " and ".join(str(other) for other in others)
    return f"what there is belongs to the agent of {places}: name that with --bpffs (and its --state-dir)"


async def find(settings: DatapathSettings) -> list[Item]:
    """What there is; of the settings only `bpffs`, `state_dir`, the cgroups and the rule's numbers count.

    Raises DatapathError, and StateError where it may not look.
    """
    try:
        return await _find(settings)
    except PermissionError as error:
        raise StateError(f"{error.filename}: {error.strerror}: run it as root") from error


async def _find(settings: DatapathSettings) -> list[Item]:
    found = [Item("cni", str(path)) for path in await asyncio.to_thread(place.placed, settings.state_dir)]
    found += [Item("proxy", f"{kind}, pid {pid}") for pid, kind in running_pids(settings.state_dir).items()]
    found += [Item("proxy", _of_pod(kind, pid)) for pid, kind in pids_of_pods(settings.state_dir).items()]
    found += [Item(one.kind, one.what) for one in await leftovers.find(settings)]
    return [*found, *(Item("state", str(path)) for path in _state_files(settings.state_dir))]


async def remove(settings: DatapathSettings, *, state: bool = False, force: bool = False) -> Cleaned:
    """Remove it; of the state directory only with `state`.

    Raises StateError or DatapathError when an agent runs, ran in another network namespace, or works here with another
    bpffs, unless `force`: one that runs works on without programs until it restarts, and in the other namespace
    filters, rules and sysctls stay. Again finds nothing.
    """
    if elsewhere(settings) and not force:
        raise StateError(
            f"the agent of {settings.bpffs} ran in another network namespace, where its filters and rules are: run it "
            "there (nsenter --net); --force removes what is not bound to that namespace, also when it is gone"
        )
    with contextlib.nullcontext() if force else _alone(settings):
        found = await find(settings)
        if (why := foreign(settings, found)) and not force:
            raise StateError(f"nothing was removed: {why}; --force removes it all the same")
        gone = {Item("cni", str(path)) for path in await asyncio.to_thread(place.take_out, settings.state_dir)}
        pids = running_pids(settings.state_dir)
        for kind in KINDS:
            if kind in pids.values():
                await end_kind(settings.state_dir, kind, GRACE)
        gone |= {Item("proxy", f"{kind}, pid {pid}") for pid, kind in pids.items()}
        pids = pids_of_pods(settings.state_dir)
        proxydirectory.withdraw(settings.state_dir)  # or their keepers would start them again
        await end_of_pods(settings.state_dir, GRACE)
        gone |= {Item("proxy", _of_pod(kind, pid)) for pid, kind in pids.items()}
        taken = await leftovers.take_out(await leftovers.find(settings), settings)
        gone |= {Item(one.kind, one.what) for one in taken}
        for path in _state_files(settings.state_dir) if state else ():
            path.unlink(missing_ok=True)
            gone.add(Item("state", str(path)))
    removed = tuple(item for item in found if item in gone)
    return Cleaned(tuple(found), removed, tuple(item for item in found if item not in gone))


@contextlib.contextmanager
def _alone(settings: DatapathSettings) -> Iterator[None]:
    """No agent runs meanwhile, neither with this state directory nor on this bpffs."""
    with contextlib.ExitStack() as stack:
        if settings.state_dir.is_dir():
            stack.enter_context(StateStore(settings.state_dir).lock())
        stack.enter_context(leftovers.held(settings.bpffs))
        yield


def _state_files(directory: Path) -> list[Path]:
    kept = [directory / name for name in _STATE if os.path.lexists(directory / name)]
    built = sorted(directory.glob(f"{build.NAME}-*"))
    return [*kept, *built, *proxydirectory.left(directory), *sorted((directory / "programs").glob("*.programs"))]


def _of_pod(kind: str, pid: int) -> str:
    return f"{kind} of a pod, pid {pid}"
