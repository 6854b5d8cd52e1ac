"""No pod makes bytes of another arrive at itself, whatever addresses it gives itself (sockmap's row 12)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from support.attack import Site, attacked_site, finish, pairs, seconds, set_rps, start_attacker
from support.waiting import until

pytestmark = pytest.mark.kernel

#: Connections of the load live for long, so that their tuples can be met.
_LONG = {"connections": 12, "requests": 4000}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


@pytest.mark.row(12)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
def test_a_bystander_on_the_victims_tuples_gets_nothing(site: Site, rps: bool) -> None:
    set_rps(site.node, rps)
    before = site.control.client.get("status")["splice"]["counters"]
    victims = list(pairs(site.frontend, site.api))
    _own_addresses(site, [address for pair in victims for address in pair], "add")
    try:
        with site.load(**_LONG) as load:
            bystander = start_attacker(site.intruder, "impersonate", pairs=victims, port=80, duration=seconds())
            assert bystander.stdin is not None
            deadline = time.monotonic() + seconds()
            while time.monotonic() < deadline:
                bystander.stdin.write(json.dumps(until(site.live_ports)) + "\n")
                bystander.stdin.flush()
                time.sleep(0.1)
            report = finish(bystander)
            load.flawless(200)
    finally:
        _own_addresses(site, [address for pair in victims for address in pair], "del")
    assert report["connections"] > 50
    assert not report["stolen"]
    assert report["lost"] == 0
    after = site.control.client.get("status")["splice"]["counters"]
    assert after["redirectedBytes"] > before["redirectedBytes"], f"nothing was spliced: {after}"


@pytest.mark.row(12)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
def test_loopback_connections_of_several_pods_stay_apart(site: Site, rps: bool) -> None:
    set_rps(site.node, rps)
    names = ("frontend", "api", "backend")
    with site.load() as load:
        running = [
            start_attacker(
                site.node.pod(name),
                "loopback",
                name=name,
                duration=seconds(),
                first_port=20000,
                addresses=["127.0.0.1", "127.0.0.2", "::1"],
            )
            for name in names
        ]
        for name, process in zip(names, running, strict=True):
            report = finish(process, timeout=seconds() + 60)
            assert report["asked"] > 50, name
            assert report["wrong"] == [], name
        load.flawless()


def _own_addresses(site: Site, addresses: list[str], what: str) -> None:
    for address in addresses:
        done = site.intruder.run(["ip", "address", what, address, "dev", "lo"])
        assert done.returncode == 0, done.stderr
