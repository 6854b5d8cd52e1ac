"""Runs end completely: after a crash, when kept, beside others, and through the CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from spliceway.agent.testbed import mounts, netns, runs
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest, server_manifest
from support.ownmounts import in_own_mounts

pytestmark = pytest.mark.kernel

OWNER = """
import json, signal, sys
from spliceway.agent.testbed.testbed import Testbed
testbed = Testbed.up(json.load(sys.stdin))
testbed.spawn("web", ["sleep", "1000"])
print(testbed.run_id, testbed.pod("web").cgroup, flush=True)
signal.pause()
"""


@contextmanager
def owner(code: str = OWNER) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A process that owns a testbed with a server and another program, as (process, run, cgroup of the pod)."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdin
            assert process.stdout
            json.dump([server_manifest("web")], process.stdin)
            process.stdin.close()
            run_id, cgroup = process.stdout.readline().split()
            yield process, run_id, Path(cgroup)
        finally:
            process.kill()


def left_of(run_id: str) -> list[str]:
    """Everything that there is of a run."""
    found = [str(path) for path in netns.DIRECTORY.glob(f"{run_id}-*")] if netns.DIRECTORY.is_dir() else []
    found += [str(mount.path) for mount in mounts.mounts() if run_id in str(mount.path)]
    found += [
        str(mount.path) for mount in mounts.mounts() if mount.kind == "cgroup2" and (mount.path / name(run_id)).exists()
    ]
    return found + [str(path) for path in [runs.DIRECTORY / run_id] if path.exists()]


def name(run_id: str) -> str:
    return f"spliceway-{run_id}"


def test_what_a_killed_owner_left_is_swept_by_the_next_run() -> None:
    with owner() as (process, run_id, cgroup):
        programs = [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
        assert programs
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left_of(run_id)
        assert set(programs) <= {int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()}
        with Testbed.up([pod_manifest("other")]):
            assert not left_of(run_id)
            assert not cgroup.exists()


def test_a_run_whose_owner_lives_is_not_swept() -> None:
    with owner() as (process, run_id, cgroup):
        with Testbed.up([pod_manifest("other")]):
            pass
        assert run_id not in runs.sweep()
        assert (cgroup / "cgroup.procs").read_text().split()
        assert process.poll() is None
    runs.sweep()
    assert not left_of(run_id)


def test_an_interrupted_owner_takes_its_testbed_down() -> None:
    # A shell starts background jobs with SIGINT ignored; Python only makes it KeyboardInterrupt when it is not.
    interruptible = "\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = OWNER.replace("signal.pause()", f"{interruptible}with testbed:\n    print(flush=True)\n    signal.pause()\n")
    with owner(code) as (process, run_id, _):
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert not left_of(run_id)


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "node1", "testbed.json"]])
def test_a_half_made_or_half_removed_run_is_swept(left: list[str]) -> None:
    run_id = f"sw{os.getpid():06x}"
    directory = runs.DIRECTORY / run_id
    directory.mkdir(parents=True)
    for each in left:
        (directory / each).touch()
    netns.DIRECTORY.mkdir(exist_ok=True)
    (netns.DIRECTORY / f"{run_id}-node1").touch()  # never mounted on
    assert run_id in runs.sweep()
    assert not left_of(run_id)


def test_only_names_of_runs_are_ever_taken_down() -> None:
    for name_ in ("", "a", "..", "sw12345", "sw1234567", "*"):
        with pytest.raises(TestbedError, match="is not the id of a run"):
            runs.tear_down(name_)


def test_a_machine_without_a_cgroup2_mount_gets_one_for_the_run() -> None:
    code = """
no_cgroup2()
assert cgroups.mounted(not_below=runs.DIRECTORY) is None
with Testbed.up([pod_manifest("web")]) as testbed:
    pod = testbed.pod("web")
    assert pod.cgroup.is_relative_to(testbed.directory / "cgroup2"), pod.cgroup
    print(testbed.run_id, pod.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()[-1])
assert not testbed.directory.exists()
"""
    run_id, cgroup = in_own_mounts(code).split()
    assert cgroup.endswith(f"/spliceway-{run_id}/node1/pods/default_web")
    assert not left_of(run_id)


def test_a_run_whose_cgroup2_mount_has_gone_is_taken_down_all_the_same() -> None:
    code = """
with Testbed.up([pod_manifest("web", command=["sleep", "1000"])]) as testbed:
    print(testbed.run_id)
    no_cgroup2()
assert not testbed.directory.exists()
"""
    run_id = in_own_mounts(code).strip()
    assert not left_of(run_id)


def test_the_cli_keeps_enters_lists_and_ends_a_testbed(tmp_path: Path) -> None:
    manifest = tmp_path / "pods.yaml"
    pods = [server_manifest("web", {"role": "web"}), pod_manifest("client", namespace="shop")]
    manifest.write_text(yaml.safe_dump_all(pods))
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "web.yaml").write_text("kind: CiliumNetworkPolicy\n")

    up = cli("up", str(manifest), "--policies", str(policies), "--no-agent")
    assert up.returncode == 0, up.stderr
    run_id = up.stdout.splitlines()[1].split()[0]
    try:
        runs.sweep()
        assert (runs.DIRECTORY / run_id / "node1/manifests/policies/web.yaml").exists()
        listed = {run["run"]: run for run in json.loads(cli("status", "-o", "json").stdout)}
        assert listed[run_id]["state"] == "kept"
        assert [pod["name"] for pod in listed[run_id]["pods"]] == ["default/web", "shop/client"]
        address = listed[run_id]["pods"][0]["addresses"][0]
        assert run_id in cli("status").stdout

        answer = cli("exec", "--run", run_id, "client", "--", "curl", "-s", f"http://{address}/x?y=1")
        assert answer.stdout == "web GET /x?y=1\n"
        assert cli("exec", "--run", run_id, "shop/client", "sh", "-c", "exit 3").returncode == 3
        routes = cli("exec", "--run", run_id, "node/node1", "--", "ip", "-4", "route").stdout
        assert "blackhole 10.240.0.0/12" in routes
        unknown = cli("exec", "--run", run_id, "nobody", "--", "true")
        assert unknown.returncode == 1
        assert "pod nobody: there are default/web, shop/client" in unknown.stderr
    finally:
        down = cli("down", run_id)
    assert down.stdout == f"{run_id} is down.\n"
    assert not left_of(run_id)
    assert cli("down", run_id).returncode == 1


def test_the_cli_does_not_end_a_testbed_that_is_in_use(demo_testbed: Testbed) -> None:
    refused = cli("down", demo_testbed.run_id)
    assert refused.returncode == 1
    assert "belongs to a process that is still running" in refused.stderr


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spliceway.agent", "testbed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_two_may_take_down_the_same_run() -> None:
    """The owner's lock goes with the directory: from then on a sweep of somebody else's may be at it as well."""
    for number in range(10):
        path = runs.DIRECTORY / f"sw{number:06x}"
        for name in ("a", "b", "c"):
            (path / name).mkdir(parents=True)
            for each in range(200):
                (path / name / str(each)).touch()
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(runs.tear_down, path.name) for _ in range(2)]:
                done.result()
        assert not path.exists()
