"""What must be so before anything is touched: told in the words of the configuration, with what to do."""

from __future__ import annotations

import os
from pathlib import Path

from spliceway.agent.config import Config, listen_address
from spliceway.agent.envoy import EnvoySettings
from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.errors import AgentError
from spliceway.agent.nodecheck.neighbours import cilium_at_work
from spliceway.agent.proxypod import place
from spliceway.agent.proxysupervisor import PROXY_STATE
from spliceway.proxy.model import ProxySettings
from spliceway.xds.resources.settings import BootstrapSettings, ResourceSettings
from spliceway.xds.server.listen import TcpSettings, TlsSettings

#: sockaddr_un has 108 bytes, one of them for the final NUL.
MAX_SOCKET_PATH = 107
#: How the proxy calls its cluster to the agent.
PROXY_CLUSTER = "spliceway"
#: capability(7), with their numbers. CAP_SYS_ADMIN includes CAP_BPF.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def check(config: Config) -> None:
    """Raise AgentError or EnvoyError for the first thing that can't work.

    Makes the proxy's cgroup when only that is missing.
    """
    _check_rights()
    _check_cilium(config)
    check_socket_paths(config)
    if config.proxy.kind == "envoy" and config.proxy.managed:
        find_envoy(config.proxy.binary)
    _check_cgroup("cgroups.pods", config.pods_cgroup)
    if not config.cgroups.proxy.exists() and _is_cgroup2(config.cgroups.proxy.parent):
        config.cgroups.proxy.mkdir(exist_ok=True)
    _check_cgroup("cgroups.proxy", config.cgroups.proxy)
    pods, proxy = config.pods_cgroup.resolve(), config.cgroups.proxy.resolve()
    if pods == proxy or pods in proxy.parents or proxy in pods.parents:
        raise AgentError(
            f"cgroups: {pods} and {proxy} must not contain one another: whose is a socket that is in both?"
        )


def check_socket_paths(config: Config) -> None:
    """Raise AgentError for the first socket whose path is too long."""
    sockets = (proxy_admin_socket(config), handover_socket(config))
    for field, path in (("admin.socket", config.admin.socket), *(("stateDir", each) for each in sockets)):
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise AgentError(f"{field}: {path} is longer than the {MAX_SOCKET_PATH} bytes of a Unix socket's path")


def _check_cilium(config: Config) -> None:
    """Two datapaths at one pod's device: one redirects past the other, and each drops what it does not know."""
    if config.policies.beside_cilium:
        return
    if why := cilium_at_work(config.bpffs):
        raise AgentError(
            f"Cilium enforces policy on this node: {why}. Take it out first, or leave the node to it; "
            "policies.besideCilium: true starts all the same"
        )


def resource_settings(config: Config) -> ResourceSettings:
    """Settings of the proxy's listeners."""
    proxy = config.proxy
    return ResourceSettings(
        upstream_mark=config.datapath.proxy_mark,
        headers_timeout=proxy.headers_timeout,
        idle_timeout=proxy.idle_timeout,
        max_head_kib=proxy.max_head_kib,
        max_headers=proxy.max_headers,
        explain_denied=proxy.explain_denied,
        # The embedded proxy has all limits in its own settings.
        connection_age=proxy.limits.connection_age if proxy.kind == "envoy" else 0.0,
    )


def envoy_settings(config: Config) -> tuple[EnvoySettings, BootstrapSettings]:
    """How Envoy is run, and its bootstrap."""
    return EnvoySettings(
        binary=config.proxy.binary,
        state_dir=config.state_dir,
        cgroup=config.cgroups.proxy,
        concurrency=config.proxy.workers,
    ), BootstrapSettings(
        node_id=config.node_name,
        cluster=PROXY_CLUSTER,
        xds_socket=xds_socket(config),
        admin_socket=proxy_admin_socket(config),
        max_connections=config.proxy.limits.connections,
        delta=config.proxy.api_type == "DELTA_GRPC",
    )


def proxy_settings(config: Config) -> ProxySettings:
    """What the embedded proxy is started with."""
    return ProxySettings(
        node_id=config.node_name,
        cluster=PROXY_CLUSTER,
        xds_socket=xds_socket(config),
        admin_socket=proxy_admin_socket(config),
        handover_socket=handover_socket(config),
        state_file=place.directory(config) / PROXY_STATE,
        workers=config.proxy.workers,
        limits=config.proxy.limits,
    )


def xds_tcp(config: Config) -> TcpSettings | None:
    """Where xDS listens beside its Unix socket."""
    xds = config.xds
    if not xds.listen:
        return None
    host, port = listen_address(xds.listen, "agent", "xds.listen")
    tls = None
    if xds.tls is not None:
        tls = TlsSettings(
            certificate=xds.tls.cert_file,
            key=xds.tls.key_file,
            client_ca=xds.tls.client_ca_file,
            match_node=xds.tls.match_node,
            called=("xds.tls.certFile", "xds.tls.keyFile", "xds.tls.clientCaFile"),
        )
    return TcpSettings(host=host, port=port, tls=tls, plaintext=xds.insecure)


def xds_socket(config: Config) -> Path:
    """Where the proxy finds the agent. It must stay the same over restarts of the agent."""
    return place.directory(config) / "xds.sock"


def proxy_admin_socket(config: Config) -> Path:
    """The proxy's own admin interface."""
    return place.directory(config) / place.ADMIN[config.proxy.kind]


def handover_socket(config: Config) -> Path:
    """Where a new embedded proxy takes over from the one that runs."""
    return place.directory(config) / place.HANDOVER


def _check_rights() -> None:
    needs = "the agent needs root with CAP_NET_ADMIN, CAP_SYS_ADMIN (to enter pods' namespaces) and CAP_BPF"
    if os.geteuid() != 0:
        raise AgentError(needs)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    effective = int(status["CapEff"], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise AgentError(f"{needs}; missing: {', '.join(missing)}")


def _check_cgroup(field: str, path: Path) -> None:
    if not path.is_dir():
        raise AgentError(f"{field}: {path} is not there (is cgroup2 mounted, and are pods in it?)")
    if not _is_cgroup2(path):
        raise AgentError(f"{field}: {path} is not a cgroup2 directory (mount -t cgroup2 none /sys/fs/cgroup)")
    # Only the root of the hierarchy has no `cgroup.type`.
    if not (path / "cgroup.type").exists():
        raise AgentError(f"{field}: {path} is the root cgroup: programs there would see every socket of the machine")


def _is_cgroup2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists() and (path / "cgroup.procs").exists()
