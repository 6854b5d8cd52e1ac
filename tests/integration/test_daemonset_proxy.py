"""The proxy in pods of its own: it is rolled by itself, while the agent comes and goes, and verdicts stay right."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.proxyprocess import start_time
from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.errors import TestbedError
from support.proxypod import CAPABILITIES, PodSite, pod_node
from support.steered import dial
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]
NET_ADMIN = 1 << 12


@pytest.fixture
def embedded() -> Iterator[PodSite]:
    with pod_node("embedded", limits={"drain": 4}) as made:
        yield made


def test_it_rolls_without_a_lost_request_and_does_not_need_the_agent(embedded: PodSite) -> None:
    site = embedded.site
    first = embedded.pod()
    until(lambda: first.waits, told=lambda: first.log)
    assert not first.ready
    assert not first.proxy
    embedded.start_agent()
    pid = first.until_serving()
    embedded.assert_judges()
    found = embedded.status()
    assert (found["kind"], found["pid"], found["running"], found["problems"]) == ("embedded", pid, True, [])
    # In the node's cgroup with next to no rights; the keeper stays in the pod's.
    for process, cgroup in ((pid, site.node.info.cgroups.proxy), (first.keeper, first.cgroup)):
        assert str(process) in (cgroup / "cgroup.procs").read_text().split()
        said = Path(f"/proc/{process}/status").read_text()
        for name in ("CapEff", "CapBnd"):
            assert int(re.search(rf"^{name}:\t(\w+)$", said, flags=re.M)[1], 16) == NET_ADMIN  # type: ignore[index]

    with site.load(requests=100_000) as held, site.load(fresh=True, connections=3) as fresh:
        second = embedded.pod()
        newer = second.until_serving()
        until(lambda: embedded.status()["pid"] == newer)
        until(lambda: "another proxy has the turn" in first.log)
        assert first.ready, "it stands by: a rollout back must not wait for it"
        first.end()
        site.control.wait_in_force()

        # Without an agent nobody gets into the cgroup: the next pod waits, and the one that serves goes on.
        assert site.control.stop() == 0
        third = embedded.pod()
        until(lambda: third.waits)
        assert not third.ready
        assert second.proxy == newer
        embedded.start_agent()
        last = third.until_serving()
        until(lambda: embedded.status()["pid"] == last)
        second.end()
        held.flawless(100)
        fresh.flawless(100)
    embedded.assert_judges()
    assert embedded.status()["problems"] == []


def test_without_an_agent_it_starts_again_by_itself(embedded: PodSite) -> None:
    site = embedded.site
    pod = embedded.pod()
    embedded.start_agent()
    pid = pod.until_serving()
    embedded.assert_judges()
    assert site.control.stop() == 0
    os.kill(pid, signal.SIGKILL)
    until(lambda: pod.proxy not in (0, pid))
    embedded.assert_judges()
    # A second one could have the turn only by a handover, which it does not ask for, now that it was started before.
    embedded.start_agent()
    newer = pod.until_serving()
    until(lambda: embedded.status()["pid"] == newer)
    # And with it: the end is noticed, and what comes then is steered to.
    os.kill(newer, signal.SIGKILL)
    until(lambda: embedded.status()["pid"] not in (0, newer))
    embedded.assert_judges()
    assert embedded.status()["restarts"] == 1


def test_one_that_stood_by_takes_its_turn_when_the_newer_one_goes(embedded: PodSite) -> None:
    """A rollout that is rolled back half way, with no agent there."""
    site = embedded.site
    older = embedded.pod()
    embedded.start_agent()
    older.until_serving()
    newer = embedded.pod()
    newer.until_serving()
    until(lambda: older.proxy == 0, told=lambda: older.log)
    assert site.control.stop() == 0
    newer.end()
    older.until_serving()
    embedded.assert_judges()
    assert older.log.count("started the proxy") == 2


def test_from_the_agent_to_pods_and_back(embedded: PodSite) -> None:
    site = embedded.site
    embedded.start_agent(managed=True)
    own = embedded.status()["pid"]
    with site.load(requests=100_000) as held, site.load(fresh=True, connections=3) as fresh:
        pod = embedded.pod()
        until(lambda: pod.waits)
        assert site.control.stop() == 0
        embedded.start_agent()
        pid = pod.until_serving()
        until(lambda: embedded.status()["pid"] == pid)
        until(lambda: start_time(own) is None)
        site.control.wait_in_force()
        assert site.control.stop() == 0
        embedded.start_agent(managed=True)
        until(lambda: "does not leave the proxy to pods" in pod.log, told=lambda: pod.log)
        assert pod.ready
        assert start_time(pid) is None
        held.flawless(100)
        fresh.flawless(100)
    assert embedded.status()["problems"] == []
    embedded.assert_judges()


def test_sockets_that_the_kernel_has_not_seen_are_given_up(embedded: PodSite) -> None:
    """The maps are new, the proxy is older: nothing would ever be steered to it."""
    site = embedded.site
    pod = embedded.pod()
    embedded.start_agent()
    pid = pod.until_serving()
    embedded.assert_judges()
    site.control.kill()
    shutil.rmtree(site.node.info.bpffs / "spliceway")
    embedded.start_agent()
    until(lambda: pod.proxy not in (0, pid), told=lambda: pod.log)
    embedded.assert_judges()
    assert embedded.status()["problems"] == []


def test_a_long_connection_goes_on_for_as_long_as_is_said(embedded: PodSite) -> None:
    site = embedded.site
    older = embedded.pod()
    embedded.start_agent()
    older.until_serving()
    for version in (4, 6):
        with dial(site.frontend.netns, (str(site.api.address(version)), 80), version=version) as long:
            long.settimeout(20)
            # An answer that can't come to its end, since the request does not.
            long.sendall(b"POST /articles/1/echo HTTP/1.1\r\nHost: api\r\nContent-Length: 1000000\r\n\r\n")
            newer = embedded.pod()
            newer.until_serving()
            older.terminate()
            taken = _sends_for(long)
            assert 3 < taken < 15, taken
            older.wait()
            older = newer
    embedded.assert_judges()


@pytest.mark.parametrize("lacks", CAPABILITIES)
def test_without_this_capability_nothing_is_served(embedded: PodSite, lacks: str) -> None:
    """And with those that the chart gives all is: the other tests."""
    kept = [each for each in CAPABILITIES if each != lacks]
    pod = embedded.pod(capabilities=kept)
    with pytest.raises(TestbedError, match="no policy is in force"):
        start_agent(embedded.site.node, embedded.overrides, timeout=20)
    assert "Operation not permitted" in pod.log


def _sends_for(sock: socket.socket) -> float:
    """How long bytes can be sent there until the connection is reset, in seconds."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() - began < 20:
            sock.sendall(bytes(1000))
            time.sleep(0.05)
    return time.monotonic() - began


def test_nothing_is_left_after_cleanup(embedded: PodSite) -> None:
    site = embedded.site
    pod = embedded.pod()
    embedded.start_agent()
    pid = pod.until_serving()
    assert site.control.stop() == 0
    done = site.node.run_on_node(
        [*_SPLICEWAY, "cleanup", "--config", str(site.control.config), "--state", "--yes"], timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"embedded of a pod, pid {pid}" in done.stdout
    until(lambda: start_time(pid) is None)
    assert not pod.proxy, "its keeper started it again"
    pod.end()
    assert sorted(path.name for path in site.node.info.state.rglob("*")) == ["agent.lock", "proxy"]
    assert not (site.node.info.bpffs / "spliceway").exists()


_SPLICEWAY = (sys.executable, "-m", "spliceway.agent")
