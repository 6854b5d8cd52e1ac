"""Envoy in pods of its own: it hands nothing over. A roll has a gap in which new connections wait, and none passes."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from spliceway.agent.proxyprocess import start_time
from support.proxypod import PodSite, pod_node, pod_site
from support.steered import dial, read_reply
from support.waiting import LIMIT, until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(400)]
#: Longest time without an answer once the new Envoy serves, in seconds: a SYN is sent again after 1 s and 3 s.
GAP = 7.0


@pytest.fixture
def envoy() -> Iterator[PodSite]:
    with pod_node("envoy") as made:
        yield made


def asks_for_the_last_time(kept: socket.socket) -> bool:
    """One request; whether its answer says that there won't be another one on this connection."""
    kept.sendall(b"GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n")
    reply = read_reply(kept)
    assert reply.status == 200
    return b"connection: close" in reply.head.lower()


def test_it_rolls_with_a_gap_in_which_nothing_passes(envoy: PodSite) -> None:
    site = envoy.site
    older = envoy.pod(drain=4.0)
    envoy.start_agent()
    pid = older.until_serving()
    envoy.assert_judges()
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
            # As soon as it drains, the next answer is the last one of its connection; what takes longer goes on.
            until(partial(asks_for_the_last_time, kept))
            after = newer.until_serving()
            start = time.monotonic() - began
            until(lambda: envoy.status()["pid"] == after)  # noqa: B023
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while time.monotonic() - began < LIMIT:
                    long.sendall(bytes(1000))
                    time.sleep(0.05)
            assert 3 < time.monotonic() - began < start + 8
            older.wait()
            envoy.until_answered()
            result = fresh.stop()
        print(f"IPv{version}: longest gap {result.longest_gap:.2f} s, {result.outcomes}")
        assert set(result.outcomes) <= {"ok", "refused", "unanswered", "reset", "eof"}, result
        assert result.longest_gap < start + GAP
        envoy.assert_judges()
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
        envoy.until_answered()
        assert site.control.stop() == 0
        envoy.start_agent(managed=True)
        assert start_time(pid) is None
        envoy.until_answered()
        assert pod.ready
        result = fresh.stop()
    assert set(result.outcomes) <= {"ok", "refused", "unanswered", "reset", "eof", "truncated"}, result
    envoy.assert_judges()
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
        embedded.assert_judges()
        assert embedded.status()["problems"] == []
