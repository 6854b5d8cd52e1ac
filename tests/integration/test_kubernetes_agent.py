"""A real agent on a virtual node, fed by the API server's double: the kernel has what that says, come what may.

Or by a real kube-apiserver, with `SPLICEWAY_KUBE_BINARIES` (`make kube-real`).

The double changes at random (pods, namespaces, policies of every kind), while watches are dropped and cut, history is
compacted, and the server is restarted. Whenever it is quiet, the rows in the pinned maps are those of a table that
`policy` makes of the double's objects alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from spliceway.agent.configsections import LabelsConfig
from spliceway.agent.hostaddresses import own_addresses
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.engine import Engine, Options, objects
from spliceway.policy.evaluate import Connection
from spliceway.policy.evaluator import Evaluator
from spliceway.policy.labelfilter import LabelFilter
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import IPNetwork, PolicyTable
from spliceway.policy.verdict import Direction
from support.kernel import NamespaceLoop
from support.kerneltable import differences, first_address, kernel_says, table_says, without
from support.kubecrowd import Crowd, cluster_in
from support.kubesource import CRDS
from support.node import pod_manifest
from support.realapi import AnyApi, api_server

pytestmark = pytest.mark.kernel

#: In CI a smaller cluster, and each disturbance once.
ROUNDS = int(os.environ.get("SPLICEWAY_KUBE_ROUNDS", "7"))
SEED = int(os.environ.get("SPLICEWAY_KUBE_SEED", "8"))
PODS, POLICIES = (2000, 200) if "SPLICEWAY_KUBE_ROUNDS" in os.environ else (300, 40)
#: The source tries again after 10 seconds at most.
LIMIT = 40.0


class Site:
    """A node, its agent, the double, and what it has in it."""

    def __init__(self, testbed: Testbed, api: AnyApi, kubeconfig: Path) -> None:
        self.node = testbed.node
        self.api = api
        self.random = Random(SEED)
        self.wired: dict[str, Any] = {}
        self._loop = NamespaceLoop(self.node.info.netns)
        api.put(*CRDS)
        for file in sorted(self.node.info.manifests.rglob("*.yaml")):
            for document in yaml.safe_load_all(file.read_text()):
                api.put(document)
                if document["kind"] == "Pod":
                    key = f"{document['metadata'].get('namespace', 'default')}/{document['metadata']['name']}"
                    self.wired[key] = first_address([one["ip"] for one in document["status"]["podIPs"]])
        self.crowd = Crowd(api, self.random, pods=PODS, policies=POLICIES)
        # An empty directory is no source beside the other.
        overrides = {
            "source": {"directory": None, "kubernetes": {"kubeconfig": str(kubeconfig), "podAnnotations": True}},
            "splice": {"mode": "off"},
        }
        self._overrides = overrides
        self.agent: AgentProcess = start_agent(self.node, overrides)

    def restart_agent(self) -> None:
        self.agent.kill()
        self.agent = start_agent(self.node, self._overrides)

    def close(self) -> None:
        self.agent.stop()
        self._loop.stop()

    def wanted(self) -> tuple[Cluster, PolicyTable]:
        """What the double says, and the table of it."""
        cluster = cluster_in(self.api, self.node.name, self._loop.run(own_addresses()))
        labels = LabelsConfig()
        options = Options(node=self.node.name, labels=LabelFilter(labels.include, labels.exclude))
        return cluster, Engine(options, Numbering()).apply(objects(cluster), revision=1)

    def settled(self, what: object) -> None:
        """Wait until the kernel says what the double says. Fails when it does not in time."""
        cluster, table = self.wanted()
        expected = table_says(table, self.wired)
        deadline = time.monotonic() + LIMIT
        services = self._services()
        while (found := without(kernel_says(self.node.info.bpffs), services)) != expected:
            if time.monotonic() > deadline:
                status = self.agent.client.get("status")
                told = "\n".join(differences(found, expected))
                raise AssertionError(f"after {what}:\n{told}\n{status['source']}\n{status['policy']}")
            time.sleep(0.1)
        self._ask(cluster, table)

    def _services(self) -> set[IPNetwork]:
        """Addresses of Services, which are judged where they lead: a real server has one of its own."""
        found = self.api.all("v1", "Service")
        return {ip_network(address) for one in found for address in one["spec"].get("clusterIPs", ())}

    def _ask(self, cluster: Cluster, table: PolicyTable) -> None:
        """The table is what the interpreter says, too: some connections from and to the node's pods."""
        evaluator = Evaluator(cluster)
        pods = [pod for key, pod in sorted(cluster.pods.items()) if pod.addresses and key not in self.wired]
        for _ in range(100):
            name, peer = self.random.choice(sorted(self.wired)), self.random.choice(pods)
            own, other = cluster.pods[name].addresses[0], peer.addresses[0]
            protocol, port = self.random.choice((6, 17, 132)), self.random.choice((53, 80, 81, 8080, 9090))
            identity = identify(table.ipcache, other)
            for direction, ends in ((Direction.INGRESS, (other, own)), (Direction.EGRESS, (own, other))):
                decision = evaluator.evaluate(Connection(*ends, protocol, port))
                half = decision.ingress if direction is Direction.INGRESS else decision.egress
                judged = lookup(table, table.endpoints[name], direction, identity, protocol, port)
                assert half is not None
                assert (judged.verdict, judged.reason) == (half.verdict, half.reason), (ends, protocol, port)


def _watches_dropped(site: Site) -> None:
    site.crowd.change()
    site.api.drop_watches(site.random.choice((0.3, 1.0)), abrupt=site.random.random() < 0.5)
    site.crowd.change()


def _lines_cut(site: Site) -> None:
    site.api.faults(cut_lines=site.random.randint(1, 4))
    site.crowd.change()


def _compacted(site: Site) -> None:
    site.api.faults(stalled=True)
    site.crowd.change()
    site.api.compact()
    site.api.drop_watches()
    site.api.faults(stalled=False)


def _restarted(site: Site) -> None:
    site.api.stop(abrupt=site.random.random() < 0.5)
    site.crowd.change()
    site.api.start(forget=site.random.random() < 0.5)


def _older_server(site: Site) -> None:
    """Without WatchList, and with nothing of the history that was."""
    site.api.watch_list(site.random.random() < 0.5)
    site.crowd.change()
    site.api.restart(forget=True)


def _agent_restarted(site: Site) -> None:
    site.crowd.change()
    site.restart_agent()
    site.crowd.change()


def _in_peace(site: Site) -> None:
    site.crowd.change()


DISTURBANCES = (_watches_dropped, _compacted, _restarted, _lines_cut, _older_server, _in_peace, _agent_restarted)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pods = [
        pod_manifest(f"own{number}", {"app": "pqr"[number % 3], "tier": "uv"[number % 2]}, namespace="ab"[number % 2])
        for number in range(5)
    ]
    kubeconfig = tmp_path_factory.mktemp("kube") / "kubeconfig"
    with Testbed.up(pods) as testbed:
        place = testbed.node.info.netns
        with api_server(enter=lambda: netns.enter(place), bookmark_seconds=2.0) as api:
            made = Site(testbed, api, api.kubeconfig(kubeconfig))
            yield made
            made.close()


def test_the_kernel_has_what_the_server_says(site: Site) -> None:
    status = site.agent.client.get("status")["source"]
    states = {one["kind"]: one["state"] for one in status["kubernetes"]["resources"]}
    assert set(states.values()) == {"listed"}
    site.settled("the start")
    for number in range(ROUNDS):
        # Each of them in turn first, so that a short run has all.
        disturb = DISTURBANCES[number] if number < len(DISTURBANCES) else site.random.choice(DISTURBANCES)
        began = time.monotonic()
        disturb(site)
        half = time.monotonic()
        site.settled((number, disturb.__name__))
        print(f"{number}: {disturb.__name__} {half - began:.1f} s, settled in {time.monotonic() - half:.1f} s")


def test_with_the_server_gone_everything_stays_in_force(site: Site) -> None:
    site.settled("before")
    before = kernel_says(site.node.info.bpffs)
    site.api.stop(abrupt=True)
    deadline = time.monotonic() + LIMIT
    while not (lost := site.agent.client.get("status")["source"]["kubernetes"]["lost"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "source.kubernetes" in lost
    assert kernel_says(site.node.info.bpffs) == before
    site.crowd.change()
    site.api.start(forget=True)
    site.settled("the server is back")
