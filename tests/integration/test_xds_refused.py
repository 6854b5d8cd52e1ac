"""A rule that the proxy refuses holds nothing back: another policy's deny, applied with it, is as fast as ever.

What was in force before the refused edit stays, and the agent says what was refused; a good edit heals it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest

from spliceway.agent.reconcile import PATIENCE_SECONDS
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.xds.envoyadmin import admin_get
from support.asking import Asking
from support.node import http_status, server_manifest
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

#: Rounds of each kind; with and without the refused edit take turns.
ROUNDS = 5
#: Envoy's limit for the size of a regular expression here; the agent believes that it is 1000.
PROGRAM_SIZE = 60
GOOD = "/articles/[0-9]+"
FIRST = f"{{method: GET, path: '{GOOD}'}}"
OPEN, CLOSED = "{path: '/open'}", "{path: '/closed'}"

#: What the policy of the pod `patient` becomes, and where that is refused.
BAD = {
    # Envoy itself, after all checks of ours.
    "nack": "{method: GET, path: '/[a-z]{150}'}",
    # The agent, before it is sent: more conditions with actions than Envoy can be asked for.
    "unfit": ", ".join(f"{{path: '/{number}', headerMatches: [{{name: X-A, mismatch: LOG}}]}}" for number in range(7)),
    # The parser: then it is no policy at all.
    "document": "{method: GET, path: '/articles/[0-9'}",
}


class World:
    """A node with an agent of one variant of the protocol, and an Envoy that refuses more than the agent thinks."""

    def __init__(self, testbed: Testbed, api: str) -> None:
        self.testbed = testbed
        self.node = testbed.node
        self.agent: AgentProcess = start_agent(self.node, {"proxy": {"kind": "envoy", "apiType": api}})
        target = f"/runtime_modify?re2.max_program_size.error_level={PROGRAM_SIZE}"
        asyncio.run(admin_get(self.node.info.state / "envoy-admin.sock", target, method="POST"))

    def status(self) -> Any:
        return self.agent.client.get("status")

    def write(self, patient: str = FIRST, tight: str = OPEN, fresh: str = "") -> float:
        """Replace all policies in one step; time.monotonic() of the rename."""
        rules = {"patient": patient, "tight": tight, "fresh": fresh}
        beside = self.node.info.policies / ".all"
        beside.write_text("---".join(policy(server, http) for server, http in rules.items() if http))
        when = time.monotonic()
        beside.rename(self.node.info.policies / "all.yaml")
        return when

    def not_applied(self) -> dict[str, Any]:
        """The policies that the proxy has not taken over, by name."""
        return {one["policy"]: one for one in self.status()["policy"]["notApplied"]}

    def rows(self, server: str) -> list[Any]:
        """The rows of a server's policy that have HTTP rules."""
        (found,) = self.agent.client.get("policy", endpoint=f"default/{server}")
        return [row for row in found["rows"] if row["http"]]

    def ask(self, server: str, path: str) -> int:
        return http_status(self.testbed, "client", server, path, timeout=2)

    def refused(self, kind: str) -> bool:
        """Whether the agent says that the policy of `patient` is refused in this way."""
        status = self.status()
        if kind == "document":
            return bool(status["source"]["refusals"])
        states = {one["policy"]: one["state"] for one in status["policy"]["notApplied"]}
        if kind == "unfit" and bool(states) != bool(status["proxy"]["unfit"]):
            return False
        return states.get("CiliumNetworkPolicy default/patient") == "refused"

    def until(self, wanted: Callable[[], object]) -> None:
        """Wait for it."""
        until(wanted, told=self.status)

    def requests(self, server: str, path: str, pause: float = 0.002) -> Asking:
        return Asking(self.testbed, "client", server, path, pause=pause)


def policy(server: str, http: str) -> str:
    """The policy of a server: these HTTP rules for the pod `client`."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {server}, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{role: {server}}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{role: client}}}}]
    toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules: {{http: [{http}]}}
"""


@pytest.fixture(scope="module", params=["GRPC", "DELTA_GRPC"])
def running(request: pytest.FixtureRequest) -> Iterator[World]:
    pods = [server_manifest(name, {"role": name}) for name in ("client", "patient", "tight", "fresh")]
    with Testbed.up(pods) as testbed:
        made = World(testbed, request.param)
        try:
            yield made
        finally:
            made.agent.stop()


@pytest.fixture
def world(running: World) -> World:
    """The node with its first policies in force, and nothing refused."""
    running.write()
    running.until(lambda: not running.not_applied() and not running.status()["source"]["refusals"])
    running.until(lambda: running.ask("tight", "/open") == 200 and running.ask("tight", "/closed") == 403)
    running.until(lambda: running.ask("fresh", "/private") == 200)
    return running


@pytest.mark.parametrize("kind", BAD)
def test_a_refused_rule_does_not_delay_a_deny(world: World, kind: str) -> None:
    times: dict[bool, list[float]] = {True: [], False: []}
    with world.requests("tight", "/open") as tight, world.requests("patient", "/articles/1", 0.01) as patient:
        begin = time.monotonic()
        patient.first(200, begin)
        for number in range(2 * ROUNDS):
            refused = number % 2 == 0
            other = f"{{method: GET, path: '{GOOD}|/x{number}'}}"
            when = world.write(BAD[kind] if refused else other, CLOSED)
            times[refused].append(tight.first(403, when))
            world.until(lambda refused=refused: world.refused(kind) == refused)
            when = world.write()
            tight.first(200, when)
            world.until(lambda: not world.refused(kind))
        # The refused edit changes nothing for its own connections, nor do the good ones around it break them.
        assert patient.since(begin) == {200}
        assert tight.since(begin) == {200, 403}
    alone, together = median(times[False]), median(times[True])
    print(f"{kind}: deny in force after {alone * 1e3:.1f} ms alone, {together * 1e3:.1f} ms beside a refused rule")
    assert together < 0.2, times
    assert together < 2 * alone + 0.03, times


@pytest.mark.parametrize("kind", ["nack", "unfit"])
def test_what_was_good_stays_and_the_refusal_is_shown_until_it_is_healed(world: World, kind: str) -> None:
    world.write(BAD[kind])
    world.until(lambda: world.refused(kind))
    assert [world.ask("patient", path) for path in ("/articles/1", "/private")] == [200, 403]
    (shown,) = world.not_applied().values()
    assert shown["policy"] == "CiliumNetworkPolicy default/patient"
    assert shown["file"].endswith("all.yaml")
    (why,) = shown["why"]
    if kind == "nack":
        assert (why["type"], why["resource"][:9]) == ("RDS", "rule-set-")
        assert "RE2 program size" in why["message"]
    assert {row["state"] for row in world.rows("patient")} == {"refused"}
    assert {row["state"] for row in world.rows("tight")} == {"applied"}
    world.write("{path: '/books/[0-9]+'}")
    world.until(lambda: world.ask("patient", "/articles/1") == 403)
    assert world.ask("patient", "/books/1") == 200
    assert world.not_applied() == {}
    assert {row["state"] for row in world.rows("patient")} == {"applied"}


@pytest.mark.parametrize("kind", ["nack", "unfit"])
def test_a_new_policy_that_is_refused_changes_nothing_and_holds_nobody_up(world: World, kind: str) -> None:
    begin = world.write(fresh=BAD[kind])
    world.until(lambda: "CiliumNetworkPolicy default/fresh" in world.not_applied())
    with world.requests("tight", "/open") as tight:
        tight.first(200, begin)
        # While the agent may still have patience with the new listener, and when it has none any more.
        for _ in range(2):
            when = world.write(fresh=BAD[kind], tight=CLOSED)
            assert tight.first(403, when) < PATIENCE_SECONDS / 2
            assert world.ask("fresh", "/private") == 200
            tight.first(200, world.write(fresh=BAD[kind]))
            world.until(lambda: time.monotonic() > begin + PATIENCE_SECONDS)
    assert world.not_applied()["CiliumNetworkPolicy default/fresh"]["state"] == "refused"
    world.write(fresh=FIRST)
    world.until(lambda: world.ask("fresh", "/private") == 403)
    assert world.ask("fresh", "/articles/1") == 200
    assert world.not_applied() == {}
