"""HTTP rules in egress: through the proxy to every kind of server, and never past it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.bpf.types import Leg, SpliceState
from spliceway.policy.verdict import Verdict
from support import kinds
from support.egress import EGRESS, PAIR, SERVERS, Site, egress_site

pytestmark = pytest.mark.kernel

EACH = pytest.mark.parametrize(("server", "version"), [(server, v) for server in SERVERS for v in (4, 6)])


@pytest.fixture(scope="module", params=kinds.BOTH)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with egress_site(request.param) as built:
        yield built


@EACH
def test_each_request_has_its_verdict(site: Site, server: str, version: int) -> None:
    """The server sees the client's own address. With rules at both ends a request must pass both."""
    status, text, *_ = site.ask(server, "/both/1", version=version, count=3)
    assert (status, text.split()[0]) == (200, str(site.client.address(version)))
    assert site.ask(server, "/open/1", version=version)[0] == (403 if server == "both" else 200)
    assert site.ask(server, "/in/1", version=version)[0] == 403
    assert site.ask(server, "/both/1", version=version, method="DELETE")[0] == 403


@EACH
def test_both_legs_are_known(site: Site, server: str, version: int) -> None:
    assert site.ask(server, "/both/1", version=version)[0] == 200
    legs = site.legs(server, version)
    assert set(legs) == {Leg.DOWNSTREAM, Leg.UPSTREAM}
    for entry in legs.values():
        assert (entry.verdict, entry.rule_set) == (Verdict.REDIRECT, PAIR if server == "both" else EGRESS)
    client = ip_address(str(site.client.address(version)))
    assert legs[Leg.DOWNSTREAM].endpoint == client
    assert legs[Leg.DOWNSTREAM].endpoint_is_client
    assert {legs[Leg.UPSTREAM].endpoint, legs[Leg.UPSTREAM].peer} == {client, ip_address(site.address(server, version))}


@EACH
def test_large_bodies_arrive_whole(site: Site, server: str, version: int) -> None:
    status, text, length, digest = site.ask(server, "/both/large", version=version, method="POST", size=4 << 20)
    assert (status, text.split()[2:4]) == (200, [str(4 << 20), digest])
    assert length == (1 << 21) + text.index("\n") + 1


@EACH
def test_the_clients_leg_is_spliced(site: Site, server: str, version: int) -> None:
    """So is the other where the server is a pod of this node."""
    before = site.node.datapath.splice_counters().spliced
    assert site.ask(server, "/both/1", version=version, count=2)[0] == 200
    spliced = site.node.datapath.splice_counters().spliced - before
    assert spliced == (2 if server in ("plain", "both") else 1)
    assert all(one.state is not SpliceState.REVOKED for one in site.node.datapath.socks())
