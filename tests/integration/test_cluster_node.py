"""One node of a cluster, whole: API server (a double), agent, CNI chain and pods, as a kubelet brings them together."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from spliceway.agent.errors import ClientError
from spliceway.agent.testbed import netns
from support.clusternode import MIRROR, STATIC, Asking, ClusterNode, ask, cluster_node
from support.cninode import CniPod, bridge
from support.libcni import PluginError
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: `api` lets in `good` alone, and that for articles alone; `bad` may dial nobody.
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: good}}]
      toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/articles/.*"}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bad, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: bad}}
  egress: [{toEndpoints: [{matchLabels: {app: nobody}}]}]
"""
#: Lets nobody in at the same pods.
ISOLATE = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate, namespace: default}
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: []}
"""
EVERY_KIND_BUT_ONE = [
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "ClusterNetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
]
ROUNDS = int(os.environ.get("SPLICEWAY_CNI_ROUNDS", "2"))
VERSIONS = (4, 6)
ARTICLE, PRIVATE = "/articles/1", "/private"
KEY = "spliceway.io/disabled"
TRY_AGAIN = 11
#: The source tries again after 10 seconds at most.
LIMIT = 40.0
#: The bridge's, and where a process of the node listens.
GATEWAYS, NODE_PORT = {4: "10.240.1.129", 6: "fd00:240:1::1:1"}, 8080
ANY: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 4096}
#: How long it is waited for an answer that must not come.
IN_VAIN = 0.15
PODS: dict[str, CniPod] = {}


@pytest.fixture(scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNode]:
    with cluster_node(tmp_path_factory.mktemp("cluster"), timeout=3) as site:
        site.policy("all", POLICIES)
        site.start()
        PODS.update({name: site.pod(name, {"app": name}) for name in ("api", "good", "bad", "other")})
        site.listen(PODS["api"])
        for pod in PODS.values():
            site.report(pod)
        with netns.call(site.node.info.netns, lambda: socket.create_server(("::", NODE_PORT), **ANY)):
            enforced()
            yield site


@pytest.fixture
def site(_site: ClusterNode) -> Iterator[ClusterNode]:
    """An agent that runs, and an API server that answers; afterwards all is judged as before."""
    if _site.agent is None or _site.agent.process.poll() is not None:
        _site.start()
    yield _site
    enforced()


def judged(pod: CniPod, app: str, server: CniPod | None = None) -> None:
    """What it asks, beginning with this very packet, is judged as is right for a pod with that label."""
    right = {"good": [200, 403, True], "bad": [0, 0, False], "other": [0, 0, True]}[app]
    seconds = [2.0 if one else IN_VAIN for one in right]
    with ThreadPoolExecutor(4) as pool:
        asked = {
            version: [
                pool.submit(ask, pod, (server or PODS["api"]).address(version), path, seconds=limit)
                for path, limit in zip((ARTICLE, PRIVATE), seconds, strict=False)
            ]
            for version in VERSIONS
        }
        found = {version: [one.result() for one in both] for version, both in asked.items()}
        # Not before these: what it dials shows its neighbours where it is.
        dialled = {version: pool.submit(pod.dials, GATEWAYS[version], NODE_PORT, seconds[2]) for version in VERSIONS}
        told = {version: [*found[version], dialled[version].result()] for version in VERSIONS}
    assert told == dict.fromkeys(VERSIONS, right), (pod.name, app)


def enforced() -> None:
    """For the pods that are there all the time."""
    apps = ("good", "bad", "other")
    with ThreadPoolExecutor(len(apps)) as pool:
        list(pool.map(lambda app: judged(PODS[app], app), apps))


def known_as(site: ClusterNode, pod: CniPod, app: str) -> None:
    """The kernel takes the addresses of a pod for those of one with that label."""
    for version in VERSIONS:
        labels = site.identity(pod.address(version))
        assert f"k8s:app={app}" in labels, (pod.name, version, labels)
        assert len([one for one in labels if one.startswith("k8s:app=")]) == 1, labels


def ended(site: ClusterNode, *pods: CniPod) -> None:
    """Sandboxes and objects go."""
    for pod in pods:
        pod.delete()
        pod.gone()
        if site.api.get("v1", "Pod", f"{pod.namespace}/{pod.name}") is not None:
            site.forget(pod.name, pod.namespace)


@contextlib.contextmanager
def one_address(site: ClusterNode) -> Iterator[None]:
    """All pods get the same address, one after another."""
    state = site.conf_dir.parent / "ipam-one"
    ends = (("10.240.1.128/25", "10.240.1.200"), ("fd00:240:1::1:0/112", "fd00:240:1::1:c8"))
    site.write_conf(bridge(state, ranges=[[{"subnet": net, "rangeStart": one, "rangeEnd": one}] for net, one in ends]))
    site.wait_chained()
    try:
        yield
    finally:
        site.write_conf(bridge(site.conf_dir.parent / "ipam"))
        site.wait_chained()


def refused(act: Callable[[], object]) -> PluginError:
    """«Try again later»."""
    with pytest.raises(PluginError) as caught:
        act()
    assert caught.value.code == TRY_AGAIN, caught.value
    return caught.value


def added_at_last(pod: CniPod) -> None:
    """As a kubelet does: it tries again until it works."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            pod.add()
        except PluginError as error:
            if error.code != TRY_AGAIN or time.monotonic() > deadline:
                raise
            pod.delete()
        else:
            return


# ---- the first packet ----


def test_the_first_packet_is_judged(site: ClusterNode) -> None:
    """Of pods that dial at once, before and after the kubelet has reported their addresses."""
    for turn in range(ROUNDS):
        for app in ("bad", "good", "other"):
            pod = site.pod(f"{app}-{turn}", {"app": app})
            judged(pod, app)
            known_as(site, pod, app)
            site.report(pod)
            if turn == 0:
                judged(pod, app)
                known_as(site, pod, app)
                pod.check()
            ended(site, pod)


def test_the_first_packet_to_a_server_is_judged(site: ClusterNode) -> None:
    server = site.pod("young", {"app": "api"})
    site.listen(server)
    for app in ("good", "bad", "other"):
        judged(PODS[app], app, server)
    ended(site, server)


def test_labels_that_change_count_for_a_pod_that_runs(site: ClusterNode) -> None:
    pod = site.pod("turns", {"app": "good"})
    judged(pod, "good")
    found = site.object(pod)
    site.api.put({**found, "metadata": {**found["metadata"], "labels": {"app": "bad"}}})
    until(lambda: "k8s:app=bad" in site.identity(pod.address()))
    judged(pod, "bad")
    ended(site, pod)


# ---- an address that goes from hand to hand ----


def test_an_address_is_the_next_pods_at_once(site: ClusterNode) -> None:
    """Though the objects of those before are still there and say that they have it."""
    before: list[CniPod] = []
    with one_address(site):
        for turn, app in enumerate(("good", "bad", "other", "good")):
            pod = site.pod(f"re-{turn}", {"app": app})
            assert pod.address() == "10.240.1.200"
            judged(pod, app)
            known_as(site, pod, app)
            site.report(pod)
            for old in before:  # the kubelet is late: it says once more how they do
                site.report(old, "Running" if turn % 2 else "Failed")
            site.settled()
            judged(pod, app)
            known_as(site, pod, app)
            if before:
                site.forget(before.pop(0).name)
                site.settled()
                known_as(site, pod, app)
            pod.delete()
            for version in VERSIONS:
                assert not site.identity(pod.address(version))
            site.settled()
            assert not site.identity(pod.address())
            pod.gone()
            before.append(pod)
    for old in before:
        site.forget(old.name)


def test_a_pod_of_the_same_name_waits_for_its_own_object(site: ClusterNode) -> None:
    """As those of a StatefulSet: another uid is another pod, with other labels maybe. So is another static manifest."""
    old = site.pod("web-0", {"app": "good"})
    site.report(old)
    judged(old, "good")
    site.create("static", {"app": "good"}, annotations={STATIC: "0" * 32, MIRROR: "0" * 32})
    site.settled()
    site.api.faults(stalled=True)  # what the agent sees stays as it is
    try:
        old.delete()
        old.gone()
        site.forget("web-0")
        new = site.sandbox("web-0", uid=site.create("web-0", {"app": "bad"}))
        static = site.sandbox("static", uid="1" * 32)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(refused, (new.add, static.add)))
        for version in VERSIONS:
            assert not site.identity(old.address(version))
        assert site.agent is not None
        for one in site.agent.client.get("endpoints"):
            if one["name"] in ("default/web-0", "default/static"):
                assert (one["interface"], one["addresses"], one["ready"]) == ("", [], False)
    finally:
        site.api.faults(stalled=False)
    for pod, uid in ((new, None), (static, "1" * 32)):
        pod.delete()
        if uid:
            site.create("static", {"app": "bad"}, annotations={STATIC: uid, MIRROR: uid})
        added_at_last(pod)
        judged(pod, "bad")
        known_as(site, pod, "bad")
    ended(site, new, static)


def test_a_sandbox_is_made_anew_for_the_same_pod(site: ClusterNode) -> None:
    old = site.pod("again", {"app": "good"})
    site.report(old)
    new = site.sandbox("again", uid=old.uid)
    new.add()
    assert new.address() != old.address()
    judged(new, "good")  # the object has the old address still
    known_as(site, new, "good")
    old.delete()
    old.gone()
    site.report(new)
    site.settled()
    judged(new, "good")
    assert not site.identity(old.address())
    new.check()
    ended(site, new)


# ---- the API server is gone, or the agent ----


def test_with_the_server_gone_new_pods_wait_and_others_go_on(site: ClusterNode) -> None:
    seen = site.create("seen", {"app": "bad"})
    site.settled()
    site.api.stop(abrupt=True)
    try:
        uid = site.create("unseen", {"app": "good"})
        pod = site.sandbox("unseen", uid=uid)
        told = refused(pod.add)
        assert "the pod default/unseen is not known on this node yet" in str(told)
        enforced()
        pod.delete()
        # The agent has seen this one already: the server is not needed.
        other = site.sandbox("seen", uid=seen)
        other.add()
        judged(other, "bad")
        for each in PODS.values():
            each.check()
        until(lambda: site.told()["source"]["kubernetes"]["lost"], LIMIT)
    finally:
        site.api.start(forget=True)
    added_at_last(pod)
    judged(pod, "good")
    ended(site, pod, other)


def same_throughout(stack: contextlib.ExitStack) -> list[tuple[Asking, int]]:
    """Requests without end, and what must become of each."""
    found = []
    for version in VERSIONS:
        address = PODS["api"].address(version)
        for app, path, right in (("good", ARTICLE, 200), ("good", PRIVATE, 403), ("other", ARTICLE, 0)):
            seconds = 5.0 if app == "good" else IN_VAIN
            found.append((stack.enter_context(Asking(PODS[app], address, path, seconds=seconds)), right))
    return found


def answers(site: ClusterNode) -> bool:
    """Whether an agent is there."""
    try:
        return bool(site.told())
    except ClientError:
        return False


def wirings_known(site: ClusterNode, more: int = 0) -> None:
    status = site.status()
    assert (status["wired"], status["found"], status["without"]) == (len(PODS) + more, 0, [])
    for name, pod in PODS.items():
        pod.check()
        known_as(site, pod, name)


def test_an_agent_that_is_killed_changes_no_verdict(site: ClusterNode) -> None:
    assert site.agent is not None
    with contextlib.ExitStack() as stack:
        asked = same_throughout(stack)
        site.agent.kill()
        time.sleep(0.5)
        site.start()
        wirings_known(site)
    for asking, right in asked:
        assert len(asking.told) > 5
        assert set(asking.told) == {right}


def test_an_agent_that_begins_without_a_server_changes_no_verdict(site: ClusterNode) -> None:
    """It knows no cluster: what the one before has put into the kernel stays, and new pods wait."""
    assert site.agent is not None
    early = site.create("early", {"app": "bad"})
    site.settled()
    site.agent.kill()
    site.api.stop(abrupt=True)
    with contextlib.ExitStack() as stack:
        asked = same_throughout(stack)
        thread = threading.Thread(target=site.start)
        thread.start()
        try:
            until(lambda: answers(site), LIMIT)
            pod = site.sandbox("early", uid=early)
            told = refused(pod.add)
            assert "the agent does not know the cluster yet" in str(told)
        finally:
            site.api.start()
            thread.join()
        pod.delete()
        wirings_known(site)
        added_at_last(pod)
        judged(pod, "bad")
    for asking, right in asked:
        assert len(asking.told) > 5
        assert set(asking.told) == {right}
    ended(site, pod)


def test_what_went_while_no_agent_was_there_is_forgotten(site: ClusterNode) -> None:
    """Sandboxes that vanish with the node's runtime, and an address of theirs that a pod elsewhere has by now."""
    assert site.agent is not None
    pod = site.pod("lost", {"app": "good"})
    site.report(pod)
    site.settled()
    site.agent.kill()
    pod.gone()
    site.start()
    assert site.status()["wired"] == len(PODS)
    for version in VERSIONS:
        assert not site.identity(pod.address(version))
    ended(site, pod)


def test_a_pod_that_was_there_before_is_found_by_its_uid(site: ClusterNode) -> None:
    """One that need not wait for an agent: it is known by the cgroup that the kubelet has made for it."""
    assert site.agent is not None
    site.policy("dns", POLICIES.split("---")[1].replace("default", "kube-system"))
    site.settled()
    site.agent.kill()
    pod = site.pod("dns", {"app": "bad"}, namespace="kube-system")
    site.listen(pod)
    site.report(pod)
    site.start()
    status = site.status()
    assert (status["wired"], status["found"], status["without"]) == (len(PODS) + 1, 1, [])
    judged(pod, "bad")
    known_as(site, pod, "bad")
    pod.delete()
    for version in VERSIONS:
        assert not site.identity(pod.address(version))
    pod.gone()
    site.forget("dns", "kube-system")
    site.api.drop("cilium.io/v2", "CiliumNetworkPolicy", "kube-system/bad")


# ---- switches ----


def test_the_kill_switch_by_the_annotation_of_the_node(site: ClusterNode) -> None:
    def passes(pod: CniPod) -> None:
        for version in VERSIONS:
            assert [ask(pod, PODS["api"].address(version), path) for path in (ARTICLE, PRIVATE)] == [200, 200]
            assert pod.dials(GATEWAYS[version], NODE_PORT, 2.0)

    site.annotate_node({KEY: "true"})
    try:
        until(lambda: site.told()["killSwitch"]["on"])
        for app in ("good", "bad", "other"):
            passes(PODS[app])
        young = site.pod("young", {"app": "bad"})
        passes(young)
        site.api.stop(abrupt=True)  # it stays on
        passes(PODS["bad"])
        site.api.start()
    finally:
        site.annotate_node({})
    until(lambda: not site.told()["killSwitch"]["on"], LIMIT)
    enforced()
    judged(young, "bad")
    ended(site, young)


def test_a_kind_that_is_left_to_others_is_not_even_watched(site: ClusterNode) -> None:
    assert site.agent is not None
    path = "/apis/networking.k8s.io/v1/networkpolicies"

    def isolated(now: bool) -> Callable[[], bool]:
        return lambda: (ask(PODS["good"], PODS["api"].address(), ARTICLE, seconds=0.3) == 0) is now

    assert path in {asked for _method, asked, _query in site.api.requests}
    site.policy("isolate", ISOLATE)
    site.settled()
    enforced()  # beside another policy that lets in: what one allows is allowed
    site.api.drop("cilium.io/v2", "CiliumNetworkPolicy", "default/api")
    until(isolated(True))
    try:
        site.agent.stop()
        site.overrides = {"policies": {"kinds": EVERY_KIND_BUT_ONE}}
        before = len(site.api.requests)
        site.start()
        until(isolated(False))
        for version in VERSIONS:
            for app in ("good", "other"):
                assert ask(PODS[app], PODS["api"].address(version), PRIVATE) == 200
        site.policy("more", ISOLATE.replace("name: isolate", "name: more"))
        site.api.drop_watches()
        site.settled()
        assert isolated(False)()
        asked = {one for _method, one, _query in site.api.requests[before:]}
        assert path not in asked
        # The server may not have missed the agent before yet.
        until(lambda: "networkpolicies" not in site.api.watches())
        assert "ciliumnetworkpolicies" in site.api.watches()
    finally:
        site.policy("all", POLICIES)
        site.agent.stop()
        for name in ("isolate", "more"):
            with contextlib.suppress(Exception):
                site.api.drop("networking.k8s.io/v1", "NetworkPolicy", f"default/{name}")
        site.overrides = {}
        site.start()
    assert path in {asked for _method, asked, _query in site.api.requests}


# ---- static pods ----


def test_static_pods_have_the_addresses_of_their_wirings(site: ClusterNode) -> None:
    """The runtime knows them by the hash of their manifest, the API server by the uid of the object beside it."""
    for turn, app in enumerate(("bad", "good")):
        digest = uuid.uuid4().hex
        annotations: Mapping[str, str] = {STATIC: digest, MIRROR: digest}
        name = f"static-{turn}"
        pod = site.sandbox(name, uid=digest)
        late = threading.Timer(0.5, lambda: site.create(name, {"app": app}, annotations=annotations))  # noqa: B023
        late.start()  # the kubelet makes the object beside the pod, and is not always first
        pod.add()
        late.join()
        judged(pod, app)
        known_as(site, pod, app)
        site.report(pod)
        site.settled()
        judged(pod, app)
        pod.check()
        ended(site, pod)
