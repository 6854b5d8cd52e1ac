"""`cni.enabled` from true to false on a node with pods: they keep their policy, new ones have none, and it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from spliceway.agent.cni.build import NAME
from spliceway.agent.testbed.agentprocess import start_agent
from support.cninode import CniNode, cni_node
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress:
    - fromEndpoints: [{{matchLabels: {{app: {whom}}}}}]
"""


def chained(site: CniNode) -> bool:
    return NAME in [each["type"] for each in site.runtime.conf()["plugins"]]


def restart(site: CniNode, *, enabled: bool) -> None:
    assert site.agent is not None
    site.agent.stop()
    site.agent = start_agent(site.node, {**site.config(), "cni": {**site.cni, "enabled": enabled}})


def test_pods_keep_their_policy_and_new_ones_have_none(tmp_path: Path) -> None:
    with cni_node(tmp_path) as site:
        site.policy("web", POLICY.format(whom="friend"))
        site.start()
        web = site.serve("web", {"app": "web"})
        friend = site.serve("friend", {"app": "friend"})
        other = site.serve("other", {"app": "other"})

        def passes(*pairs: bool) -> bool:
            found = [one.dials(web.address(version)) for one in (friend, other) for version in (4, 6)]
            return found == [each for each in pairs for _ in (4, 6)]

        until(lambda: passes(True, False))
        restart(site, enabled=False)
        until(lambda: site.agent is not None and site.agent.client.get("status")["policy"]["revision"])
        assert not chained(site)
        assert site.status()["wired"] == 3
        assert passes(True, False)

        # It lives: edits reach the pods that are left.
        site.policy("web", POLICY.format(whom="other"))
        until(lambda: passes(False, True))

        # A pod that nobody tells us of has no policy, and harms nobody's.
        late = site.serve("late", {"app": "web"})
        addresses = [{"ip": late.address(version)} for version in (4, 6)]
        site.describe("late", {"app": "web"}, podIPs=addresses)  # as its kubelet says, after a while
        # On one bridge with those that have one, these take nothing from it: nobody has checked what it says of itself.
        assert not late.dials(web.address())
        assert passes(False, True)

        # One that goes is seen to go.
        other.delete()
        other.gone()
        site.forget("other")
        until(lambda: site.status()["wired"] == 2, 20)

        # And on again: all are covered, also who came meanwhile.
        restart(site, enabled=True)
        site.wait_chained()
        until(lambda: site.status()["wired"] == 3, 20)
        assert site.status()["found"] == 1
        assert not friend.dials(web.address())
