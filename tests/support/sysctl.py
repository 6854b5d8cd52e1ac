"""Settings of a network namespace, without the program sysctl: minimal systems don't have it."""

from __future__ import annotations

from pathlib import Path

from spliceway.agent.testbed import netns


def set_sysctls(namespace: Path, **values: int) -> None:
    """Set net.<name>, with `__` for each dot: `ipv4__ip_forward=1`. Raises TestbedError."""

    def work() -> None:
        for name, value in values.items():
            netns.sysctl(name.replace("__", "/"), value)

    netns.call(namespace, work)
