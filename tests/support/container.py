"""A container of the chart without an engine: the image's root, read-only, with the chart's mounts and capabilities.

What a runtime does is done by unshare, mount, pivot_root and setpriv. The places of a node are those of a virtual node.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.testbed.node import Node

_DEVICES = ("null", "zero", "full", "random", "urandom")
_PATH = "/opt/spliceway/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Container:
    """One container of a pod.

    `root`: the image's; `spec`: the pod's, with a container called `name`, of `containers` or `initContainers`;
    `places`: what hostPaths and other volumes are here, by the volume's name; `more`: further mounts, for tests.
    """

    def __init__(
        self,
        root: Path,
        node: Node,
        spec: Mapping[str, Any],
        name: str,
        *,
        places: Mapping[str, Path],
        more: Mapping[str, Path],
        environment: Mapping[str, str],
    ) -> None:
        self.node = node
        self._root = root
        containers = [*spec.get("initContainers", ()), *spec["containers"]]
        (self._container,) = [each for each in containers if each["name"] == name]
        volumes = {each["name"] for each in spec["volumes"]}
        mounts = self._container["volumeMounts"]
        assert {each["name"] for each in mounts} <= volumes <= places.keys()
        self._mounts = [(places[each["name"]], each["mountPath"], each) for each in mounts]
        self._mounts += [(path, target, {"readOnly": True}) for target, path in more.items()]
        self._environment = {"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **environment}
        self._top = node.info.directory / f"root-{name}"

    def spawn(self, arguments: Sequence[str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start it, with the chart's arguments or others; its pid is that of what runs in it."""
        argv = ["/usr/local/bin/spliceway-node", *(self._container["args"] if arguments is None else arguments)]
        self._top.mkdir(exist_ok=True)
        script = self.script(argv)
        return self.node.spawn_on_node(["unshare", "--mount", "--cgroup", "sh", "-euc", script], **options)

    def run(self, arguments: Sequence[str] | None = None, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        pipe = subprocess.PIPE
        with self.spawn(arguments, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(arguments or ()), process.returncode, out, err)

    def script(self, argv: Sequence[str]) -> str:
        """What makes the container, and becomes `argv` in it."""
        top = shlex.quote(str(self._top))
        lines = [
            "mount --make-rslave /",
            f"mount --bind {shlex.quote(str(self._root))} {top}",
            f"mount -t proc proc {top}/proc",
            f"mount --bind {top}/proc/sys {top}/proc/sys",
            f"mount -o remount,bind,ro {top}/proc/sys",
            f"mount -t sysfs -o ro sysfs {top}/sys",
            f"mount -t tmpfs -o mode=755 tmpfs {top}/dev",
            *(f": >{top}/dev/{name}; mount --bind /dev/{name} {top}/dev/{name}" for name in _DEVICES),
            f"ln -s /proc/self/fd {top}/dev/fd",
        ]
        for path, target, mount in self._mounts:
            here, there = shlex.quote(str(path)), f"{top}{shlex.quote(target)}"
            slave = mount.get("mountPropagation") == "HostToContainer"
            lines.append(f"mount --rbind {here} {there}")
            lines.append(f"mount --make-r{'slave' if slave else 'private'} {there}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {there}")
        context = self._container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        allowed = ",".join(f"+{name.lower()}" for name in context["capabilities"]["add"])
        if context["readOnlyRootFilesystem"]:
            lines.append(f"mount -o remount,bind,ro {top}")
        assignments = " ".join(shlex.quote(f"{name}={value}") for name, value in self._environment.items())
        lines += [
            f"cd {top}",
            "pivot_root . .",
            "umount -l .",
            f"exec env -i {assignments} setpriv --bounding-set=-all,{allowed} --inh-caps=-all -- {shlex.join(argv)}",
        ]
        return "\n".join(lines)
