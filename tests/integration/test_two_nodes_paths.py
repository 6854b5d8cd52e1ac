"""Two nodes, and networks that make it hard: other ways back, strict filters, sources that are checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import yaml

from spliceway.agent.testbed.agentprocess import agent_config
from spliceway.agent.testbed.profiles import Profile
from support.sysctl import set_sysctls
from support.twonodes import MODES, Json, TwoNodes, far_server, two_nodes

pytestmark = pytest.mark.kernel

_CLI = (sys.executable, "-m", "spliceway.agent", "preflight", "--no-self-test", "-o", "json")
_LOOSE = {"all": 0, "eth0": 2, "eth1": 2}


@pytest.fixture(scope="module")
def aws() -> Iterator[TwoNodes]:
    """Packets of every other pod leave by eth1 and come by eth0, on both nodes; `odd2` is one without rules."""
    odd = far_server("odd2", {"role": "odd"})
    odd["spec"]["nodeName"] = "node2"
    odd["status"]["podIPs"] = [{"ip": "10.240.2.151"}, {"ip": "fd00:240:2::151"}]
    with two_nodes(Profile("aws-like", "iptables"), pods=[odd]) as built:
        yield built


@pytest.fixture(scope="module")
def routed() -> Iterator[TwoNodes]:
    with two_nodes(Profile("l3")) as built:
        yield built


@pytest.fixture(scope="module")
def tunnel() -> Iterator[TwoNodes]:
    with two_nodes(Profile("vxlan", "iptables")) as built:
        yield built


def preflight(site: TwoNodes, number: int, name: str) -> Json:
    """What preflight says on a node about one check."""
    node = site.node(number)
    path = node.info.directory / "preflight.yaml"
    path.write_text(yaml.safe_dump(agent_config(node)))
    done = node.run_on_node([*_CLI, "--config", str(path)], timeout=60)
    (found,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == name]
    return dict(found)


@contextmanager
def filters(site: TwoNodes, values: Mapping[str, int], src_valid_mark: int) -> Iterator[None]:
    """Reverse path filters of both nodes: interface, or all, → rp_filter."""

    def put(chosen: Mapping[str, int], mark: int) -> None:
        settings = {f"ipv4__conf__{name}__rp_filter": value for name, value in chosen.items()}
        for number in (1, 2):
            set_sysctls(site.node(number).info.netns, **settings, ipv4__conf__all__src_valid_mark=mark)

    put(values, src_valid_mark)
    try:
        yield
    finally:
        put({name: _LOOSE[name] for name in values}, 0)


class Filter(NamedTuple):
    """Values of rp_filter; whether what is not steered gets through; what preflight says, and what it tells to do."""

    values: Mapping[str, int]
    direct: bool
    status: str
    to_do: str = ""


FILTERS = {
    "off": Filter({"all": 0, "eth0": 0, "eth1": 0}, True, "ok"),
    "loose": Filter(_LOOSE, True, "ok"),
    "all": Filter({"all": 1, "eth0": 2, "eth1": 2}, True, "info"),
    "all-strict": Filter({"all": 1, "eth0": 0, "eth1": 1}, False, "warn", "eth0.rp_filter=2 net.ipv4.conf.eth1"),
    "uplink-strict": Filter({"all": 0, "eth0": 1, "eth1": 2}, False, "warn", "net.ipv4.conf.eth0.rp_filter=2"),
}


@pytest.mark.parametrize("src_valid_mark", [0, 1])
@pytest.mark.parametrize("name", FILTERS)
def test_packets_come_by_one_interface_and_leave_by_another(aws: TwoNodes, name: str, src_valid_mark: int) -> None:
    """What is steered meets no filter, at its client's node or its server's; the rest does, and preflight says so."""
    chosen = FILTERS[name]
    with filters(aws, chosen.values, src_valid_mark):
        for client, server in MODES.values():
            assert aws.get(f"{client}1", f"{server}2", "/open", "/none", wait=3) == [200, 403], (client, server)
        assert aws.get("client1", "odd2", "/any", wait=1) == [200 if chosen.direct else 0]
        said = preflight(aws, 2, "rp-filter")
    assert said["status"] == chosen.status
    assert chosen.to_do in said["toDo"]


def test_what_preflight_says_helps(aws: TwoNodes) -> None:
    with filters(aws, FILTERS["all-strict"].values, 0):
        assert aws.get("client1", "odd2", "/any", wait=1) == [0]
        words = preflight(aws, 2, "rp-filter")["toDo"].split()
        assert words[:2] == ["sysctl", "-w"]
        settings = dict(word.removeprefix("net.").replace(".", "__").split("=") for word in words[2:])
        set_sysctls(aws.node(2).info.netns, **{key: int(value) for key, value in settings.items()})
        assert aws.get("client1", "odd2", "/any") == [200]


@pytest.mark.parametrize("src_valid_mark", [0, 1])
@pytest.mark.parametrize("how", ["routed", "tunnel"])
def test_strict_everywhere_where_ways_are_the_same(
    how: str, src_valid_mark: int, request: pytest.FixtureRequest
) -> None:
    site: TwoNodes = request.getfixturevalue(how)
    with filters(site, {"all": 1, "eth0": 1}, src_valid_mark):
        for client, server in MODES.values():
            assert site.get(f"{client}1", f"{server}2", "/open", "/none", wait=3) == [200, 403], (client, server)
        assert site.get("client1", "plain2", "/any") == [200]
        assert preflight(site, 2, "rp-filter")["status"] == "info"


@pytest.mark.parametrize("version", [4, 6])
def test_a_network_that_knows_all_pods(aws: TwoNodes, version: int) -> None:
    """Each interface sends from its own pods' addresses only, the proxies' packets too."""
    aws.bed.check_sources("pods")
    try:
        for near, far in ((1, 2), (2, 1)):
            for client, server in MODES.values():
                found = aws.get(f"{client}{near}", f"{server}{far}", "/open", "/none", version=version, wait=3)
                assert found == [200, 403], (client, server)
        assert preflight(aws, 1, "pod-routes")["status"] in ("info", "warn")
    finally:
        aws.bed.check_sources("any")


@pytest.mark.parametrize("version", [4, 6])
def test_a_network_that_knows_nodes_only(routed: TwoNodes, tunnel: TwoNodes, version: int) -> None:
    """A tunnel is what helps; without one nothing gets through, with rules or without, and preflight says why."""
    for site, passes in ((routed, False), (tunnel, True)):
        site.bed.check_sources("nodes")
        try:
            for client, server in (*MODES.values(), ("client", "plain")):
                found = site.get(f"{client}1", f"{server}2", "/open", version=version, wait=3 if passes else 1)
                assert found == [200 if passes else 0], (client, server)
            said = preflight(site, 1, "pod-routes")
        finally:
            site.bed.check_sources("any")
        if passes:
            assert said["status"] == "ok"
        else:
            assert said["status"] in ("info", "warn")
            assert "10.240.2.0/24 by 10.10.0.3 (eth0)" in said["found"]
            assert "pods" in said["toDo"]
