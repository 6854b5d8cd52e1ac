"""Thousands of clusters and routes on one real Envoy, over delta ADS. Envoy binds no ports and sees no traffic."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as manager_pb2

from spliceway.agent.envoyprocess import find_envoy
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE, TYPES
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.packing import serialized, typed
from spliceway.xds.resources.settings import BootstrapSettings
from spliceway.xds.server.server import XdsServer
from support import xdsmade

_NODE = "bulk"


async def bulk(count: int, edits: int) -> dict[str, Any]:
    """So many clusters, and so many route configurations with a listener each that asks for them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        server = XdsServer(directory / "xds.sock", check=lambda snapshot: None)
        await server.start()
        envoy = await asyncio.to_thread(_start, directory)
        try:
            return await _measure(server, envoy, count, edits)
        finally:
            envoy.terminate()
            await asyncio.to_thread(envoy.wait)
            await server.stop()


async def _measure(server: XdsServer, envoy: subprocess.Popen[bytes], count: int, edits: int) -> dict[str, Any]:
    bodies: xdsmade.Bodies = {
        CLUSTER: {f"service-{n}": _cluster(n) for n in range(count)},
        LISTENER: {xdsmade.name_of("LDS", n): _listener(n) for n in range(count)},
        ROUTE: {xdsmade.name_of("RDS", n): xdsmade.body("RDS", n) for n in range(count)},
    }
    idle = _usage(envoy.pid)
    snapshot = Snapshot.of("1", bodies)
    begin, cpu = time.monotonic(), time.process_time()
    server.set_snapshot(_NODE, snapshot)
    await server.wait_acked(_NODE, 600)
    took, cpu = time.monotonic() - begin, time.process_time() - cpu
    after = _usage(envoy.pid)
    times: dict[str, list[float]] = {"CDS": [], "RDS": []}
    for number in range(edits):
        for kind, found in times.items():
            url = CLUSTER if kind == "CDS" else ROUTE
            names = list(bodies[url])
            place = number * 37 % count
            bodies = {each: dict(held) for each, held in bodies.items()}
            fresh = _cluster(place, number + 1) if kind == "CDS" else xdsmade.body("RDS", place, number + 1)
            bodies[url][names[place]] = fresh
            begin = time.monotonic()
            snapshot = Snapshot.of(f"{kind}{number}", bodies, snapshot)
            server.set_snapshot(_NODE, snapshot)
            await server.wait_acked(_NODE, 60)
            found.append((time.monotonic() - begin) * 1000)
    status = server.status()[-1]
    return {
        "clusters": count,
        "routes": count,
        "protocol": status.protocol,
        "bytes": sum(len(body) for held in bodies.values() for body in held.values()),
        "all_acked_s": round(took, 2),
        "server_cpu_s": round(cpu, 2),
        "envoy_cpu_s": round(after[0] - idle[0], 2),
        "envoy_mib": round(after[1]),
        "edit_ms": {
            kind: {"p50": round(statistics.median(found), 1), "max": round(max(found), 1)}
            for kind, found in times.items()
        },
        "states": sorted({f"{TYPES[item.type_url].short} {item.state}" for item in status.types}),
    }


def _start(directory: Path) -> subprocess.Popen[bytes]:
    settings = BootstrapSettings(
        node_id=_NODE, xds_socket=directory / "xds.sock", admin_socket=directory / "admin.sock"
    )
    config: dict[str, Any] = bootstrap(settings)
    config["dynamic_resources"]["ads_config"]["api_type"] = "DELTA_GRPC"
    file = directory / "bootstrap.json"
    file.write_text(json.dumps(config))
    command = [str(find_envoy()), "--config-path", str(file), "--disable-hot-restart", "--concurrency", "1"]
    return subprocess.Popen(
        [*command, "--log-path", str(directory / "envoy.log")], start_new_session=True, stdin=subprocess.DEVNULL
    )


def _usage(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MiB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    rss = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return (int(fields[11]) + int(fields[12])) / 100, int(rss[1]) / 1024 if rss else 0.0


def _cluster(number: int, revision: int = 0) -> bytes:
    address = {"socket_address": {"address": f"10.{number >> 8}.{number & 255}.1", "port_value": 8080}}
    made = cluster_pb2.Cluster(
        name=f"service-{number}",
        alt_stat_name="bulk",
        connect_timeout={"seconds": 5, "nanos": revision},
        load_assignment={
            "cluster_name": f"service-{number}",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    )
    return serialized(made)


def _listener(number: int) -> bytes:
    name = xdsmade.name_of("LDS", number)
    manager = manager_pb2.HttpConnectionManager(
        stat_prefix="bulk",
        rds={"route_config_name": name, "config_source": {"ads": {}, "resource_api_version": "V3"}},
        http_filters=[typed("envoy.filters.http.router", router_pb2.Router())],
    )
    made = listener_pb2.Listener(
        name=name,
        stat_prefix="bulk",
        address={"socket_address": {"address": "127.0.0.1", "port_value": 1024 + number}},
        bind_to_port={"value": False},
        filter_chains=[{"filters": [typed("envoy.filters.network.http_connection_manager", manager)]}],
    )
    return serialized(made)
