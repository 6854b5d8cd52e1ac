"""What a restart of the agent does to the node's proxy: same, other settings, another kind; with connections on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.proxyprocess import start_time
from spliceway.agent.testbed.agentprocess import start_agent
from support.attack import Site, attacked_site
from support.node import http_status
from support.steered import dial, read_reply
from support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


def restart(site: Site, **proxy: Any) -> None:
    """End the agent, and start another one with these fields of `proxy`."""
    assert site.control.stop() == 0
    site.agent = start_agent(site.node, {"proxy": proxy})


def process(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.control.client.get("status")["proxy"]["process"]
    return found


@pytest.mark.timeout(300)
def test_other_settings_lose_no_request(site: Site) -> None:
    """Twice: more workers, and back. The new proxy has the old one's listening sockets, so nobody is refused either."""
    pids = [process(site)["pid"]]
    with site.load(requests=100_000) as held, site.load(fresh=True, connections=3) as fresh:
        for workers in (2, 1):
            restart(site, workers=workers, limits={"drain": 10})
            until(lambda: process(site)["pid"] not in pids)
            pids.append(process(site)["pid"])
            until(lambda: start_time(pids[-2]) is None)
            site.control.wait_in_force()
        held.flawless(100)
        fresh.flawless(100)
    found = process(site)
    assert (found["kind"], found["workers"], found["restarts"], found["problems"]) == ("embedded", 1, 0, [])
    # What they accept is known to the kernel as before: it is spliced.
    before = site.control.client.get("status")["splice"]["counters"]
    with site.load(connections=4) as load:
        until(lambda: site.control.client.get("status")["splice"]["counters"]["spliced"] > before["spliced"] + 8)
        load.flawless()
    assert site.control.client.get("status")["splice"]["counters"]["tcpOnly"] == before["tcpOnly"]


@pytest.mark.timeout(300)
def test_a_new_proxy_that_cannot_take_over_changes_nothing(site: Site) -> None:
    old = process(site)["pid"]
    # A directory in the place of its settings: it can't be started.
    settings = site.node.info.state / "proxy.json"
    settings.unlink()
    settings.mkdir()
    with site.load(requests=100_000) as held:
        restart(site, workers=2)
        until(lambda: bool(process(site)["problems"]))
        assert process(site)["pid"] == old
        assert "a new one could not take over" in process(site)["problems"][0]
        held.flawless(50)
    settings.rmdir()
    restart(site, workers=2)
    until(lambda: process(site)["pid"] != old)
    assert process(site)["problems"] == []


@pytest.mark.envoy
@pytest.mark.timeout(300)
def test_another_kind_takes_its_place_and_nothing_passes_meanwhile(site: Site) -> None:
    last = process(site)["pid"]
    for kind in ("envoy", "embedded"):
        with site.load(requests=100_000) as held, site.load(fresh=True, connections=2) as fresh:
            restart(site, kind=kind)
            site.control.wait_in_force()
            found = process(site)
            assert (found["kind"], found["adopted"], found["problems"]) == (kind, False, [])
            assert start_time(last) is None
            last = found["pid"]
            until(lambda: http_status(site.testbed, "frontend", "api", "/articles/1", timeout=1) == 200)
            assert http_status(site.testbed, "frontend", "api", "/private") == 403
            for load in (held, fresh):
                outcomes = load.stop().outcomes
                # Those of the old proxy break at once, and a SYN that comes in between is dropped.
                assert set(outcomes) <= {"ok", "reset", "eof", "truncated", "refused", "unanswered"}, outcomes
                assert outcomes["ok"] > 20


@pytest.mark.timeout(300)
def test_one_that_was_told_to_end_is_replaced_while_it_drains(site: Site) -> None:
    """Somebody else's SIGTERM: what is under way ends as it should, and new connections don't wait until it has."""
    old = process(site)["pid"]
    with dial(site.frontend.netns, (str(site.api.address(4)), 80)) as idle:
        idle.sendall(b"GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n")
        assert read_reply(idle).status == 200
        os.kill(old, signal.SIGTERM)
        until(lambda: process(site)["pid"] not in (0, old))
        assert start_time(old) is not None
        until(lambda: http_status(site.testbed, "frontend", "api", "/articles/1", timeout=1) == 200)
        assert http_status(site.testbed, "frontend", "api", "/private") == 403
        assert start_time(old) is not None, "it has drained for too short a time to tell"
    until(lambda: start_time(old) is None, 40.0)
