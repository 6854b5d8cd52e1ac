"""HTTP rules that a policy leaves to Istio, between two pods with real sidecars, mutual TLS and an agent.

The server's sidecar has what Istio makes of the AuthorizationPolicies that the very policy is translated into.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.cli.istiotext import istio_line
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support import istiorbac
from support.istio.mesh import STATUS, mesh, mesh_manifest
from support.istio.rules import Rules
from support.istiopolicies import ALONE, made
from support.node import http_status, pod_manifest
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(300)]

INJECTED = {"sidecar.istio.io/status": STATUS}
HIDDEN = INJECTED | {"traffic.sidecar.istio.io/excludeInboundPorts": "80"}
NAMESPACE = "{apiVersion: v1, kind: Namespace, metadata: {name: default}}"
Site = tuple[Testbed, AgentProcess]


def policy(annotations: str = "spliceway.io/http-rules: istio") -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: default, annotations: {{{annotations}}}}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts:
    - ports: [{{port: "80", protocol: TCP}}]
      rules: {{http: [{{method: GET, path: /answer}}]}}
"""


def judging() -> list[dict[str, Any]]:
    """HTTP filters that Istio makes of the translation for the server."""
    pods = [json.dumps(mesh_manifest(name)) for name in ("client", "server")]
    found = made(policy(), NAMESPACE, cluster="\n---\n".join(pods), options=ALONE)
    assert not found.refusals, found.refusals
    about = istiorbac.applying(found.documents(), "default", {"app": "server"}, "istio-system")
    assert about
    return istiorbac.filters(about)


@pytest.fixture(scope="module", params=["iptables", "tproxy"])
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("mesh")
    for each in (directory, *directory.parents[:3]):  # the sidecars are not root
        each.chmod(0o755)
    kind: Rules = request.param
    with mesh(directory, kind, more=[pod_manifest("stranger", {"app": "stranger"})], judging=judging()) as testbed:
        testbed.node.write_policy("p", policy())
        agent = start_agent(testbed.node, {"splice": {"mode": "off"}})
        try:
            yield testbed, agent
        finally:
            agent.stop()


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


def reply(site: Site, version: int, path: str = "/answer", client: str = "client") -> int:
    return http_status(site[0], client, "server", path, version=version, timeout=2)


def test_the_sidecar_asks_and_the_wire_knows_who(site: Site, version: int) -> None:
    assert reply(site, version) == 200
    assert reply(site, version, "/small") == 403, "its sidecar says so"
    assert reply(site, version, client="stranger") == 0
    status = site[1].client.get("status")
    assert status["istio"]["httpRulesLeft"] == {"rules": 1, "pods": 1}
    assert "1 HTTP rule of 1 pod left to Istio" in istio_line(status["istio"])[0]
    assert not [text for text in status["proxy"]["warnings"] if "HTTP rules" in text]


def test_without_the_annotation_all_is_refused(site: Site, version: int) -> None:
    bed, agent = site
    bed.node.write_policy("p", policy(""))
    try:
        until(lambda: reply(site, version) == 503, 30)
        assert reply(site, version, "/small") == 503
        assert reply(site, version, client="stranger") == 0
        (told,) = [text for text in agent.client.get("status")["proxy"]["warnings"] if "HTTP rules" in text]
        assert "1 pod (default/server) of Istio's with HTTP rules" in told
    finally:
        bed.node.write_policy("p", policy())
    until(lambda: reply(site, version) == 200, 30)


def test_a_pod_whose_sidecar_does_not_see_the_port_is_refused_as_ever(site: Site, version: int) -> None:
    bed, agent = site
    bed.set_annotations("server", HIDDEN)
    try:
        until(lambda: reply(site, version) == 503, 30)
        assert agent.client.get("status")["istio"]["httpRulesLeft"] == {"rules": 0, "pods": 0}
        assert any("default/server: no sidecar" in text for text in agent.client.get("status")["proxy"]["warnings"])
    finally:
        bed.set_annotations("server", INJECTED)
    until(lambda: reply(site, version) == 200, 30)
    assert reply(site, version, "/small") == 403
