"""Where the pods' cgroup is, in hierarchies as kubelets make them: real cgroups, with real processes in them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spliceway.agent import podcgroup
from spliceway.agent.config import parse_config
from spliceway.agent.errors import AgentError
from spliceway.agent.nodecheck.texts import Mount, mounts

pytestmark = pytest.mark.kernel


@pytest.fixture
def top() -> Iterator[Path]:
    """A hierarchy's top: a cgroup of our own, as a container's cgroup namespace has it."""
    mounted = next(one.path for one in mounts(Path("/proc/self/mountinfo").read_text()) if one.kind == "cgroup2")
    path = mounted / f"spliceway-test-{os.getpid()}"
    path.mkdir()
    yield path
    for directory, _, _ in os.walk(path, topdown=False):
        Path(directory).rmdir()


@contextmanager
def process_in(cgroup: Path) -> Iterator[None]:
    cgroup.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(["sleep", "60"])
    try:
        (cgroup / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        process.kill()
        process.wait()


def mounted(path: Path, kind: str = "cgroup2") -> Mount:
    return Mount(path=path, root="/", kind=kind, device="0:26", shared=False, read_only=False)


@pytest.mark.parametrize(
    "name", ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"]
)
def test_each_drivers_name(top: Path, name: str) -> None:
    with process_in(top / name / "kubepods-besteffort.slice" / "cri-containerd-1.scope"):
        (top / "system.slice" / "kubelet.service").mkdir(parents=True)
        assert podcgroup.locate([mounted(top)]) == top / name
        assert podcgroup.locate([mounted(top), mounted(top)]) == top / name, "mounted twice"


def test_one_that_an_earlier_driver_left(top: Path) -> None:
    (top / "kubepods" / "burstable").mkdir(parents=True)
    with process_in(top / "kubepods.slice" / "kubepods-pod1.slice"):
        assert podcgroup.locate([mounted(top)]) == top / "kubepods.slice"


def test_two_that_both_have_pods(top: Path) -> None:
    with process_in(top / "kubepods" / "pod1"), process_in(top / "kubelet.slice" / "kubelet-kubepods.slice"):
        with pytest.raises(AgentError, match=r"cgroups\.pods: each of these may be the pods': .*; say which") as caught:
            podcgroup.locate([mounted(top)])
        assert str(top / "kubepods") in str(caught.value)


def test_pods_of_version_1_only(top: Path) -> None:
    unified = top / "unified"
    (unified / "system.slice").mkdir(parents=True)
    with process_in(top / "cpu" / "kubepods" / "pod1"):
        found = [mounted(top / "cpu", "cgroup"), mounted(unified)]
        with pytest.raises(AgentError, match=re.escape(f"{top}/cpu/kubepods, a hierarchy of version 1")):
            podcgroup.locate(found)
        (unified / "kubepods.slice").mkdir()  # the systemd driver makes it in both
        assert podcgroup.locate(found) == unified / "kubepods.slice"


def test_nothing_is_named_as_usual(top: Path) -> None:
    assert podcgroup.locate([mounted(top)]) == podcgroup.USUAL


def test_what_is_configured_stays() -> None:
    config = parse_config("cgroups: {pods: /cg/pods, proxy: /cg/proxy}\nsource: {directory: /d}", "agent.yaml")
    assert podcgroup.located(config) is config
    left_out = parse_config("source: {directory: /d}", "agent.yaml")
    assert podcgroup.located(left_out).pods_cgroup.is_absolute()
