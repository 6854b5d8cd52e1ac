"""The kill switch on nodes that are built like real ones, with both proxies: by pod, by Service, across nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.profiled import CLUSTER_IPS, PROFILES, manifests, services, status
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

VERSIONS = (4, 6)
KINDS = [
    pytest.param((profile, kind), marks=pytest.mark.envoy if kind == "envoy" else (), id=f"{profile}-{kind}")
    for profile, kind in (
        ("l3-iptables", "envoy"),
        ("bridge", "embedded"),
        ("bridge", "envoy"),
        ("vxlan", "embedded"),
        ("vxlan", "envoy"),
        ("calico-like", "embedded"),
        ("l3-nftables", "embedded"),
    )
]
#: The server takes one path of the client and of the other node's pod, and nothing of others.
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}, {matchLabels: {role: server}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
"""


class Site(NamedTuple):
    """The node, its agent, and the file that its kill switch looks at."""

    bed: Testbed
    agent: AgentProcess
    file: Path

    def asks(self, client: str, address: object) -> tuple[int, int]:
        """What a client gets for a path that the policy allows, and for another one."""
        pod = self.bed.pod(client)
        return status(pod, address, 80, "/open", timeout=1.0), status(pod, address, 80, "/closed", timeout=1.0)

    def all_ways(self) -> dict[tuple[str, int, str], tuple[int, int]]:
        """By the pod's own address and by a Service's, where somebody translates it."""
        found = {}
        for version in VERSIONS:
            ways = {"pod": self.bed.pod("server").address(version)}
            if self.bed.profile.kube_proxy != "none":
                ways["service"] = CLUSTER_IPS[0 if version == 4 else 1]
            for how, address in ways.items():
                for client in ("client", "other"):
                    found[client, version, how] = self.asks(client, address)
            found["far", version, "pod"] = self.asks("far", ways["pod"])
        return found

    def turned(self, *, on: bool) -> None:
        """Turn it, and wait until the agent says so."""
        self.file.touch() if on else self.file.unlink()
        until(lambda: self.agent.client.get("status")["killSwitch"]["on"] is on)


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    profile, kind = request.param
    file = tmp_path / "disabled"
    with Testbed.up(manifests(), profile=PROFILES[profile]) as bed:
        bed.set_services(services("server"))
        bed.node.write_policy("in", POLICY)
        switch = {"killSwitch": {"file": str(file)}}
        agent = start_agent(bed.node, {"proxy": {"kind": kind}, "splice": {"mode": "off"}, **switch})
        try:
            yield Site(bed, agent, file)
        finally:
            agent.stop()


def test_on_everything_passes_and_off_all_is_in_force_again(site: Site) -> None:
    enforced = {way: (0, 0) if way[0] == "other" else (200, 403) for way in site.all_ways()}
    assert site.all_ways() == enforced
    site.turned(on=True)
    assert site.all_ways() == dict.fromkeys(enforced, (200, 200))
    site.turned(on=False)
    assert site.all_ways() == enforced
