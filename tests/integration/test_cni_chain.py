"""Pods by a real chain (bridge, host-local, portmap, ours): policy is in force before their first packet."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from support.cninode import CniNode, CniPod, bridge, cni_node
from support.libcni import PluginError
from support.waiting import until

pytestmark = pytest.mark.kernel

#: `bad` may dial nobody, `good` anybody; into `guarded` comes `good` alone.
POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad, namespace: default}
spec: {podSelector: {matchLabels: {app: bad}}, policyTypes: [Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [good, bad]}]}}]}]
"""
ROUNDS = int(os.environ.get("SPLICEWAY_CNI_ROUNDS", "25"))
TRY_AGAIN = 11
SERVER: list[CniPod] = []
#: The bridge's, and where a process of the node listens.
GATEWAYS, NODE_PORT = ("10.240.1.129", "fd00:240:1::1:1"), 8080
ANY: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 4096}


@pytest.fixture(scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CniNode]:
    with cni_node(tmp_path_factory.mktemp("cni")) as site:
        site.policy("all", POLICIES)
        site.start()
        SERVER[:] = [site.serve("server", {"app": "server"})]
        with netns.call(site.node.info.netns, lambda: socket.create_server(("::", NODE_PORT), **ANY)):
            yield site


@pytest.fixture
def site(_site: CniNode) -> CniNode:
    """An agent that runs, and the first chain."""
    if _site.agent is None or _site.agent.process.poll() is not None:
        _site.start()
    return _site


def targets(_site: CniNode) -> list[str]:
    """Addresses of the pod that lets in whom it knows."""
    return [SERVER[0].address(version) for version in (4, 6)]


def everybody(site: CniNode) -> list[tuple[str, int]]:
    """And those of the node, which lets in all: what keeps a pod out there is its own policy."""
    return [*((address, 80) for address in targets(site)), *((address, NODE_PORT) for address in GATEWAYS)]


def test_the_result_is_that_of_the_plugin_before(site: CniNode) -> None:
    site.describe("plain", {"app": "good"})
    pod = site.sandbox("plain")
    conf, before = site.runtime.conf(), {}
    args = pod.args
    for plugin in conf["plugins"]:
        env = site.runtime.environment("ADD", pod.container, pod.netns, "eth0", args)
        result = site.runtime.call(conf, plugin, env, before or None)
        if plugin["type"] == "spliceway-cni":
            assert result == before
        assert result
        before = result
    site.runtime.results[pod.container, "eth0"] = before
    pod.check()
    pod.delete()


def test_a_pod_that_dials_at_once_is_judged_by_its_policy(site: CniNode) -> None:
    """Both families, many times: the first packet of a pod that may dial nobody, and of one that may."""
    leaked, denied = [], []
    for turn in range(ROUNDS):
        for label, wrong in (("bad", leaked), ("good", denied)):
            name = f"{label}-{turn}"
            site.describe(name, {"app": label})
            pod = site.sandbox(name)
            pod.add()
            for address, port in everybody(site):
                seconds = 0.05 if label == "bad" else 2.0
                if pod.dials(address, port, seconds) is (label == "bad"):
                    wrong.append((name, address))
            pod.delete()
            pod.gone()
            site.forget(name)
    assert not leaked, f"{len(leaked)} of {4 * ROUNDS} got out: {leaked[:4]}"
    assert not denied, f"{len(denied)} of {4 * ROUNDS} were kept: {denied[:4]}"


def test_without_the_plugin_the_first_packet_is_judged_by_nobody(site: CniNode) -> None:
    """What the test above would see: the same pod, by the same chain but for its last plugin, reaches the node."""
    site.describe("early", {"app": "bad"})
    pod = site.sandbox("early")
    conf, result = site.runtime.conf(), None
    for plugin in conf["plugins"][:-1]:
        env = site.runtime.environment("ADD", pod.container, pod.netns, "eth0", pod.args)
        result = site.runtime.call(conf, plugin, env, result)
    assert result is not None
    pod.result = site.runtime.results[pod.container, "eth0"] = result
    assert all(pod.dials(address, NODE_PORT, 2.0) for address in GATEWAYS)
    pod.delete()
    pod.gone()
    site.forget("early")


def test_check_and_delete_say_what_is(site: CniNode) -> None:
    site.describe("web", {"app": "good"})
    pod = site.sandbox("web")
    pod.add()
    pod.check()
    four, six = pod.address(4), pod.address(6)
    assert any("app=good" in label for label in site.identity(four)), site.identity(four)
    assert any("app=good" in label for label in site.identity(six))
    assert site.status()["wired"] == len(SERVER) + 1
    pod.delete()
    assert not site.identity(four)
    assert not site.identity(six)
    pod.delete()  # again: nothing is there, and that is no error
    conf = site.runtime.conf()
    env = site.runtime.environment("CHECK", pod.container, pod.netns, "eth0", pod.args)
    with pytest.raises(PluginError) as caught:  # the bridge has taken the interface away by now
        site.runtime.call(conf, conf["plugins"][-1], env, pod.result)
    assert caught.value.code in (4, 102)
    assert site.status()["wired"] == len(SERVER)


def test_a_pod_that_the_source_does_not_know_does_not_start_until_it_does(site: CniNode) -> None:
    pod = site.sandbox("late")
    timer = threading.Timer(1.0, site.describe, ("late", {"app": "bad"}))
    timer.start()
    began = time.monotonic()
    pod.add()
    assert time.monotonic() - began > 0.9
    assert not pod.dials(targets(site)[0], seconds=0.1)
    pod.delete()
    timer.join()
    site.forget("late")
    until(lambda: "default/late" not in site.agent.client.get("names")["pods"])  # type: ignore[union-attr]
    with pytest.raises(PluginError) as caught:
        pod.add()
    assert caught.value.code == TRY_AGAIN
    pod.delete()


def test_an_address_is_the_next_pods_alone(site: CniNode) -> None:
    """One address for all: each has the identity of its own labels at once, though the objects before it are there."""
    state = site.conf_dir.parent / "ipam-one"
    one = [[{"subnet": "10.240.1.128/25", "rangeStart": "10.240.1.200", "rangeEnd": "10.240.1.200"}]]
    one.append([{"subnet": "fd00:240:1::1:0/112", "rangeStart": "fd00:240:1::1:c8", "rangeEnd": "fd00:240:1::1:c8"}])
    site.write_conf(bridge(state, ranges=one))
    site.wait_chained()
    try:
        for turn in range(6):
            label = ("good", "bad", "other")[turn % 3]
            site.describe(f"re-{turn}", {"app": label})
            pod = site.sandbox(f"re-{turn}")
            pod.add()
            assert pod.address() == "10.240.1.200"
            for version, address in zip((4, 6), targets(site), strict=True):
                assert any(f"app={label}" in text for text in site.identity(pod.address(version)))
                assert pod.dials(address, seconds=0.2 if label != "good" else 2.0) is (label == "good")
            # As the kubelet reports it later, and keeps it when the pod is long gone.
            site.describe(f"re-{turn}", {"app": label}, podIPs=[{"ip": pod.address(v)} for v in (4, 6)])
            pod.delete()
            assert not site.identity("10.240.1.200")
            pod.gone()
    finally:
        for turn in range(6):
            site.forget(f"re-{turn}")
        site.write_conf(bridge(site.conf_dir.parent / "ipam"))
        site.wait_chained()


def test_an_agent_that_is_stopped_or_gone_lets_no_pod_start(site: CniNode) -> None:
    assert site.agent is not None
    site.describe("slow", {"app": "bad"})
    first, second = site.sandbox("slow"), site.sandbox("slow")
    site.agent.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(PluginError) as caught:
            first.add()
        assert caught.value.code == TRY_AGAIN
    finally:
        site.agent.process.send_signal(signal.SIGCONT)
    first.delete()
    second.add()
    assert not second.dials(targets(site)[0], seconds=0.1)
    site.agent.stop()
    for act in (first.add, second.check, second.delete):
        with pytest.raises(PluginError) as caught:
            act()
        assert caught.value.code == TRY_AGAIN
    assert not second.dials(targets(site)[0], seconds=0.1)  # what was in force stays
    site.start()
    second.check()  # it knows its pods again
    assert not second.dials(targets(site)[0], seconds=0.1)
    second.delete()
    first.delete()
    site.forget("slow")


def test_a_pod_that_begins_while_the_agent_restarts_waits_for_it(site: CniNode) -> None:
    assert site.agent is not None
    site.describe("waits", {"app": "good"})
    pod = site.sandbox("waits")
    site.agent.kill()
    thread = threading.Thread(target=pod.add)
    thread.start()
    site.start()
    thread.join()
    assert pod.dials(targets(site)[0], seconds=2.0)
    pod.check()
    pod.delete()
    site.forget("waits")


def test_exempt_pods_start_without_an_agent_and_are_found_when_there_is_one(site: CniNode) -> None:
    assert site.agent is not None
    site.agent.stop()
    site.describe("dns", {"app": "bad"}, namespace="kube-system")
    pod = site.sandbox("dns", namespace="kube-system")
    pod.add()
    # As the kubelet reports it: by then the pod runs.
    site.describe(
        "dns", {"app": "bad"}, namespace="kube-system", podIPs=[{"ip": pod.address(version)} for version in (4, 6)]
    )
    site.policy("dns", POLICIES.split("---")[0].replace("default", "kube-system"))
    site.start()
    assert site.status()["found"] == 1
    assert not site.status()["without"]
    for address in targets(site):
        assert not pod.dials(address, seconds=0.1)
    assert site.identity(pod.address())
    pod.delete()
    assert not site.identity(pod.address())
    site.node.remove_policy("dns")
    site.forget("dns", "kube-system")


def test_a_sandbox_that_is_made_anew_is_not_taken_back_by_the_old_ones_end(site: CniNode) -> None:
    site.describe("again", {"app": "bad"})
    old, new = site.sandbox("again"), site.sandbox("again")
    old.add()
    new.add()
    old.delete()
    new.check()
    assert not new.dials(targets(site)[0], seconds=0.1)
    new.delete()
    site.forget("again")


def test_a_namespace_that_vanishes_without_a_word_leaves_nothing(site: CniNode) -> None:
    site.describe("lost", {"app": "good"})
    pod = site.sandbox("lost")
    pod.add()
    address = pod.address()
    pod.gone()
    until(lambda: not site.identity(address), 20.0)
    pod.delete()
    site.forget("lost")


def test_without_another_end_on_the_node_a_pod_does_not_start(site: CniNode) -> None:
    """A namespace with a bridge for eth0: nothing of it passes a device of the node."""
    site.describe("odd", {"app": "good"})
    pod = site.sandbox("odd")
    conf = site.runtime.conf()
    ours = conf["plugins"][-1]
    result = {
        "cniVersion": conf["cniVersion"],
        "interfaces": [{"name": "eth0", "sandbox": str(pod.netns)}],
        "ips": [{"address": "10.240.1.210/25", "interface": 0}],
    }

    made = ["ip", "link", "add", "eth0", "type", "bridge"]
    netns.call(pod.netns, lambda: subprocess.run(made, check=True, timeout=10))
    env = site.runtime.environment("ADD", pod.container, pod.netns, "eth0", pod.args)
    with pytest.raises(PluginError) as caught:
        site.runtime.call(conf, ours, env, result)
    assert caught.value.code == 100
    site.forget("odd")


def test_many_at_once(site: CniNode) -> None:
    pods = []
    for number in range(12):
        site.describe(f"many-{number}", {"app": "bad" if number % 2 else "good"})
        pods.append(site.sandbox(f"many-{number}"))
    failed: list[BaseException] = []

    def begin(pod: object, number: int) -> None:
        try:
            pods[number].add()
            wrong = pods[number].dials(targets(site)[0], seconds=0.2 if number % 2 else 2.0) is bool(number % 2)
            assert not wrong, f"many-{number}"
            pods[number].delete()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(pod, number)) for number, pod in enumerate(pods)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[:2]
    for number in range(12):
        site.forget(f"many-{number}")
    assert site.status()["wired"] == len(SERVER)


def test_nonsense_at_the_socket_harms_nobody(site: CniNode) -> None:
    assert site.socket.stat().st_mode & 0o777 == 0o600
    chance, opened = random.Random(3), []
    for size in (0, 1, 15, 16, 17, 100, 5000):
        for head in (b"", b"SPLCNI1\n", b"SPLCNI1\n" + b"\xff" * 8, b"SPLCNI1\n" + b"\x10\0\0\0\x10\0\0\0"):
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(site.socket))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(head + chance.randbytes(size))
            opened.append(one)  # and nobody hangs up
    site.runtime.call(*asks(site, "STATUS"), None)
    site.describe("calm", {"app": "good"})
    pod = site.sandbox("calm")
    pod.add()
    pod.delete()
    site.forget("calm")
    for one in opened:
        one.close()


def test_garbage_collection_takes_back_what_is_not_valid_any_more(site: CniNode) -> None:
    site.describe("kept", {"app": "good"})
    site.describe("stale", {"app": "good"})
    kept, stale = site.sandbox("kept"), site.sandbox("stale")
    kept.add()
    stale.add()
    conf, plugin, env = asks(site, "GC")
    valid = [{"containerID": one.container, "ifname": "eth0"} for one in (*SERVER, kept)]
    site.runtime.call(conf, {**plugin, "cni.dev/valid-attachments": valid}, env, None)
    assert site.status()["wired"] == len(SERVER) + 1
    assert site.identity(kept.address())
    assert not site.identity(stale.address())
    site.runtime.call(conf, plugin, env, None)  # without a list nothing is taken back
    kept.check()
    kept.delete()
    stale.delete()
    site.forget("kept")
    site.forget("stale")


def asks(site: CniNode, command: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """What a runtime asks our plugin about no pod in particular."""
    conf = site.runtime.conf()
    return conf, conf["plugins"][-1], {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}


def test_cleanup_takes_the_plugin_out_of_the_chain(site: CniNode) -> None:
    assert site.agent is not None
    site.agent.stop()
    before = site.runtime.conf()
    done = site.node.run_on_node(
        [sys.executable, "-m", "spliceway.agent", "cleanup", "--config", str(site.agent.config), "--yes"], timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Removed cni" in done.stdout
    after = site.runtime.conf()
    assert after["plugins"] == before["plugins"][:-1]
