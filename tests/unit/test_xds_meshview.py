"""What a sidecar's /config_dump and istiod's /debug/syncz say, read without trust."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spliceway.xds.debug.meshview import Seen, of_istiod, of_sidecar
from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER

_ADMIN = "type.googleapis.com/envoy.admin.v3."
#: As istiod 1.26 and newer write it: nonces, and per type when it was sent; zero times are written, empty texts not.
SYNCZ: list[dict[str, Any]] = [
    {
        "cluster_id": "Kubernetes",
        "proxy": "sidecar~10.1.0.7~web-7d9.default~default.svc.cluster.local",
        "proxy_type": "sidecar",
        "istio_version": "1.26.2",
        "cluster_sent": "aa1",
        "cluster_acked": "aa1",
        "listener_sent": "bb2",
        "listener_acked": "bb1",
        "resources": {
            CLUSTER: {"sent": "aa1", "acked": "aa1", "sentTime": "2026-03-01T10:00:00.1Z"},
            LISTENER: {"sent": "bb2", "acked": "bb1", "sentTime": "0001-01-01T00:00:00Z", "lastError": "bad \x1b[31m"},
            "type.googleapis.com/istio.workload.Address": {"sent": "cc1", "sentTime": "2026-03-01T10:00:00Z"},
            "type.googleapis.com/envoy.config.route.v3.RouteConfiguration": {"sentTime": "0001-01-01T00:00:00Z"},
        },
    },
    {"proxy": "router~10.1.0.8~gw.istio~x", "cluster_sent": "a", "cluster_acked": "a", "route_sent": "b"},
    {},
]


def test_istiods_proxies_type_by_type() -> None:
    found = of_istiod(json.dumps(SYNCZ).encode())
    first = [(one.type, one.state, one.version, one.error) for one in found if one.node.startswith("sidecar~")]
    assert sorted(first) == [
        ("CDS", "SYNCED", "aa1", ""),
        ("LDS", "NACK", "bb2", "bad \x1b[31m"),
        ("RDS", "NOT SENT", "", ""),
        ("istio.workload.Address", "STALE", "cc1", ""),
    ]
    assert {one.type: one.state for one in found if one.node.startswith("router~")} == {
        "CDS": "SYNCED",
        "RDS": "STALE",
        "LDS": "NOT SENT",
        "EDS": "NOT SENT",
        "ECDS": "NOT SENT",
    }
    assert of_istiod(b"[]") == []


def dump(**sections: Any) -> bytes:
    return json.dumps({"configs": [{"@type": _ADMIN + kind, **body} for kind, body in sections.items()]}).encode()


def test_what_a_sidecar_has_by_state() -> None:
    listener = {"@type": LISTENER, "name": "virtualOutbound", "filter_chains": [{"x": {"@type": "istio/unknown"}}]}
    found = of_sidecar(
        dump(
            BootstrapConfigDump={"bootstrap": {"node": {"id": "x"}}},
            ClustersConfigDump={
                "version_info": "2026-03-01T10:00:00Z/1",
                "static_clusters": [{"cluster": {"@type": CLUSTER, "name": "xds-grpc"}}],
                "dynamic_active_clusters": [
                    {"version_info": "v1", "cluster": {"@type": CLUSTER, "name": "out|80||web"}}
                ],
                "dynamic_warming_clusters": [{"version_info": "v2", "cluster": {"name": "out|81||web"}}],
            },
            ListenersConfigDump={
                "dynamic_listeners": [
                    {"name": "virtualOutbound", "active_state": {"version_info": "v3", "listener": listener}},
                    {"name": "w", "warming_state": {"version_info": "v4"}},
                    {"name": "d", "draining_state": {"version_info": "v5"}},
                    {"error_state": {"details": "no"}, "name": "refused"},
                ],
                "static_listeners": [{"listener": {"name": "readiness"}}],
            },
            RoutesConfigDump={"dynamic_route_configs": [{"version_info": "v6", "route_config": {"name": "80"}}]},
            SecretsConfigDump={"dynamic_active_secrets": [{"name": "default", "version_info": "v7", "secret": {}}]},
            EndpointsConfigDump={"dynamic_endpoint_configs": [{"endpoint_config": {"cluster_name": "out|80||web"}}]},
            SomethingNew={"other": [[1]]},
        ),
        "default/web",
    )
    assert {(one.type, one.name): (one.state, one.version) for one in found} == {
        ("CDS", "xds-grpc"): ("STATIC", ""),
        ("CDS", "out|80||web"): ("ACTIVE", "v1"),
        ("CDS", "out|81||web"): ("WARMING", "v2"),
        ("LDS", "virtualOutbound"): ("ACTIVE", "v3"),
        ("LDS", "w"): ("WARMING", "v4"),
        ("LDS", "d"): ("DRAINING", "v5"),
        ("LDS", "refused"): ("ERROR", ""),
        ("LDS", "readiness"): ("STATIC", ""),
        ("RDS", "80"): ("ACTIVE", "v6"),
        ("SDS", "default"): ("ACTIVE", "v7"),
        ("EDS", "out|80||web"): ("ACTIVE", ""),
    }
    assert {one.node for one in found} == {"default/web"}
    assert next(one for one in found if one.name == "refused").error == "no"


def test_a_listener_that_was_refused_and_never_there_is_an_error_without_words() -> None:
    (found,) = of_sidecar(dump(ListenersConfigDump={"dynamic_listeners": [{"error_state": {}}]}), "n")
    assert found == Seen("sidecar", "n", "LDS", "", "ERROR", "", "refused, for a reason that Envoy does not tell")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[1]",
        b'{"configs": 1}',
        b'{"configs": [{"dynamic_listeners": [1]}]}',
        b'{"configs": [{"dynamic_listeners": [{"name": 1}]}]}',
        b'{"configs": ' + b"[" * 200_000,
        b'{"configs": [{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]}",
        b'[{"proxy": 7}]',
        b'[{"resources": []}]',
        b'[{"resources": {"a": null}}]',
        b'{"proxy": "a"}',
    ],
)
def test_what_is_neither_is_refused(body: bytes) -> None:
    for read in (lambda: of_sidecar(body, "n"), lambda: of_istiod(body)):
        with pytest.raises(AdminError):
            read()
