"""What runtimes do with a network configuration: libcni's AddNetworkList, CheckNetworkList and DelNetworkList.

Plugins run one after another in the node's network namespace, each with its own part of the list, the list's name and
version, and the result of the one before; the last result is kept, and is what CHECK and DEL begin with. DEL goes
backwards. Source: containernetworking/cni libcni/api.go, pkg/invoke.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.testbed import netns

SECONDS = 60.0


class PluginError(Exception):
    """What a plugin said instead of a result."""

    def __init__(self, plugin: str, status: int, stdout: str, stderr: str) -> None:
        self.plugin = plugin
        try:
            told = json.loads(stdout)
        except ValueError:
            told = {}
        self.code = int(told.get("code", -1))
        super().__init__(f"{plugin}: {status}: {told.get('msg', stdout)!r} {told.get('details', '')!r} {stderr!r}")


def arguments(namespace: str, name: str, uid: str = "", container: str = "") -> str:
    """CNI_ARGS as kubelets' runtimes write them."""
    told = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": container,
        "K8S_POD_UID": uid,
    }
    return ";".join(f"{key}={value}" for key, value in told.items() if value)


def environment(
    command: str, container: str, place: Path | None, interface: str, args: str, path: str
) -> dict[str, str]:
    """The variables of one call."""
    told = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": interface, "CNI_ARGS": args}
    return {**told, "CNI_NETNS": str(place) if place else "", "CNI_PATH": path}


class Runtime:
    """A runtime on one node: reads the first list of `conf_dir`, finds plugins in `bin_dirs`, keeps results."""

    def __init__(self, node: Path, conf_dir: Path, bin_dirs: Sequence[Path]) -> None:
        """`node`: its network namespace."""
        self.node = node
        self.conf_dir = conf_dir
        self.bin_dirs = bin_dirs
        self.results: dict[tuple[str, str], Any] = {}

    def conf(self) -> dict[str, Any]:
        """The list that counts: the first by name; a lone .conf as a list of one."""
        names = sorted(path for path in self.conf_dir.iterdir() if path.suffix in (".conf", ".conflist", ".json"))
        found: dict[str, Any] = json.loads(names[0].read_text())
        return found if "plugins" in found else {**found, "plugins": [found]}

    def add(self, container: str, place: Path, args: str, interface: str = "eth0") -> dict[str, Any]:
        """ADD for all plugins. Raises PluginError."""
        conf, result = self.conf(), None
        for plugin in conf["plugins"]:
            env = self.environment("ADD", container, place, interface, args)
            result = self.call(conf, plugin, env, result)
        assert isinstance(result, dict)
        self.results[container, interface] = result
        return result

    def check(self, container: str, place: Path, args: str, interface: str = "eth0") -> None:
        """CHECK for all plugins. Raises PluginError."""
        conf, result = self.conf(), self.results[container, interface]
        for plugin in conf["plugins"]:
            self.call(conf, plugin, self.environment("CHECK", container, place, interface, args), result)

    def delete(self, container: str, place: Path | None, args: str, interface: str = "eth0") -> None:
        """DEL for all plugins, backwards. Raises PluginError, and then those in front were not asked."""
        conf, result = self.conf(), self.results.get((container, interface))
        for plugin in reversed(conf["plugins"]):
            self.call(conf, plugin, self.environment("DEL", container, place, interface, args), result)
        self.results.pop((container, interface), None)

    def call(
        self, conf: Mapping[str, Any], plugin: Mapping[str, Any], env: Mapping[str, str], previous: Any
    ) -> dict[str, Any] | None:
        """One plugin once. Raises PluginError."""
        document = {**plugin, "name": conf["name"], "cniVersion": conf["cniVersion"]}
        if previous is not None:
            document["prevResult"] = previous
        done = self.run(self.find(plugin["type"]), env, json.dumps(document))
        if done.returncode:
            raise PluginError(plugin["type"], done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def run(self, binary: Path, env: Mapping[str, str], document: str) -> subprocess.CompletedProcess[str]:
        """Start a plugin on the node: a child is in the namespace of the thread that starts it."""
        whole = {"PATH": os.environ["PATH"], **env}

        def start() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [binary], input=document, env=whole, capture_output=True, text=True, timeout=SECONDS, check=False
            )

        return netns.call(self.node, start)

    def find(self, plugin: str) -> Path:
        """The binary of that name."""
        return next(path for path in (directory / plugin for directory in self.bin_dirs) if path.is_file())

    def environment(
        self, command: str, container: str, place: Path | None, interface: str, args: str
    ) -> dict[str, str]:
        """The variables of one call, with where plugins are found."""
        return environment(command, container, place, interface, args, ":".join(map(str, self.bin_dirs)))
