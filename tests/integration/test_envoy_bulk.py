"""Many rule sets at once on a real Envoy: new routes come together, and one bad one among them holds back no other."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.errors import NotAcceptedError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.names import FILTER_POLICY, listener_name
from support.envoy import NODE_ID, envoy_node, port_of

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]


def rule_set(key: int) -> RuleSet:
    return RuleSet(key, f"set {key}", (HttpRule(key, "GET", "/a"),))


def with_large_program(snapshot: Snapshot, key: int) -> Snapshot:
    """The same with an expression that Envoy refuses, past all checks of ours."""
    bodies = snapshot.bodies()
    config = route_pb2.RouteConfiguration.FromString(bodies[ROUTE][listener_name(key)])
    held = config.virtual_hosts[0].routes[0].typed_per_filter_config[FILTER_POLICY]
    rules = rbac_pb2.RBACPerRoute()
    held.Unpack(rules)
    for policy in rules.rbac.rules.policies.values():
        policy.permissions[0].and_rules.rules[1].header.string_match.safe_regex.regex = "[a-z]{900}" * 2
    held.Pack(rules)
    bodies[ROUTE][listener_name(key)] = config.SerializeToString(deterministic=True)
    return Snapshot.of("bad", bodies, snapshot)


def test_hundreds_of_rule_sets_are_there_within_a_second_or_two(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), envoy_node(tmp_path) as node:
            sets = [rule_set(key) for key in range(1, 401)]
            before = time.monotonic()
            await node.apply(*sets, wait=30)
            took = time.monotonic() - before
            [routes] = [item for item in node.server.status()[-1].types if item.type == "RDS"]
            assert {resource.state for resource in routes.resources} == {"SYNCED"}
            # Nonces count responses: clusters, listeners, routes, and a few more where Envoy asked in several steps.
            assert int(routes.sent_nonce.rpartition("-")[2]) < 40, f"{routes.sent_nonce} after {took:.1f} s"
            assert (await asyncio.to_thread(node.get, 400, "/a")).status == 200

    asyncio.run(main())


def test_one_bad_route_among_new_ones_is_found(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), envoy_node(tmp_path) as node:
            sets = {key: rule_set(key) for key in range(1, 21)}
            good = build_snapshot(sets, {key: port_of(key) for key in sets}, node.settings, "good")
            node.server.set_snapshot(NODE_ID, with_large_program(good, 7))
            with pytest.raises(NotAcceptedError, match="rule-set-7") as caught:
                await node.server.wait_acked(NODE_ID, 10)
            assert caught.value.resources == ("rule-set-7",)
            others = [key for key in sets if key != 7]
            await node.server.wait_acked(NODE_ID, 10, rule_sets=others)
            ports = {port_of(key) for key in others}
            await node.listening(ports)
            assert [(await asyncio.to_thread(node.get, key, "/a")).status for key in others] == [200] * 19
            await node.apply(*sets.values())
            assert (await asyncio.to_thread(node.get, 7, "/a")).status == 200

    asyncio.run(main())
