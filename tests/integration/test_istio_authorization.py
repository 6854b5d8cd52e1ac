"""AuthorizationPolicies as input of a node: pods without sidecars, by the kernel and by both proxies.

Between real pods and a real agent: who may reach whom, by which requests, beside a NetworkPolicy, and after an edit.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support import kinds
from support.node import pod_manifest, server_manifest
from support.profiled import status
from support.splicebed import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

#: What a client gets: nothing at all, a refusal of the proxy's, an answer.
NONE, REFUSED, OK = 0, 403, 200
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {role: web}}
  rules:
  - from: [{source: {principals: [mesh.example/ns/default/sa/friend]}}]
    to: [{operation: {methods: [GET], paths: [/open/*], notPaths: [/open/not]}}]
  - from: [{source: {principals: [mesh.example/ns/default/sa/boss]}}]
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: mesh-root}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/secret, "/secret/*"]}}]}]}
"""
NARROW = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {role: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}, {podSelector: {matchLabels: {role: other}}}]}]
"""
EMITTED = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: emitted
  namespace: default
  labels: {app.kubernetes.io/managed-by: spliceway}
  annotations: {spliceway.io/translated-from: CiliumNetworkPolicy default/x}
spec: {}
"""
Site = tuple[Testbed, AgentProcess]


@pytest.fixture(scope="module", params=kinds.BOTH)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    clients = [pod_manifest(name, {"role": name}) for name in ("friend", "boss", "other")]
    for client in clients:
        client["spec"]["serviceAccountName"] = client["metadata"]["name"]
    with Testbed.up([*clients, server_manifest("web", {"role": "web"})]) as bed:
        config = {
            "proxy": {"kind": request.param},
            "policies": {"kinds": ["NetworkPolicy", "AuthorizationPolicy"]},
            "splice": {"mode": "off"},
            "istio": {"trustDomain": "mesh.example", "rootNamespace": "mesh-root"},
        }
        agent = start_agent(bed.node, config)
        try:
            yield bed, agent
        finally:
            agent.stop()


def gets(bed: Testbed, client: str, path: str, version: int) -> int:
    return status(bed.pod(client), bed.pod("web").address(version), 80, path, timeout=2.0)


def expect(bed: Testbed, expected: dict[tuple[str, str], int]) -> None:
    for (client, path), code in expected.items():
        for version in (4, 6):
            until(lambda at=(client, path, version), code=code: gets(bed, *at) == code, 30)  # type: ignore[misc]


def test_who_may_ask_for_what(site: Site) -> None:
    bed, agent = site
    expect(bed, {("other", "/open/a"): OK, ("friend", "/secret"): OK})
    bed.node.write_policy("allow", ALLOW)
    allowed = {
        **{("friend", "/open/a"): OK, ("friend", "/open/not"): REFUSED, ("friend", "/secret"): REFUSED},
        **{("friend", "/open//not"): REFUSED, ("friend", "/open/%6eot"): REFUSED},
        **{("boss", "/secret"): OK, ("boss", "/"): OK, ("other", "/open/a"): NONE},
    }
    expect(bed, allowed)
    for version in (4, 6):
        # The node itself, as the kubelet probes: without a rule, and past the proxy.
        assert _probed(bed, version) == OK
    # A denial by request holds for whoever is allowed, of whatever else.
    bed.node.write_policy("deny", DENY)
    expect(bed, {("boss", "/secret"): REFUSED, ("boss", "/secret/a"): REFUSED, ("boss", "/"): OK})
    # Ours is for Istio's proxies: it would close the pod.
    bed.node.write_policy("emitted", EMITTED)
    agent.wait_in_force()
    expect(bed, {("boss", "/"): OK})
    # Both must allow: it lets in one who has no leave of Istio's, and leaves out one who has.
    bed.node.write_policy("narrow", NARROW)
    expect(bed, {("boss", "/"): NONE, ("other", "/open/a"): NONE, ("friend", "/open/a"): OK})
    expect(bed, {("friend", "/open/not"): REFUSED})
    # A policy that is refused now stays as it was.
    bed.node.write_policy(
        "allow", ALLOW.replace("to: [{", "when: [{key: connection.sni, values: [a.test]}]\n    to: [{")
    )
    until(lambda: bool(agent.client.get("status")["source"]["refusals"]), 30)
    expect(bed, {("friend", "/open/a"): OK, ("friend", "/open/not"): REFUSED, ("other", "/open/a"): NONE})
    for name in ("allow", "deny"):
        bed.node.remove_policy(name)
    expect(bed, {("other", "/secret"): OK, ("friend", "/secret"): OK, ("boss", "/"): NONE})


def _probed(bed: Testbed, version: int) -> int:
    """What a process of the node gets of the pod."""
    address = str(bed.pod("web").address(version))
    host = f"[{address}]" if version == 6 else address
    what = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3", f"http://{host}/secret"]
    return int(bed.node.run_on_node(what, timeout=15).stdout or 0)
