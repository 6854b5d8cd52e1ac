"""Which pods have a sidecar whose connections may be spliced, from what Istio leaves at a pod."""

from __future__ import annotations

from typing import Any

import pytest

from spliceway.agent.istiopods import AMBIENT, DATAPLANE, INTERCEPTION, STATUS, mesh_of, sidecar_of

INJECTED = {STATUS: '{"containers":["istio-proxy"]}'}


def spec(user: object = 1337, *, field: str = "containers", pod_user: object = None, **more: Any) -> dict[str, Any]:
    proxy: dict[str, Any] = {"name": "istio-proxy"}
    if user is not None:
        proxy["securityContext"] = {"runAsUser": user}
    made: dict[str, Any] = {"containers": [{"name": "app"}], **more}
    made[field] = [*made.get(field, ()), proxy]
    if pod_user is not None:
        made["securityContext"] = {"runAsUser": pod_user}
    return made


@pytest.mark.parametrize(
    ("annotations", "of", "user"),
    [
        (INJECTED, spec(), 1337),
        (INJECTED, spec(1000700001), 1000700001),  # OpenShift
        (INJECTED, spec(field="initContainers"), 1337),  # native
        (INJECTED, spec(None), 1337),
        (INJECTED, spec(None, pod_user=1000), 1000),
        (INJECTED, spec(2000, pod_user=1000), 2000),
        (INJECTED | {INTERCEPTION: "REDIRECT"}, spec(), 1337),
        (INJECTED | {INTERCEPTION: "TPROXY"}, spec(0), 0),
        (INJECTED | {INTERCEPTION: "TPROXY"}, spec(None), 0),
        ({}, spec(), None),
        ({STATUS: 1}, spec(), None),
        (INJECTED, spec() | {"hostUsers": False}, None),
        (INJECTED, spec() | {"hostUsers": True}, 1337),
        (INJECTED | {INTERCEPTION: "NONE"}, spec(), None),
        (INJECTED | {INTERCEPTION: "CUSTOM"}, spec(), None),
        (INJECTED | {AMBIENT: "enabled"}, spec(), None),
        (INJECTED | {AMBIENT: "disabled"}, spec(), 1337),
        (INJECTED, {"containers": [{"name": "app"}]}, None),
        (INJECTED, spec("1337"), None),
        (INJECTED, spec(True), None),
        (INJECTED, spec(-1), None),
        (INJECTED, spec(1 << 32), None),
        (INJECTED, {"containers": "app"}, None),
        (INJECTED, {"containers": [None], "securityContext": 7}, None),
        (INJECTED, None, None),
    ],
)
def test_whose_sidecar_runs_as_whom(annotations: dict[str, Any], of: object, user: int | None) -> None:
    assert sidecar_of(annotations, of) == user


@pytest.mark.parametrize(
    ("annotations", "labels", "of", "mesh"),
    [
        ({}, {}, spec(), ""),
        ({}, None, None, ""),
        ({STATUS: 1}, {}, spec(), ""),
        (INJECTED, {}, spec(), "sidecar"),
        (INJECTED, {}, spec(field="initContainers"), "native-sidecar"),
        (INJECTED | {INTERCEPTION: "REDIRECT"}, {}, spec(), "sidecar"),
        (INJECTED | {INTERCEPTION: "TPROXY"}, {}, spec(), "sidecar-tproxy"),
        (INJECTED | {INTERCEPTION: "TPROXY"}, {}, spec(field="initContainers"), "native-sidecar-tproxy"),
        (INJECTED | {INTERCEPTION: "NONE"}, {}, spec(), "sidecar-none"),
        (INJECTED | {INTERCEPTION: "\x1b[2J"}, {}, spec(), "sidecar-other"),
        (INJECTED | {INTERCEPTION: ["REDIRECT"]}, {}, spec(), "sidecar-other"),
        # Their sockets are left alone, too, though nothing inside of them is accelerated.
        (INJECTED, {}, spec() | {"hostUsers": False}, "sidecar"),
        (INJECTED, {}, None, "sidecar"),
        (INJECTED, {}, {"initContainers": [None, 7]}, "sidecar"),
        ({AMBIENT: "enabled"}, {}, spec(), "ambient"),
        ({AMBIENT: "disabled"}, {}, spec(), ""),
        (INJECTED | {AMBIENT: "enabled"}, {}, spec(), "ambient"),
        ({}, {DATAPLANE: "ambient"}, spec(), "ambient"),
        ({}, {DATAPLANE: "none"}, spec(), ""),
        ({}, [DATAPLANE], spec(), ""),
        (INJECTED, {DATAPLANE: "ambient"}, spec(), "sidecar"),  # istio-cni leaves pods with a sidecar alone
    ],
)
def test_how_istio_takes_what_a_pod_sends(annotations: dict[str, Any], labels: object, of: object, mesh: str) -> None:
    assert mesh_of(annotations, labels, of) == mesh
