"""What status says of Istio's pods on a node, and which settings clash."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.cli.istiotext import istio_line, istio_text
from spliceway.agent.istioviews import IstioViews, Setting, is_accelerated, istio_status, with_http_rules
from spliceway.agent.lefttoistio import Left
from spliceway.agent.nodecheck import neighbours
from spliceway.agent.nodecheck.model import Status
from spliceway.agent.nodecheck.neighbours import Signs
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.compile import compile_table
from spliceway.policy.numbering import Numbering
from support.kernel import cluster_of

ON = Setting(enabled=True, splice="auto", socket_lb="off")
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]}]
"""


def pod(name: str, mesh: str = "", sidecar: int | None = None, **more: Any) -> LocalEndpoint:
    where = (f"default/{name}", f"veth-{name}", Path("/run/netns") / name, (ip_address("10.1.0.9"),))
    return LocalEndpoint(*where, mesh=mesh, sidecar=sidecar, **more)


MESH = (pod("a", "sidecar", 1337), pod("b", "sidecar-tproxy", 0, splice=False), pod("c", "ambient"), pod("d"))


def test_pods_are_counted_by_how_istio_takes_what_they_send() -> None:
    found = istio_status(MESH, ON, Left())
    assert found["pods"] == {"ambient": 1, "sidecar": 1, "sidecar-tproxy": 1}
    assert (found["accelerated"], found["leftAloneBySocketLb"]) == (1, 0)
    assert istio_line(found) == ["3 pods: 1 ambient, 1 sidecar, 1 sidecar-tproxy; 1 accelerated"]
    (line,) = istio_line(istio_status(MESH, Setting(enabled=False, splice="auto", socket_lb="auto"), Left()))
    assert line.endswith("; 0 accelerated; their sockets dial Services by themselves")


def test_without_istio_nothing_is_said() -> None:
    off = Setting(enabled=False, splice="auto", socket_lb="off")
    assert istio_line(istio_status(MESH[3:], off, Left())) == istio_line({}) == []
    assert istio_line(istio_status((), ON, Left())) == ["accelerates sidecars; no pod of Istio's on this node"]
    assert IstioViews().warnings(MESH[3:], off, None) == ()


@pytest.mark.parametrize(
    ("endpoint", "setting", "wanted"),
    [
        (MESH[0], ON, True),
        (MESH[0], Setting(enabled=False, splice="auto", socket_lb="off"), False),
        (MESH[0], Setting(enabled=True, splice="off", socket_lb="off"), False),
        (MESH[1], ON, False),  # the pod does not want it
        (MESH[2], ON, False),
        (pod("e", "sidecar-none"), ON, False),
    ],
)
def test_what_is_accelerated(endpoint: LocalEndpoint, setting: Setting, wanted: bool) -> None:
    assert is_accelerated(endpoint, setting) is wanted
    cell = istio_text({"mesh": endpoint.mesh, "accelerated": wanted})
    assert cell == endpoint.mesh + (", accelerated" if wanted else "")


def test_clashing_settings_are_told_with_what_to_do() -> None:
    (text,) = IstioViews().warnings(MESH, Setting(enabled=False, splice="auto", socket_lb="off"), None)
    assert "2 pods (default/a, default/b) with sidecars" in text
    assert "istio.enabled: true" in text
    (text,) = IstioViews().warnings(MESH, Setting(enabled=True, splice="off", socket_lb="off"), None)
    assert "splice.mode is off" in text
    assert IstioViews().warnings(MESH, ON, None) == ()


def test_http_rules_of_pods_in_the_mesh_are_named() -> None:
    def manifest(name: str, role: str, number: int) -> str:
        return (
            f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{role: {role}}}}}, "
            f"spec: {{nodeName: n}}, status: {{podIPs: [{{ip: 10.1.0.{number}}}]}}}}"
        )

    texts = [manifest("a", "server", 1), manifest("c", "other", 2), manifest("d", "server", 3), POLICY]
    table = compile_table(cluster_of(*texts), node="n", numbering=Numbering(), revision=1)
    assert with_http_rules(table) == {"default/a", "default/d"}
    views = IstioViews()
    (text,) = views.warnings(MESH, ON, table)
    assert "1 pod (default/a)" in text
    assert "policy istio translate" in text
    assert views.warnings(MESH, ON, table) is views.warnings(MESH, ON, table)
    # Out of the mesh there is nothing to say any more, and no old answer for it.
    assert views.warnings(MESH[2:], ON, table) == ()


@pytest.mark.parametrize(
    ("signs", "accelerates", "status", "found"),
    [
        (
            Signs(sidecars=3, programs=["pilot-agent", "envoy"]),
            False,
            Status.WARN,
            "3 sidecars; istio.enabled is",
        ),
        (Signs(sidecars=1, programs=["pilot-agent"]), True, Status.INFO, "1 sidecar; istio.enabled: sidecars are"),
        (Signs(programs=["ztunnel", "install-cni"]), True, Status.INFO, "install-cni, ztunnel (ambient)"),
        (Signs(istio_in_cni=True), False, Status.WARN, "istio-cni in a conflist"),
    ],
)
def test_preflight(signs: Signs, accelerates: bool, status: Status, found: str) -> None:
    check = next(iter(neighbours.judge(signs, accelerates=accelerates)))
    assert (check.name, check.status) == ("istio", status)
    assert found in check.found
    assert "policy istio translate" in check.to_do
    assert ("mode: istio" in check.to_do) is not accelerates
