"""Envoy in pods of its own: it hands nothing over. A roll has a gap in which new connections wait, and none passes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from spliceway.agent.proxyprocess import start_time
from support.attack import Site, attacked_site
from support.node import http_status
from support.proxypod import PodSite, pod_site, until
from support.steered import dial, read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(400)]
#: Longest time without an answer in a roll, in seconds: Envoy's start, and a SYN that is sent again after 1 s and 3 s.
GAP = 8.0


@pytest.fixture
def site() -> Iterator[Site]:
    with attacked_site("envoy", agent=False) as built:
        yield built


@pytest.fixture
def envoy(site: Site) -> Iterator[PodSite]:
    with pod_site(site, "envoy") as made:
        yield made


def statuses(site: Site, path: str, timeout: float = 2.0) -> list[int | None]:
    return [http_status(site.testbed, "frontend", "api", path, version=each, timeout=timeout) for each in (4, 6)]


def assert_judges(site: Site) -> None:
    until(lambda: statuses(site, "/articles/1") == [200, 200])
    assert statuses(site, "/private") == [403, 403]


def test_it_rolls_with_a_gap_in_which_nothing_passes(envoy: PodSite) -> None:
    site = envoy.site
    older = envoy.pod(drain=4.0)
    envoy.start_agent()
    pid = older.until_serving()
    assert_judges(site)
    found = envoy.status()
    assert (found["kind"], found["pid"], found["problems"]) == ("envoy", pid, [])
    assert found["workers"] > 0
    assert found["version"].count(".") == 2
    newer = envoy.pod()
    newer.until_ready()
    assert not newer.proxy, "it stands by, and is ready: then the kubelet ends the other one"
    for version in (4, 6):
        to = (str(site.api.address(version)), 80)
        with (
            dial(site.frontend.netns, to, version=version) as kept,
            dial(site.frontend.netns, to, version=version) as long,
            site.load(fresh=True, connections=3, versions=(version,)) as fresh,
        ):
            kept.sendall(b"GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n")
            assert read_reply(kept).status == 200
            long.sendall(b"POST /articles/1/echo HTTP/1.1\r\nHost: api\r\nContent-Length: 10000000\r\n\r\n")
            older.terminate()
            began = time.monotonic()
            after = newer.until_serving()
            until(lambda: envoy.status()["pid"] == after)  # noqa: B023
            # The next answer is the last one of its connection. What takes longer goes on for a while.
            kept.sendall(b"GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n")
            reply = read_reply(kept)
            assert reply.status == 200
            assert b"connection: close" in reply.head.lower()
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while time.monotonic() - began < 20:
                    long.sendall(bytes(1000))
                    time.sleep(0.05)
            assert 3 < time.monotonic() - began < 8
            older.wait()
            until(lambda: statuses(site, "/articles/1") == [200, 200])
            result = fresh.stop()
        print(f"IPv{version}: longest gap {result.longest_gap:.2f} s, {result.outcomes}")
        assert set(result.outcomes) <= {"ok", "refused", "unanswered", "reset", "eof"}, result
        assert result.longest_gap < GAP
        assert_judges(site)
        older, newer = newer, envoy.pod(drain=4.0)
        newer.until_ready()


def test_from_the_agent_to_pods_and_back_and_to_the_other_kind(envoy: PodSite) -> None:
    site = envoy.site
    envoy.start_agent(managed=True)
    own = envoy.status()["pid"]
    pod = envoy.pod()
    with site.load(fresh=True, connections=3) as fresh:
        assert site.control.stop() == 0
        envoy.start_agent()
        pid = pod.until_serving()
        until(lambda: start_time(own) is None)
        until(lambda: envoy.status()["pid"] == pid)
        until(lambda: statuses(site, "/articles/1") == [200, 200])
        assert site.control.stop() == 0
        envoy.start_agent(managed=True)
        assert start_time(pid) is None
        until(lambda: statuses(site, "/articles/1") == [200, 200])
        assert pod.ready
        result = fresh.stop()
    assert set(result.outcomes) <= {"ok", "refused", "unanswered", "reset", "eof", "truncated"}, result
    assert_judges(site)
    # Other pods, of the embedded proxy: ready when they stand by, and they serve when the last Envoy has gone.
    assert site.control.stop() == 0
    with pod_site(site, "embedded") as embedded:
        embedded.pods = envoy.pods  # one series of names
        other = embedded.pod()
        embedded.start_agent()
        other.until_ready()
        assert not other.proxy
        pod.end()
        other.until_serving()
        assert_judges(site)
        assert embedded.status()["problems"] == []
