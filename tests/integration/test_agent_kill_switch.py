"""The kill switch on a real node: on, nothing is enforced; turned, it cuts nothing; off, all is in force again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spliceway.bpf import killswitch
from support.switched import Stream, Switched, switched
from support.talk import Talk
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

ALLOWED, PRIVATE = "/articles/1", "/private"
VERSIONS = (4, 6)
KEY = "spliceway.io/disabled"


@pytest.fixture(scope="module")
def running() -> Iterator[Switched]:
    with switched() as site:
        site.start()
        yield site


@pytest.fixture
def site(running: Switched) -> Iterator[Switched]:
    assert running.status()["killSwitch"]["on"] is False
    enforced(running)
    yield running
    if running.agent is None or running.agent.process.poll() is not None:
        running.start()
    running.annotate_node({})
    running.file.unlink(missing_ok=True)
    until(lambda: not running.status()["killSwitch"]["on"])


def enforced(site: Switched) -> None:
    for version in VERSIONS:
        assert site.ask("frontend", "backend", version=version) == 200
        assert site.ask("intruder", "backend", version=version) == 0
        assert site.ask("frontend", "api", ALLOWED, version=version) == 200
        assert site.ask("frontend", "api", PRIVATE, version=version) == 403
        assert site.ask("intruder", "api", ALLOWED, version=version) == 0


def passes(site: Switched) -> None:
    """Everything, and past the proxy."""
    before = spliced_or_not(site) if site.agent is not None and site.agent.process.poll() is None else None
    for version in VERSIONS:
        for client in ("frontend", "intruder"):
            assert site.ask(client, "backend", version=version) == 200
            assert site.ask(client, "api", PRIVATE, version=version) == 200
        assert site.ask("backend", "outside", version=version) == 200
        assert site.ask("outside", "api", PRIVATE, version=version) == 200
    if before is not None:
        assert spliced_or_not(site) == before


def spliced_or_not(site: Switched) -> set[tuple[object, ...]]:
    """The connections that the proxy has, or had lately."""
    assert site.agent is not None
    names = ("endpoint", "endpointPort", "peer", "peerPort", "leg", "state")
    return {tuple(sock[name] for name in names) for sock in site.agent.client.get("socks")}


def talks(site: Switched, stack: ExitStack, client: str = "frontend") -> list[Talk]:
    """Connections through the proxy, of both families."""
    found = [stack.enter_context(Talk(site.testbed, client, "api", version=version)) for version in VERSIONS]
    assert [talk.ask(ALLOWED) for talk in found] == ["200", "200"]
    assert [talk.ask(PRIVATE) for talk in found] == ["403", "403"]
    return found


def test_on_and_off_by_the_command(site: Switched) -> None:
    with ExitStack() as stack:
        held = talks(site, stack)
        spliced = {one for one in spliced_or_not(site) if one[-1] == "spliced"}
        for _ in range(2):
            found = site.turn("on")
            assert (found["on"], found["agent"]["why"]) == (True, [f"the file {site.file} is there"])
            passes(site)
            # Those that the proxy has stay, spliced as they were, and it asks nothing any more.
            until(lambda: {talk.ask(PRIVATE) for talk in held} == {"200"})
            assert {one for one in spliced_or_not(site) if one[-1] == "spliced"} >= spliced
            assert "spliceway_enforcement_disabled 1.0" in site.metrics()
            assert site.agent is not None
            told = site.cli("status", "--socket", str(site.agent.socket), status=1)
            assert "! kill switch: ON, no policy is enforced on this node" in told
            checks = json.loads(site.cli("preflight", "--config", str(site.config), "--no-self-test", "-o", "json"))
            assert "kill-switch" in checks["warned"]
            assert site.turn("off")["on"] is False
            enforced(site)
            assert {talk.ask(ALLOWED) for talk in held} == {"200"}
            assert {talk.ask(PRIVATE) for talk in held} == {"403"}
            assert "spliceway_enforcement_disabled 0.0" in site.metrics()


def test_connections_that_began_meanwhile_are_judged_again(site: Switched) -> None:
    with ExitStack() as stack:
        site.turn("on")
        denied = [
            stack.enter_context(Talk(site.testbed, "intruder", "backend", version=one, patience=5)) for one in VERSIONS
        ]
        allowed = [stack.enter_context(Talk(site.testbed, "frontend", "backend", version=one)) for one in VERSIONS]
        assert {talk.ask() for talk in (*denied, *allowed)} == {"200"}
        site.turn("off")
        assert {talk.ask() for talk in allowed} == {"200"}
        assert {talk.ask() for talk in denied} == {"TimeoutError"}


def test_edits_meanwhile_cut_nothing_and_count_afterwards(site: Switched) -> None:
    """Of connections that the proxy has, too."""
    path = site.node.info.policies / "4-api-http.yaml"
    text = path.read_text()
    with ExitStack() as stack:
        held = talks(site, stack)
        site.turn("on")
        try:
            path.write_text(text.replace("/articles/", "/other/"))
            wanted = site.status()["policy"]["wanted"]
            until(lambda: site.status()["policy"]["revision"] >= wanted)
            assert {talk.ask(PRIVATE) for talk in held} == {"200"}
            site.turn("off")
            until(lambda: {talk.ask(ALLOWED) for talk in held} == {"403"})
            assert site.ask("frontend", "api", "/other/1") == 200
        finally:
            path.write_text(text)
            site.turn("off")
            until(lambda: site.ask("frontend", "api", ALLOWED) == 200)


def test_the_annotation_of_the_node(site: Switched) -> None:
    site.annotate_node({KEY: "true"})
    until(lambda: site.status()["killSwitch"]["on"])
    passes(site)
    told = site.node.run_on_node(
        [sys.executable, "-m", "spliceway.agent", "kill-switch", "off", "--config", str(site.config)], timeout=60
    )
    assert told.returncode == 1
    assert f"the Node has the annotation {KEY}: true" in told.stderr
    site.annotate_node({})
    until(lambda: not site.status()["killSwitch"]["on"])
    enforced(site)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_restart_leaves_it_on_from_the_first_packet(site: Switched, version: int) -> None:
    """By the annotation, which the next agent has not read yet when it begins."""
    site.annotate_node({KEY: "true"})
    until(lambda: site.status()["killSwitch"]["on"])
    stream = Stream(site, "intruder", "backend", version)
    assert site.agent is not None
    site.agent.kill()
    site.start()
    assert site.status()["killSwitch"]["on"]
    told = stream.stop()
    assert (set(told), len(told) > 20) == ({200}, True)


def test_without_an_agent(site: Switched) -> None:
    """The command tells the programs themselves. What the proxy has goes on there, by its rules."""
    with ExitStack() as stack:
        held = talks(site, stack)
        assert site.agent is not None
        site.agent.kill()
        enforced(site)
        found = site.turn("on")
        assert (found["on"], found["agent"], found["filePresent"]) == (True, None, True)
        passes(site)
        assert {talk.ask(ALLOWED) for talk in held} == {"200"}
        assert {talk.ask(PRIVATE) for talk in held} == {"403"}
        assert site.turn("off")["on"] is False
        enforced(site)
        assert {talk.ask(ALLOWED) for talk in held} == {"200"}
    assert site.start()["killSwitch"]["on"] is False


def test_an_agent_that_dies_while_it_is_on(site: Switched) -> None:
    """Its proxy asks nothing, so that only the next agent turns the switch off: then requests are judged at once."""
    site.turn("on")
    passes(site)
    assert site.agent is not None
    site.agent.kill()
    site.turn("off", status=1)
    assert killswitch.is_on(site.node.info.bpffs)
    passes(site)
    streams = [Stream(site, "frontend", "api", version, PRIVATE) for version in VERSIONS]
    assert site.start()["killSwitch"]["on"] in (True, False)  # until the Node was seen and the proxy has confirmed
    until(lambda: not site.status()["killSwitch"]["on"])
    enforced(site)
    for stream in streams:
        told = stream.stop()
        # One request may have been on a connection of its own in that moment: it passed no proxy, and ends.
        assert {200, 403} <= set(told) <= {0, 200, 403}
        assert told.count(0) <= 1
        assert 200 not in told[told.index(403) :]


def test_there_at_boot() -> None:
    """Before the first agent of the node attaches anything; then the file is removed by hand."""
    with switched() as site:
        site.write_config()
        assert site.turn("on")["on"] is False  # nothing is loaded: the file waits for the agent
        assert site.file.exists()
        streams = [Stream(site, "intruder", "backend", version) for version in VERSIONS]
        assert site.start()["killSwitch"]["on"]
        passes(site)
        assert [set(stream.stop()) for stream in streams] == [{200}, {200}]
        site.file.unlink()
        until(lambda: not site.status()["killSwitch"]["on"])
        enforced(site)
