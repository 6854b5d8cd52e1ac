"""Envoy as a sidecar has it: a listener for all that the application dials, one for all that comes for it.

HTTP on both, mTLS between sidecars. Outbound leads to where the application dialled (an original-destination cluster);
inbound to the application, from 127.0.0.6 or ::6. Envoy runs under the proxy's UID.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed.node import Pod
from support.istio.rules import INBOUND, OUTBOUND, PROXY_UID

ADMIN = 15000
_TYPES = "type.googleapis.com/envoy.extensions"
_ORIGINAL_DESTINATION = {
    "name": "envoy.filters.listener.original_dst",
    "typed_config": {"@type": f"{_TYPES}.filters.listener.original_dst.v3.OriginalDst"},
}
#: Keeps the client's address towards the application; its packets have the mark that leads answers back.
_ORIGINAL_SOURCE = {
    "name": "envoy.filters.listener.original_src",
    "typed_config": {"@type": f"{_TYPES}.filters.listener.original_src.v3.OriginalSrc", "mark": 1337},
}


def config(
    certificates: Path, name: str, *, http: bool = True, tproxy: bool = False, judging: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Bootstrap of the sidecar of a workload. `http`: it understands what it relays; else it only moves bytes.

    `judging`: HTTP filters for what comes to it.
    """
    return {
        "admin": {"address": _address("127.0.0.1", ADMIN)},
        "node": {"id": f"sidecar~{name}", "cluster": name},
        "static_resources": {
            "listeners": [
                *(_listener("outbound", OUTBOUND, version, http, {}, ()) for version in (4, 6)),
                *(
                    _listener(
                        "inbound", INBOUND, version, http, _server_tls(certificates, name), _inbound(tproxy), judging
                    )
                    for version in (4, 6)
                ),
            ],
            "clusters": [
                _cluster("outbound", _client_tls(certificates, name)),
                *(_cluster(f"inbound{version}", _bound(version, tproxy)) for version in (4, 6)),
            ],
        },
    }


def start(
    pod: Pod,
    directory: Path,
    certificates: Path,
    *,
    http: bool = True,
    tproxy: bool = False,
    uid: int = PROXY_UID,
    judging: Sequence[dict[str, Any]] = (),
) -> subprocess.Popen[Any]:
    """Start it in the pod, and wait until it listens."""
    file = directory / f"{pod.name}-envoy.json"
    file.write_text(json.dumps(config(certificates, pod.name, http=http, tproxy=tproxy, judging=judging)))
    file.chmod(0o644)
    binary = directory / "envoy"  # where another user may read it
    if not binary.exists():
        shutil.copy(find_envoy(), binary)
        binary.chmod(0o755)
    user = "0" if tproxy else str(uid)  # transparent sockets are root's: Istio runs it so, too
    command = ["setpriv", "--reuid", user, "--regid", str(PROXY_UID), "--clear-groups"]
    command += [str(binary), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with (pod.logs / f"{pod.name}-sidecar.log").open("wb") as log:
        process = pod.spawn(command, stdout=log, stderr=log)
    pod.wait_listening([OUTBOUND, INBOUND], process)
    return process


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _inbound(tproxy: bool) -> tuple[dict[str, Any], ...]:
    return (_ORIGINAL_SOURCE,) if tproxy else ()


def _listener(
    name: str,
    port: int,
    version: int,
    http: bool,
    tls: dict[str, Any],
    more: tuple[dict[str, Any], ...],
    judging: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    cluster = name if name == "outbound" else f"inbound{version}"
    made = {
        "name": f"{name}{version}",
        "address": _address("0.0.0.0" if version == 4 else "::", port),
        "listener_filters": [_ORIGINAL_DESTINATION, *more],
        "filter_chains": [{"filters": [_manager(name, cluster, judging) if http else _relay(name, cluster)], **tls}],
        "traffic_direction": name.upper(),
    }
    return made | ({"transparent": True} if more else {})


def _manager(name: str, cluster: str, judging: Sequence[dict[str, Any]]) -> dict[str, Any]:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}]
    router = {"@type": f"{_TYPES}.filters.http.router.v3.Router"}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": routes}]},
            "http_filters": [*judging, {"name": "envoy.filters.http.router", "typed_config": router}],
        },
    }


def _relay(name: str, cluster: str) -> dict[str, Any]:
    kind = f"{_TYPES}.filters.network.tcp_proxy.v3.TcpProxy"
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {"@type": kind, "stat_prefix": name, "cluster": cluster, "idle_timeout": "0s"},
    }


def _cluster(name: str, more: dict[str, Any]) -> dict[str, Any]:
    made = {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s"}
    return {**made, **more}


def _bound(version: int, tproxy: bool) -> dict[str, Any]:
    if tproxy:
        return {}
    source = {"address": "127.0.0.6" if version == 4 else "::6", "port_value": 0}
    return {"upstream_bind_config": {"source_address": source}}


def _common(certificates: Path, name: str) -> dict[str, Any]:
    return {
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(certificates / f"{name}.pem")},
                "private_key": {"filename": str(certificates / f"{name}.key")},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(certificates / "ca.pem")}},
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
    }


def _server_tls(certificates: Path, name: str) -> dict[str, Any]:
    context = {"common_tls_context": _common(certificates, name), "require_client_certificate": True}
    return {"transport_socket": _tls("DownstreamTlsContext", context)}


def _client_tls(certificates: Path, name: str) -> dict[str, Any]:
    return {"transport_socket": _tls("UpstreamTlsContext", {"common_tls_context": _common(certificates, name)})}


def _tls(kind: str, context: dict[str, Any]) -> dict[str, Any]:
    typed = {"@type": f"{_TYPES}.transport_sockets.tls.v3.{kind}", **context}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}
