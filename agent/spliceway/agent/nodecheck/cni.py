"""The node's CNI side, where pods are to be wired by the plugin (`cni.enabled`): chain, directories, binary."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from spliceway.agent.cni import build, conflist
from spliceway.agent.configsections import CniConfig
from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn

#: Seconds that the plugin may take to tell its version.
_PATIENCE = 5.0


def cni(target: Target) -> Iterator[Check]:
    """Chain, then plugin."""
    config = target.cni
    if config is None or not config.enabled:
        yield skipped("cni", "cni.enabled is not set")
        return
    yield _chain(config)
    yield _plugin(config)


def _chain(config: CniConfig) -> Check:
    directory = config.conf_dir
    if not directory.is_dir():
        return warn(
            "cni", f"cni.confDir: {directory} is not there", "install the base CNI first, or correct cni.confDir"
        )
    if not os.access(directory, os.W_OK | os.X_OK) or _read_only(directory):
        return fail("cni", f"cni.confDir: {directory} can't be written", "mount it for writing")
    problem = ""
    for name in conflist.candidates(path.name for path in directory.iterdir()):
        try:
            found = conflist.parse((directory / name).read_text())
        except (OSError, UnicodeDecodeError, conflist.BadConfError) as error:
            problem = problem or f"{name} {error}"
            continue
        types = [each["type"] for each in found.get("plugins", [found])]
        return ok("cni", f"cni.confDir: {directory / name}: {', '.join(types)}")
    found_none = problem or f"no network configuration is in {directory}"
    return warn(
        "cni", f"cni.confDir: {found_none}", "install the base CNI first: the plugin goes to the end of its chain"
    )


def _plugin(config: CniConfig) -> Check:
    directory = config.bin_dir
    nearest = next(path for path in (directory, *directory.parents) if path.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK) or _read_only(nearest):
        return fail("cni-plugin", f"cni.binDir: {directory} can't be written", "mount it for writing")
    if os.statvfs(nearest).f_flag & os.ST_NOEXEC:
        return fail("cni-plugin", f"cni.binDir: {directory} is mounted noexec", "no runtime can start a plugin there")
    path = directory / build.NAME
    if not path.is_file():
        return info("cni-plugin", f"{path} is not there yet: the agent puts it there")
    told = _version(path)
    if told == build.version():
        return ok("cni-plugin", f"{path}, version {told}")
    return info("cni-plugin", f"{path}, version {told or 'unknown'}: the agent replaces it by {build.version()}")


def _read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _version(path: Path) -> str:
    """What the plugin says of itself; empty where it says nothing."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().rpartition(" ")[2] if not done.returncode else ""
