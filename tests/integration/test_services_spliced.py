"""Services by pods' sockets, with HTTP rules and splices, beside kube-proxy's rules for the same Services.

`SPLICEWAY_SERVICES=all` takes every way to build the node with either proxy; here each is met once.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.configsections import ProxyKind
from support.largebody import echoed
from support.lbpod import Remote
from support.profiled import PROFILES, node_address
from support.servicesite import MODES, NODE_PORTS, PODS, ServiceSite, cluster_ip, guarded, service_site
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

_PROXIES: tuple[ProxyKind, ...] = ("embedded", "envoy")
_NODES = ("l3", "l3-iptables", "bridge", "vxlan")
_EVERY = os.environ.get("SPLICEWAY_SERVICES") == "all"
#: Profile and proxy.
SITES = list(itertools.product(_NODES, _PROXIES)) if _EVERY else list(zip(_NODES, _PROXIES * 2, strict=True))
PROXIED = (200, 403)
_SIZE = 8 << 20
#: Who comes, and who goes then.
_REPLACED = (
    ("guarded3", "guarded1"),
    ("guarded4", "guarded2"),
    ("guarded1", "guarded3"),
    ("guarded2", "guarded4"),
)
_numbers = itertools.count()

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, proxy), id=f"{name}-{proxy}", marks=pytest.mark.envoy if proxy == "envoy" else ())
        for name, proxy in SITES
    ],
)
def site(request: pytest.FixtureRequest) -> Iterator[ServiceSite]:
    name, proxy = request.param
    with service_site(PROFILES[name], proxy) as made:
        yield made


def fresh(kind: str) -> str:
    """A path that no other request has."""
    return f"/{kind}/{next(_numbers)}"


def named(site: ServiceSite, path: str, service: str, verdict: str) -> None:
    """The flow of a request names its Service."""
    (flow,) = site.flows(path)
    assert (flow["services"], flow["verdict"]) == ([f"default/{service}"], verdict)


@VERSIONS
@pytest.mark.parametrize("mode", MODES)
def test_a_connection_to_a_service_is_judged_and_spliced(site: ServiceSite, mode: str, version: int) -> None:
    client, service, legs = MODES[mode]
    old, paths = site.socks().keys(), [fresh("open") for _ in range(3)]
    closed = fresh("closed")
    with site.talk(client, cluster_ip(service, version)) as talk:
        assert [talk.ask(path) for path in paths] == ["200"] * 3
        found = [one for key, one in site.socks().items() if key not in old]
        assert talk.ask(closed) == "403"
        assert talk.ask(fresh("open")) == "200"
    # Envoy's original destinations are known to all of its threads a moment after the first request to one: meanwhile
    # each has a connection of its own.
    assert {(one["leg"], one["state"], one["why"]) for one in found} == {(leg, "spliced", "") for leg in legs}, found
    servers = {str(site.bed.pod(pod).address(version)) for pod in PODS[service]}
    assert {one["peer" if one["leg"] == "downstream" else "endpoint"] for one in found} <= servers
    for leg in legs:
        assert sum(one["toProxyMessages"] for one in found if one["leg"] == leg) >= 3, found
    for path in paths:
        named(site, path, service, "allow")
    named(site, closed, service, "deny")


@VERSIONS
@pytest.mark.parametrize("mode", MODES)
def test_large_bodies_by_a_service(site: ServiceSite, mode: str, version: int) -> None:
    client, service, legs = MODES[mode]
    before = site.counters()
    for framing in ("length", "chunked"):
        said = echoed(site.bed.pod(client), cluster_ip(service, version), _SIZE, framing)
        assert said == f"200 {_SIZE} True"
    after = site.counters()
    assert after["spliced"] - before["spliced"] == 2 * len(legs)
    assert after["redirectedBytes"] > before["redirectedBytes"]


@VERSIONS
def test_udp_services_beside(site: ServiceSite, version: int) -> None:
    """By connected sockets and others, while a spliced connection to another Service is open."""
    host = cluster_ip("names", version)
    with site.talk("shopper", cluster_ip("guarded", version)) as talk:
        for name in ("client", "shopper"):
            with Remote.of(site.bed.pod(name)) as client:
                assert talk.ask(fresh("open")) == "200"
                client.do(
                    f"answers = set()\nfor _ in range(20):\n    with new({version}, DGRAM) as made:\n"
                    f"        made.connect(('{host}', 80))\n        answers.add(ask(made))"
                )
                assert set(client.ask("list(answers)")) == {"one", "two"}
                client.do(f"alone = new({version}, DGRAM)")
                who, sender = client.ask(f"ask_to(alone, '{host}')")
                assert who in ("one", "two")
                assert sender == [host, 80]
                assert talk.ask(fresh("open")) == "200"


@VERSIONS
def test_the_same_service_past_the_pods_sockets(site: ServiceSite, version: int) -> None:
    """By sockets that kube-proxy translates for, while one is open that got its backend at connect()."""
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates")
    node = node_address(site.bed, version)
    with site.talk("client", cluster_ip("guarded", version)) as talk:
        assert talk.ask(fresh("open")) == "200"
        found = {}
        for client, address, port in (
            ("client", cluster_ip("guarded", version), 80),
            ("client", node, NODE_PORTS["guarded"]),
            ("outside", node, NODE_PORTS["guarded"]),
            ("shopper", cluster_ip("guarded", version), 80),
            ("shopper", cluster_ip("plain", version), 80),
            ("shopper", cluster_ip("far", version), 80),
        ):
            paths = fresh("open"), fresh("closed")
            found[client, address] = tuple(site.past(client, address, port, path) for path in paths)
            assert talk.ask(fresh("open")) == "200"
            assert [site.flows(path)[0]["verdict"] for path in paths] == ["allow", "deny"]
        assert found == dict.fromkeys(found, PROXIED)
        # By the pod's own sockets: a NodePort is left to kube-proxy as well.
        old = site.socks().keys()
        with site.talk("client", node, NODE_PORTS["guarded"]) as other:
            assert [other.ask(fresh(kind)) for kind in ("open", "closed", "open")] == ["200", "403", "200"]
            legs = {one["leg"]: one["state"] for key, one in site.socks().items() if key not in old}
        assert legs.get("upstream") == "spliced"
        assert legs.get("downstream") != "spliced", "what is steered behind a translation is not spliced"
        assert talk.ask(fresh("closed")) == "403"


@VERSIONS
def test_who_may_not_is_denied_by_either_way(site: ServiceSite, version: int) -> None:
    """A shopper may ask pods, by a Service or not, and nobody else: not by a NodePort either."""
    node = node_address(site.bed, version)
    assert site.status("shopper", node, NODE_PORTS["plain"], "/open/x") == 0
    assert site.status("shopper", cluster_ip("names", version), 80, "/open/x") == 0


@VERSIONS
def test_endpoints_change_under_spliced_connections(site: ServiceSite, version: int) -> None:
    """One stays where it is, spliced, when its endpoint is none of its Service any more; new ones go elsewhere."""
    address = cluster_ip("guarded", version)
    try:
        for stays, goes in (PODS["guarded"], PODS["guarded"][::-1]):
            site.set_endpoints("guarded", [goes])
            old = site.socks().keys()
            with site.talk("client", address) as talk:
                assert talk.ask(fresh("open")) == "200"
                mine = site.socks().keys() - old
                assert {site.socks()[key]["state"] for key in mine} == {"spliced"}
                site.set_endpoints("guarded", [stays])
                assert [talk.ask(fresh(kind)) for kind in ("open", "closed", "open")] == ["200", "403", "200"]
                assert {site.socks()[key]["state"] for key in mine} == {"spliced"}
                known = site.socks().keys()
                with site.talk("client", address) as other:
                    assert other.ask(fresh("open")) == "200"
                    new = [key for key in site.socks() if key not in known]
                assert len(new) == 2
                assert str(site.bed.pod(stays).address(version)) in {*new[0], *new[1]}
                assert str(site.bed.pod(goes).address(version)) not in {*new[0], *new[1]}
    finally:
        site.set_endpoints("guarded", PODS["guarded"])


@pytest.mark.timeout(300)
def test_a_rolling_restart_loses_no_request(site: ServiceSite) -> None:
    """Each server is replaced: the new one comes, the old one leaves the Service, and goes when nobody asks it now."""
    pods = list(PODS["guarded"])
    before = site.counters()
    loads = {client: _Load(site, client, "guarded") for client in ("client", "shopper")}
    try:
        for new, leaving in _REPLACED:
            site.bed.add_pod(guarded(new))
            pods.append(new)
            site.set_endpoints("guarded", pods)
            pods.remove(leaving)
            site.set_endpoints("guarded", pods)
            for load in loads.values():
                load.goes_on()  # whoever dialled before is there by now
            gone = {str(site.bed.pod(leaving).address(version)) for version in (4, 6)}
            until(lambda g=gone: not g & {part for key in site.socks() for part in key})  # type: ignore[misc]
            site.bed.remove_pod(leaving)
    finally:
        found = {client: load.end() for client, load in loads.items()}
        site.set_endpoints("guarded", PODS["guarded"])
    after = site.counters()
    for result in found.values():
        assert result["failed"] == [], result
        assert result["requests"] > 200, result
        assert len(result["servers"]) == 4, result
    spliced, tcp_only = (after[name] - before[name] for name in ("spliced", "tcpOnly"))
    assert spliced >= 0.95 * (spliced + tcp_only) > 0
    assert sorted(pods) == sorted(PODS["guarded"])


#: Threads that ask on connections of some requests each, by both versions of IP, until stdin ends.
_ASKING = """
import http.client, json, sys, threading, time
stop, failed, servers, lock, requests = threading.Event(), [], set(), threading.Lock(), 0
turns = [0] * len(sys.argv[1:]) * 3
def ask(number, address):
    global requests
    while not stop.is_set():
        connection = http.client.HTTPConnection(address, 80, timeout=15)
        turns[number] += 1
        for step in range(20):
            path = f"/open/{number}-{turns[number]}-{step}-" + "x" * (step * 37)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read().decode()
                good = answer.status == 200 and body.endswith(f" GET {path}\\n")
            except Exception as error:
                good, body = False, repr(error)
            with lock:
                requests += 1
                if good:
                    servers.add(body.split()[0])
                else:
                    failed.append([address, path[:40], body[:200]])
            if not good:
                break
            time.sleep(0.01)
        connection.close()
threads = [threading.Thread(target=ask, args=(n, a)) for n, a in enumerate(sys.argv[1:] * 3)]
for each in threads:
    each.start()
for line in sys.stdin:
    print(json.dumps(turns), flush=True)
stop.set()
for each in threads:
    each.join()
print(json.dumps({"failed": failed[:10], "servers": sorted(servers), "requests": requests}), flush=True)
"""


class _Load:
    """A pod that asks a Service without end."""

    def __init__(self, site: ServiceSite, client: str, service: str) -> None:
        addresses = [cluster_ip(service, version) for version in (4, 6)]
        argv = [sys.executable, "-c", _ASKING, *addresses]
        self._process = site.bed.pod(client).spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.goes_on()

    def goes_on(self) -> None:
        """Wait until each of its threads has begun two connections more: one that was being dialled is over then."""
        first = self._turns()
        until(lambda: all(now >= before + 2 for now, before in zip(self._turns(), first, strict=True)))

    def _turns(self) -> list[int]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: list[int] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> dict[str, Any]:
        """What it saw."""
        out, _ = self._process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found
