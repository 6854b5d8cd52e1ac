"""Nodes that are built like real ones, without an agent: all ways are open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
from support.profiled import (
    CLUSTER_IPS,
    LOCAL_NODE_PORT,
    NODE_PORT,
    PROFILES,
    TRIED,
    manifests,
    node_address,
    services,
    status,
)

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", params=TRIED)
def bed(request: pytest.FixtureRequest) -> Iterator[Testbed]:
    with Testbed.up(manifests(), profile=PROFILES[request.param]) as testbed:
        yield testbed


@pytest.mark.parametrize("version", [4, 6])
def test_pods_and_hosts_reach_each_other(bed: Testbed, version: int) -> None:
    ways = [("client", "server"), ("client", "far"), ("far", "server"), ("client", "outside"), ("outside", "server")]
    found = {way: status(bed.pod(way[0]), bed.pod(way[1]).address(version)) for way in ways}
    assert found == dict.fromkeys(ways, 200)


@pytest.mark.parametrize("version", [4, 6])
def test_services_lead_to_their_pods(bed: Testbed, version: int) -> None:
    if bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    cluster_ip = CLUSTER_IPS[0 if version == 4 else 1]
    # A bridge that hands nothing to iptables takes answers between its ports past the translation.
    past = bed.profile.bridged and not bed.profile.br_netfilter
    for backend, expected in (("server", 0 if past else 200), ("far", 200)):
        bed.set_services(services(backend))
        assert status(bed.pod("client"), cluster_ip) == expected, backend
    bed.set_services(services("server"))
    assert status(bed.pod("server"), cluster_ip) == 200, "a pod reaches itself by its Service"
    for port in (NODE_PORT, LOCAL_NODE_PORT):
        assert status(bed.pod("outside"), node_address(bed, version), port) == 200, port


def test_a_pod_comes_and_goes(bed: Testbed) -> None:
    late = bed.add_pod(pod_manifest("late"))
    assert status(late, bed.pod("server").address()) == 200
    bed.remove_pod("late")
    assert status(bed.pod("client"), bed.pod("server").address()) == 200


def test_what_a_profile_may_be() -> None:
    with pytest.raises(TestbedError, match="profile: name: 'token-ring' is none of l3, bridge"):
        Testbed.up([], profile=Profile("token-ring"))  # type: ignore[arg-type]
    with pytest.raises(TestbedError, match="profile: drop: 'PREROUTING' is none of INPUT"):
        Testbed.up([], profile=Profile(drop=("PREROUTING",)))  # type: ignore[arg-type]
