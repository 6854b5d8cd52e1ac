"""What `preflight` says of the ways between nodes: made of routes and rules as they are read, without a node."""

from __future__ import annotations

import socket

from spliceway.agent.nodecheck import paths, routing
from spliceway.agent.nodecheck.model import Status
from spliceway.agent.nodecheck.paths import Hop, Ways

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
DEFAULT = Hop(V4, 254, "default", "eth0", "10.0.0.1")
SECOND = Hop(V4, 2, "default", "eth1", "10.0.0.1")
TO_PODS = Hop(V4, 254, "10.240.2.0/24", "eth0", "10.10.0.3")
TO_PODS6 = Hop(V6, 254, "fd00:240:2::/64", "eth0", "fd00:10::3")
TUNNEL = Hop(V4, 254, "10.240.2.0/24", "flannel.1", "10.240.2.0")
BY_SOURCE = frozenset({(V4, 2)})


def test_ways_there_and_back_differ_where_a_rule_chooses_by_the_source() -> None:
    assert paths.differing(Ways((DEFAULT, SECOND), BY_SOURCE)) == {"eth0", "eth1"}
    assert not paths.differing(Ways((DEFAULT, SECOND)))
    assert not paths.differing(Ways((DEFAULT, Hop(V4, 2, "default", "eth0", "10.0.0.1")), BY_SOURCE))
    # Two interfaces of one route: the filter believes both.
    both = Hop(V4, 254, "default", "eth1", "10.0.0.2")
    assert not paths.differing(Ways((DEFAULT, both, SECOND), BY_SOURCE))
    assert not paths.differing(Ways((DEFAULT, TUNNEL), BY_SOURCE, frozenset({"flannel.1"})))
    # IPv6 has no such filter, and the main table is nobody's own.
    assert not paths.differing(Ways((DEFAULT, Hop(V6, 2, "default", "eth1", "fe80::1")), frozenset({(V6, 2)})))
    assert not paths.differing(Ways((DEFAULT, TO_PODS), frozenset({(V4, 254)})))


def test_a_strict_filter_there_is_a_warning_with_the_command() -> None:
    differing = paths.differing(Ways((DEFAULT, SECOND), BY_SOURCE))
    strict = routing.judge_rp_filter({"all": 0, "eth0": 1, "eth1": 2, "lxc1": 1}, differing)
    assert (strict.status, strict.to_do) == (Status.WARN, "sysctl -w net.ipv4.conf.eth0.rp_filter=2")
    assert "eth0 and eth1" in strict.found
    everywhere = routing.judge_rp_filter({"all": 1, "eth0": 0, "eth1": 0}, differing)
    assert everywhere.to_do == "sysctl -w net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth1.rp_filter=2"
    assert routing.judge_rp_filter({"all": 1, "eth0": 2, "eth1": 2, "lxc1": 0}, differing).status is Status.INFO
    assert routing.judge_rp_filter({"all": 0, "eth0": 1}, ()).status is Status.INFO


def test_routes_that_need_the_networks_consent_are_told() -> None:
    assert paths.judge_pod_routes(Ways((DEFAULT, SECOND))).status is Status.OK
    assert paths.judge_pod_routes(Ways((DEFAULT, TUNNEL), tunnels=frozenset({"flannel.1"}))).status is Status.OK
    told = paths.judge_pod_routes(Ways((DEFAULT, TO_PODS, TO_PODS6)))
    assert told.status is Status.INFO
    assert told.found == "10.240.2.0/24 by 10.10.0.3 (eth0), fd00:240:2::/64 by fd00:10::3 (eth0): no tunnel"
    many = paths.judge_pod_routes(Ways(tuple(Hop(V4, 254, f"10.{i}.0.0/16", "eth0", "10.0.0.9") for i in range(5))))
    assert "and 2 more: no tunnel" in many.found


def test_on_a_cloud_it_is_a_warning_that_says_what_to_turn_off() -> None:
    aws = paths.judge_pod_routes(Ways((TO_PODS,)), "Amazon EC2 c5.large")
    assert (aws.status, "source/destination check" in aws.to_do) == (Status.WARN, True)
    for firmware, word in (("Google Google Compute Engine", "--can-ip-forward"), ("OpenStack Nova", "allowed-address")):
        assert word in paths.judge_pod_routes(Ways((TO_PODS,)), firmware).to_do
    assert paths.judge_pod_routes(Ways((DEFAULT,)), "Amazon EC2").status is Status.OK
