"""The directory that the agent and the proxy's pods share: sockets, a lock, and whether a pod may run the proxy.

It is a part of the state directory, so that an agent in a container has both in one mount, where it can link files. A
proxy that the agent runs has its files in the state directory itself. When a node goes over from one to the other, the
lock and the handover socket get a second name where the other side looks for them: the same lock, the same listener.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from spliceway.agent.proxypod.listener import answers

#: Below the state directory.
NAME = "proxy"
#: The agent's, where keepers ask; and the file that says that the proxy of this node is a pod's.
DOOR, PERMIT = "door.sock", "of-a-pod"
ADMIN = {"embedded": "proxy-admin.sock", "envoy": "envoy-admin.sock"}
HANDOVER, STATE, XDS = "proxy-handover.sock", "proxy-state.bin", "xds.sock"
LOCK = f"{STATE}.lock"
#: All that is left there by agents, keepers and proxies.
_FILES = (DOOR, PERMIT, *ADMIN.values(), HANDOVER, STATE, LOCK, XDS)


class _Proxy(Protocol):
    @property
    def managed(self) -> bool: ...


class _Config(Protocol):
    @property
    def state_dir(self) -> Path: ...
    @property
    def proxy(self) -> _Proxy: ...


def shared(state_dir: Path) -> Path:
    """The directory of a node's proxies in pods."""
    return state_dir / NAME


def directory(config: _Config) -> Path:
    """Where agent and proxy find each other in this configuration."""
    return config.state_dir if config.proxy.managed else shared(config.state_dir)


def open_for_pods(state_dir: Path) -> Path:
    """Make the directory; what an agent's own proxy has can be taken over from there. Raises OSError."""
    made = shared(state_dir)
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    made.chmod(0o700)  # the kubelet makes it 0755, when the proxy's pod is there first
    if not (made / STATE).exists():
        link(state_dir / STATE, made / STATE)
    _pass_on(state_dir, made)
    # Not through what a pod may have put there: a link to the kill switch, say.
    fresh = made / f"{PERMIT}.new"
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.replace(made / PERMIT)
    return made


def close_for_pods(state_dir: Path) -> None:
    """Pods start no proxy from now on; what one of them has can be taken over by the agent's own. Raises OSError."""
    made = shared(state_dir)
    if made.is_dir():
        withdraw(state_dir)
        _pass_on(made, state_dir)


def _pass_on(before: Path, after: Path) -> None:
    """A proxy that runs with its files in `before`, and hands over, is found in `after`, too."""
    if answers(before / HANDOVER) and not answers(after / HANDOVER):
        for name in (LOCK, HANDOVER):
            link(before / name, after / name)


def withdraw(state_dir: Path) -> None:
    """Pods start no proxy from now on. Raises OSError."""
    (shared(state_dir) / PERMIT).unlink(missing_ok=True)
    (shared(state_dir) / DOOR).unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in one step; nothing where there is none. Raises OSError."""
    fresh = target.with_name(f"{target.name}.link")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except FileNotFoundError:
        return
    fresh.replace(target)
    fresh.unlink(missing_ok=True)  # rename(2) of two names of one file does nothing


def left(state_dir: Path) -> list[Path]:
    """Files that are there. The directory stays: a pod that stands by has it mounted, and would not see a new one."""
    return [path for name in _FILES if os.path.lexists(path := shared(state_dir) / name)]
