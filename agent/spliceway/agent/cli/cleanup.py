"""What `spliceway cleanup` says: checked before, looked at before and after, told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from spliceway.agent.config import Config
from spliceway.agent.errors import AgentError


def check_cgroups(config: Config) -> None:
    """Raise AgentError, in the words of the configuration, when a cgroup is one that no agent would have taken."""
    for field, path in (("cgroups.pods", config.cgroups.pods), ("cgroups.proxy", config.cgroups.proxy)):
        if path == config.cgroups.proxy and not path.exists() and _is_cgroup2(path.parent):
            continue  # an agent makes it
        if not _is_cgroup2(path):
            raise AgentError(f"{field}: {path} is not a cgroup2 directory")
        # Only the root of the hierarchy has no `cgroup.type`.
        if not (path / "cgroup.type").exists():
            raise AgentError(f"{field}: {path} is the root cgroup, which no agent uses")


def left(config: Config) -> Iterator[str]:
    """What an agent with this configuration has left, one phrase each."""
    from spliceway.agent.proxysupervisor import running_pids
    from spliceway.bpf.datapath import pin_root

    if (pins := pin_root(config.datapath_settings())).exists():
        yield f"programs, maps, rules and routes ({pins})"
    for pid, kind in running_pids(config.state_dir).items():
        yield f"the proxy ({kind}, pid {pid})"
    if (state := config.state_dir / "state.json").exists():
        yield f"state ({state})"


def lock_file(config: Config) -> Path:
    """The file that an agent holds as long as it runs."""
    return config.state_dir / "agent.lock"


def _is_cgroup2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists() and (path / "cgroup.procs").exists()
