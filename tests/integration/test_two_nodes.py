"""Two nodes with an agent each: a connection meets its client's rules on one node and its server's on the other."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.node import Node
from spliceway.agent.testbed.profiles import Profile
from support import farserver
from support.profiled import CLUSTER_IPS, services
from support.twonodes import EGRESS, INGRESS, MODES, Json, Report, TwoNodes, two_nodes
from support.waiting import until

pytestmark = pytest.mark.kernel


class Way(NamedTuple):
    """How the nodes are built, and which proxy they have."""

    profile: Profile
    proxy: ProxyKind = "embedded"
    splice: str = "off"


WAYS = {
    "l3": Way(Profile("l3"), splice="auto"),
    "vxlan": Way(Profile("vxlan", "iptables", ("FORWARD",))),
    "aws-like": Way(Profile("aws-like", "iptables")),
    "calico-like": Way(Profile("calico-like", "iptables")),
    "l3-envoy": Way(Profile("l3"), "envoy"),
    "vxlan-envoy": Way(Profile("vxlan", "iptables"), "envoy"),
}
#: `make two-nodes` sets it: all ways. CI takes those that are least alike.
ALL = os.environ.get("SPLICEWAY_TWO_NODES") == "all"
TAKEN = tuple(WAYS) if ALL else ("l3", "aws-like", "vxlan-envoy")
_SIZE = 3 << 20
_numbers = itertools.count()


@pytest.fixture(
    scope="module",
    params=[pytest.param(way, marks=pytest.mark.envoy if WAYS[way].proxy == "envoy" else ()) for way in TAKEN],
)
def site(request: pytest.FixtureRequest) -> Iterator[TwoNodes]:
    way = WAYS[request.param]
    with two_nodes(way.profile, proxy=way.proxy, splice=way.splice) as built:
        yield built


VERSIONS = pytest.mark.parametrize("version", [4, 6])
#: Numbers of the client's and the server's node.
DIRECTIONS = pytest.mark.parametrize(("near", "far"), [(1, 2), (2, 1)], ids=["1-2", "2-1"])
EACH_MODE = pytest.mark.parametrize("mode", MODES)


def ends(mode: str, near: int, far: int) -> tuple[str, str]:
    client, server = MODES[mode]
    return f"{client}{near}", f"{server}{far}"


def fresh(path: str) -> str:
    """A path that no other request has, by which its flows are found."""
    return f"{path}/{next(_numbers)}"


def assert_source(flow: Json, site: TwoNodes, client: str, version: int) -> None:
    """A flow's source is the client pod, by address, name, identity and labels."""
    source = flow["source"]
    assert source["address"] == str(site.bed.pod(client).address(version))
    assert source["pod"] == f"default/{client}"
    assert source["identity"] >= 256
    assert f"k8s:role={client[:-1]}" in source["labels"], source


def assert_proxied(
    site: TwoNodes, number: int, path: str, status: int, client: str, version: int, *, verdict: str = ""
) -> None:
    """This node's proxy has seen the request, as the client's own. 403 is its own answer, unless `verdict` says."""
    flow = site.flow(number, hook="proxy", path=path)
    assert flow["http"]["status"] == status
    assert flow["verdict"] == (verdict or ("deny" if status == 403 else "allow"))
    assert_source(flow, site, client, version)


def connection(site: TwoNodes, number: int, port: int, hook: str, leg: str) -> Json:
    """What the kernel of this node has recorded of the client's connection."""
    return site.flow(number, port=port, hook=hook, leg=leg, verdict="redirect" if leg == "downstream" else "allow")


@EACH_MODE
@VERSIONS
@DIRECTIONS
def test_each_end_enforces_its_own_rules(site: TwoNodes, near: int, far: int, version: int, mode: str) -> None:
    """Which node's proxy has answered is known by who has seen the request. The server sees the client's address."""
    client, server = ends(mode, near, far)
    open_, out, into, none = map(fresh, ("/open", "/out", "/in", "/none"))
    expected = {
        open_: (200, 200, 200),
        out: (200, 403, 403),
        into: (403, 200, 403),
        none: (403, 403, 403),
    }
    place = list(MODES).index(mode)
    report = site.ask(client, server, *(["GET", path] for path in expected), version=version)
    assert report.statuses == [each[place] for each in expected.values()]
    seen = report.answers[0]["seen"]
    assert seen["address"] == str(site.bed.pod(client).address(version))
    if mode != "server":
        for path in (open_, out):
            status = 403 if mode == "both" and path == out else 200
            assert_proxied(site, near, path, status, client, version, verdict="allow")
        for path in (into, none):
            assert_proxied(site, near, path, 403, client, version)
    if mode != "client":
        for path in expected:
            if mode == "both" and path in (into, none):
                assert not site.flows(far, hook="proxy", path=path), "the client's own node has refused it"
            else:
                status = 403 if path in (out, none) else 200
                assert_proxied(site, far, path, status, client, version)
    assert_hops(site, mode, (near, far), report, client, version)


def assert_hops(site: TwoNodes, mode: str, nodes: tuple[int, int], report: Report, client: str, version: int) -> None:
    """Each node has recorded what it saw: a redirected connection where the rules are, a direct one elsewhere."""
    near, far = nodes
    hop = connection(site, near, report.port, "from-pod", "direct" if mode == "server" else "downstream")
    assert_source(hop, site, client, version)
    if mode == "client":
        # What comes is the connection of the other node's proxy, with a port of its own.
        hop = connection(site, far, report.answers[0]["seen"]["port"], "to-pod", "direct")
        assert report.answers[0]["seen"]["port"] != report.port
        assert not site.flows(far, port=report.port)
    elif mode == "server":
        hop = connection(site, far, report.port, "from-network", "downstream")
    else:
        address = str(site.bed.pod(client).address(version))
        hops = site.flows(far, hook="from-network", leg="downstream", verdict="redirect")
        mine = [flow for flow in hops if flow["source"]["address"] == address]
        assert mine
        assert report.port not in {flow["source"]["port"] for flow in mine}
        hop = mine[-1]
    assert_source(hop, site, client, version)


@EACH_MODE
@VERSIONS
@DIRECTIONS
def test_bytes_arrive_whole_both_ways(site: TwoNodes, near: int, far: int, version: int, mode: str) -> None:
    client, server = ends(mode, near, far)
    requests = [["POST", fresh("/open") + f"?size={size}", size] for size in (_SIZE, 1, 70_001)]
    report = site.ask(client, server, *requests, version=version)
    assert report.statuses == [200] * 3
    for answer in report.answers:
        assert answer["whole"]
        assert answer["seen"]["sum"] == answer["sent"]


@EACH_MODE
@VERSIONS
@DIRECTIONS
def test_ends_reach_the_other_side(site: TwoNodes, near: int, far: int, version: int, mode: str) -> None:
    """What a client does to its connection the server sees, and what the server does the client: FIN as FIN.

    Envoy makes FIN of all between two requests, and keeps the client's connection when the server ends its own.
    """
    client, server = ends(mode, near, far)
    embedded = site.agent(1).client.get("status")["proxy"]["kind"] == "embedded"
    for how in ("fin", "reset"):
        report = site.ask(client, server, ["GET", "/open/x"], version=version, end=how)
        assert report.statuses == [200]
        last = report.answers[0]["seen"]["port"]
        until(lambda last=last: ending(site, client, server, last, version))  # type: ignore[misc]
        assert ending(site, client, server, last, version) == (how if embedded else "fin")
    report = site.ask(
        client, server, ["GET", "/open/x?end=fin"], version=version, end="wait", wait=8 if embedded else 2
    )
    assert (report.statuses, report.end) == ([200], "fin" if embedded else "open")
    for how in ("cut", "reset"):
        report = site.ask(client, server, ["GET", f"/open/x?size=1000&end={how}"], version=version)
        assert "error" in report.answers[0], "half of an answer must not look whole"


def ending(site: TwoNodes, client: str, server: str, port: int, version: int) -> str:
    """How the server saw the client end its last connection from this port; empty: not yet."""
    text = site.ask(client, server, ["GET", "/open/ends"], version=version).answers[0]["text"]
    return str(["", *(how for seen, how in json.loads(text) if seen == port)][-1])


@VERSIONS
@EACH_MODE
def test_a_proxy_that_accepts_late(site: TwoNodes, version: int, mode: str) -> None:
    """By then netfilter has seen an answer on the connection: that says nothing about where it wanted to go."""
    client, server = ends(mode, 1, 2)
    node = site.node(1 if mode == "client" else 2)
    freeze = node.info.cgroups.proxy / "cgroup.freeze"
    address = str(site.bed.pod(client).address(version))
    spliced = mode == "client" and site.agent(1).client.get("status")["splice"]["mode"] != "off"
    with ThreadPoolExecutor(1) as pool:
        freeze.write_text("1")
        try:
            asked = pool.submit(site.ask, client, server, ["GET", "/open/late"], version=version)
            until(lambda: waits(node, address, unread=not spliced))
        finally:
            freeze.write_text("0")
        report = asked.result()
    assert report.statuses == [200]
    assert report.answers[0]["seen"]["address"] == address


def waits(node: Node, client: str, *, unread: bool) -> bool:
    """Whether a connection of this client has come, and (where that is to be seen) what nobody has read of it."""
    lines = node.run_on_node(["ss", "-tnH", "state", "established"]).stdout.splitlines()
    mine = [line.split() for line in lines if line.split()[3].strip("[").startswith(client)]
    return any(int(each[0]) or not unread for each in mine)


@VERSIONS
@pytest.mark.parametrize("number", [1, 2])
def test_a_service_leads_to_the_pod_that_was_judged(site: TwoNodes, number: int, version: int) -> None:
    """Translated on the client's node. The proxy of its backend's node dials that, and not the Service once more."""
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    server = f"guarded{number}"
    site.bed.set_services(services(server))
    path = fresh("/open")
    report = site.ask(
        "client1", str(CLUSTER_IPS[version == 6]), ["GET", path], ["GET", "/out"], version=version, wait=4
    )
    assert report.statuses == [200, 403]
    flow = site.flow(number, hook="proxy", path=path)
    assert_source(flow, site, "client1", version)
    assert flow["destination"]["address"] == str(site.bed.pod(server).address(version))


@VERSIONS
@pytest.mark.parametrize("mode", ["client", "server"])
def test_a_port_that_a_proxied_connection_had(site: TwoNodes, version: int, mode: str) -> None:
    """Without the policy the client's next connection from there goes directly: netfilter has forgotten the last."""
    client, server = ends(mode, 1, 2)
    name, number, text = ("out", 1, EGRESS) if mode == "client" else ("in", 2, INGRESS)
    port = 45000 + version
    assert site.ask(client, server, ["GET", "/open"], version=version, source=port, end="reset").statuses == [200]
    site.write(name, None, number)
    try:
        report = site.ask(client, server, ["GET", "/any"], version=version, source=port, end="reset")
    finally:
        site.write(name, text, number)
    assert report.statuses == [200]
    assert report.answers[0]["seen"]["port"] == port


@VERSIONS
def test_without_rules_nobody_is_between(site: TwoNodes, version: int) -> None:
    report = site.ask("client1", "plain2", ["GET", "/any"], version=version)
    assert report.statuses == [200]
    assert report.answers[0]["seen"]["port"] == report.port


#: Of the first node's overlay devices: the addresses of its pods' networks.
_FLANNEL = frozenset({"10.240.1.0", "fd00:240:1::"})


@VERSIONS
def test_nodes_and_pods_of_the_other(site: TwoNodes, version: int) -> None:
    """The other node's processes are `remote-node` to a server; its own node's may do what a kubelet must."""
    guarded = str(site.bed.pod("guarded2").address(version))
    url = f"http://[{guarded}]" if version == 6 else f"http://{guarded}"
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "4"]
    own = site.node(2).run_on_node([*curl, f"{url}/probe"]).stdout
    assert own == "200", "as the kubelet does"
    path = fresh("/node")
    assert site.node(1).run_on_node([*curl, f"{url}{path}"]).stdout == "200"
    assert site.node(1).run_on_node([*curl, f"{url}/open"]).stdout == "403"
    flow = site.flow(2, hook="proxy", path=path)
    own = {str(one) for one in site.node(1).info.addresses}
    assert flow["source"]["address"] in own | _FLANNEL
    assert flow["source"]["labels"] == ["reserved:remote-node"]


@VERSIONS
def test_a_pod_and_the_address_of_the_other_node(site: TwoNodes, version: int) -> None:
    server = site.node(2).spawn_on_node([sys.executable, farserver.__file__])
    try:
        address = next(str(one) for one in site.node(2).info.addresses if one.version == version)
        wait_listening(site)
        path = fresh("/open")
        report = site.ask("shopper1", address, ["GET", path], ["GET", "/out"], version=version)
        assert report.statuses == [200, 403]
        assert_proxied(site, 1, path, 200, "shopper1", version)
        assert site.flows(2, path=path) == [], "it is not for a pod of that node"
    finally:
        server.kill()
        server.wait()


def wait_listening(site: TwoNodes) -> None:
    until(lambda: 80 in netns.call(site.node(2).info.netns, netns.listening_ports))
