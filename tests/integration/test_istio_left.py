"""HTTP rules that a policy leaves to Istio, between two pods with real sidecars, mutual TLS and an agent.

The server's sidecar has what Istio makes of the AuthorizationPolicies that the very policy is translated into.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.cli.istiotext import istio_line
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import diag
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
_ESTABLISHED = 1 << 1


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


@contextmanager
def a_site(directory: Path, kind: Rules) -> Iterator[Site]:
    for each in (directory, *directory.parents[:3]):  # the sidecars are not root
        each.chmod(0o755)
    with mesh(directory, kind, more=[pod_manifest("stranger", {"app": "stranger"})], judging=judging()) as testbed:
        testbed.node.write_policy("p", policy())
        agent = start_agent(testbed.node, {"splice": {"mode": "off"}})
        try:
            yield testbed, agent
        finally:
            agent.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("mesh"), "iptables") as made:
        yield made


def drop_pool(bed: Testbed) -> None:
    """End what the client's sidecar keeps open: a connection that is refused by a change just hangs."""
    server = bed.pod("server").addresses

    def end() -> None:
        for one in diag.tcp_sockets(_ESTABLISHED):
            if one.remote in server:
                diag.destroy_this(one)

    netns.call(bed.pod("client").netns, end)


def replies(site: Site, path: str = "/answer", client: str = "client") -> list[int]:
    """By IPv4 and IPv6, each on a connection of its own between the sidecars, too."""
    drop_pool(site[0])
    return [http_status(site[0], client, "server", path, version=version, timeout=1) for version in (4, 6)]


def warnings(site: Site, about: str) -> list[str]:
    found: list[str] = site[1].client.get("status")["proxy"]["warnings"]
    return [text for text in found if about in text]


def check(site: Site) -> None:
    assert replies(site) == [200, 200]
    assert replies(site, "/small") == [403, 403], "the server's sidecar says so"
    assert replies(site, client="stranger") == [0, 0]


def test_the_sidecar_asks_and_the_wire_knows_who(site: Site) -> None:
    check(site)
    istio = site[1].client.get("status")["istio"]
    assert istio["httpRulesLeft"] == {"rules": 1, "pods": 1}
    assert "1 HTTP rule of 1 pod left to Istio" in istio_line(istio)[0]
    assert warnings(site, "HTTP rules") == []


def test_without_the_annotation_all_is_refused(site: Site) -> None:
    bed = site[0]
    bed.node.write_policy("p", policy(""))
    try:
        until(lambda: replies(site) == [503, 503], 30)
        assert replies(site, "/small") == [503, 503]
        assert replies(site, client="stranger") == [0, 0]
        (told,) = warnings(site, "HTTP rules")
        assert "1 pod (default/server) of Istio's with HTTP rules" in told
    finally:
        bed.node.write_policy("p", policy())
    until(lambda: replies(site) == [200, 200], 30)


def test_a_pod_whose_sidecar_does_not_see_the_port_is_refused_as_ever(site: Site) -> None:
    bed, agent = site
    bed.set_annotations("server", HIDDEN)
    try:
        until(lambda: replies(site) == [503, 503], 30)
        assert agent.client.get("status")["istio"]["httpRulesLeft"] == {"rules": 0, "pods": 0}
        assert warnings(site, "default/server: no sidecar")
    finally:
        bed.set_annotations("server", INJECTED)
    until(lambda: replies(site) == [200, 200], 30)
    assert replies(site, "/small") == [403, 403]


def test_by_tproxy_it_is_the_same(tmp_path: Path) -> None:
    with a_site(tmp_path, "tproxy") as found:
        check(found)
