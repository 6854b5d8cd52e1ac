"""The configuration: what is read, and the exact words for what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.config import debug_address, load_config, parse_config
from spliceway.agent.configsections import (
    KillSwitchConfig,
    LabelsConfig,
    PoliciesConfig,
    PortRange,
    SpliceLimitsConfig,
    XdsConfig,
    XdsTlsConfig,
)
from spliceway.agent.errors import ConfigError
from spliceway.agent.preflight import envoy_settings, proxy_settings, resource_settings, xds_tcp
from spliceway.agent.splicelimits import node_limits
from spliceway.bpf.types import DatapathSettings, SpliceClasses, SpliceLimits
from spliceway.policy.parse_authorization_source import IstioNames
from spliceway.proxy.model import Limits
from spliceway.xds.server.listen import TcpSettings, TlsSettings

BASE = "cgroups: {pods: /cg/pods, proxy: /cg/proxy}\nsource: {directory: /etc/spliceway/policies}\n"


def test_defaults_are_the_datapaths() -> None:
    settings = parse_config(BASE, "agent.yaml").datapath_settings()
    assert settings == DatapathSettings(
        bpffs=Path("/sys/fs/bpf"),
        state_dir=Path("/var/lib/spliceway"),
        pods_cgroup=Path("/cg/pods"),
        proxy_cgroup=Path("/cg/proxy"),
        program_cache=Path("/var/lib/spliceway/programs"),
        splice=SpliceClasses(clients=False, servers=False),  # until it is decided
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [("stateDir: /state", Path("/state/programs")), ("datapath: {programCache: /other}", Path("/other")),
     ("datapath: {programCache: ''}", None)],
)  # fmt: skip
def test_where_compiled_programs_are_kept(written: str, meant: Path | None) -> None:
    assert parse_config(f"{BASE}{written}\n", "agent.yaml").datapath_settings().program_cache == meant


def test_every_field() -> None:
    config = parse_config(
        BASE
        + """
node: {name: node1}
stateDir: /state
bpffs: /bpf
admin: {socket: /state/agent.sock}
proxy: {kind: envoy, binary: /usr/bin/envoy, workers: 2, listenerPorts: 24000-24099, apiType: GRPC}
xds:
  listen: "[::1]:18000"
  tls: {certFile: /tls/agent.crt, keyFile: /tls/agent.key, clientCaFile: /tls/ca.crt, matchNode: false}
  unsafeEnvoy: warn
debug: {listen: "127.0.0.1:9878"}
splice:
  mode: off
  excludePorts: [9000, 443]
  kernelFixes: [CVE-2025-68227]
  limits: {connectionKib: 128, endpointKib: 1024, nodeKib: 2048}
  selfTestDir: /state/selftest
datapath:
  {mark: 0x2000, markMask: 0x3000, proxyMark: 0x3000, routeTable: 77, rulePriority: 5, maxConnections: 4096, tcx: off,
   devices: [eth*, bond0.12]}
metrics: {listen: "[::1]:9000"}
flows: {bufferSize: 10}
enforcement: audit
killSwitch: {file: /host/etc/spliceway/disabled, annotation: example.org/off}
policies: {kinds: [NetworkPolicy, CiliumNetworkPolicy], besideCilium: true}
istio: {trustDomain: mesh.example, rootNamespace: mesh-root}
identity: {labels: {include: [app, "*.example.org/*"], exclude: []}}
""",
        "agent.yaml",
    )
    assert config.node_name == "node1"
    assert config.enforcement == "audit"
    assert config.datapath_settings().audit
    assert config.kill_switch == KillSwitchConfig(
        file=Path("/host/etc/spliceway/disabled"), annotation="example.org/off"
    )
    assert config.policies == PoliciesConfig(kinds=("NetworkPolicy", "CiliumNetworkPolicy"), beside_cilium=True)
    assert config.istio.names == IstioNames("mesh.example", "mesh-root")
    assert config.datapath.tcx == "off"
    assert config.identity.labels == LabelsConfig(include=("app", "*.example.org/*"), exclude=())
    assert config.proxy.listener_ports == PortRange(24000, 24099)
    assert config.proxy.api_type == "GRPC"
    tls = XdsTlsConfig(
        cert_file=Path("/tls/agent.crt"),
        key_file=Path("/tls/agent.key"),
        client_ca_file=Path("/tls/ca.crt"),
        match_node=False,
    )
    assert config.xds == XdsConfig(listen="[::1]:18000", tls=tls, unsafe_envoy="warn")
    assert config.debug.listen == "127.0.0.1:9878"
    settings = config.datapath_settings()
    assert (settings.mark, settings.mark_mask, settings.proxy_mark) == (0x2000, 0x3000, 0x3000)
    assert (settings.devices, settings.listener_ports) == (("eth*", "bond0.12"), (24000, 24099))
    assert settings.splice == SpliceClasses(clients=False, servers=False, wanted=False)
    assert (settings.unspliced_ports, config.splice.self_test_dir) == ({9000, 443}, Path("/state/selftest"))
    assert config.splice.limits == SpliceLimitsConfig(connection_kib=128, endpoint_kib=1024, node_kib=2048)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo: 1", "foo: unknown field"),
        ("proxy: {foo: 1}", "proxy.foo: unknown field"),
        ("proxy: {listener_ports: 1-2}", "proxy.listener_ports: unknown field"),
        ("proxy: {listenerPorts: 5}", "proxy.listenerPorts: Expected str, got int"),
        ("proxy: {listenerPorts: 9-5}", "proxy.listenerPorts: 9-5 is not a range of ports (1 to 65535, first-last)"),
        (
            "proxy: {listenerPorts: 1-70000}",
            "proxy.listenerPorts: 1-70000 is not a range of ports (1 to 65535, first-last)",
        ),
        ("proxy: {listenerPorts: all}", "proxy.listenerPorts: 'all' is not a range of ports (write 23000-23999)"),
        ("proxy: {kind: nginx}", "proxy.kind: 'nginx' is none of embedded, envoy"),
        ("proxy: {workers: -1}", "proxy.workers: Expected int >= 0"),
        ("proxy: {limits: {connections: -1}}", "proxy.limits.connections: Expected int >= 0"),
        ("proxy: {limits: {drain: .nan}}", "proxy.limits.drain: Expected float >= 0.0"),
        ("proxy: {limits: {drain: .inf}}", "proxy.limits.drain: Expected float <= 31536000.0"),
        ("proxy: {limits: {drian: 1}}", "proxy.limits.drian: unknown field"),
        ("proxy: {maxHeadKib: 0}", "proxy.maxHeadKib: Expected int >= 1"),
        ("proxy: {maxHeaders: 100000}", "proxy.maxHeaders: Expected int <= 10000"),
        ("proxy: {headersTimeout: -1}", "proxy.headersTimeout: Expected float >= 0.0"),
        ("proxy: {binary: /e}", "proxy.binary: is for proxy.kind envoy only, and that is embedded"),
        ("proxy: {apiType: DELTA_GRPC}", "proxy.apiType: is for proxy.kind envoy only, and that is embedded"),
        ("envoy: {extraListeners: []}", "envoy.extraListeners: is for proxy.kind envoy only, and that is embedded"),
        ("envoy: {extraClusters: []}", "envoy.extraClusters: is for proxy.kind envoy only, and that is embedded"),
        ("xds: {unsafeEnvoy: warn}", "xds.unsafeEnvoy: is for proxy.kind envoy, or for xds.listen"),
        (
            "proxy: {kind: envoy, limits: {bodyIdle: 5}}",
            "proxy.limits.bodyIdle: is for proxy.kind embedded only, and that is envoy",
        ),
        ("proxy: {binary: envoy}", "proxy.binary: 'envoy' is not an absolute path"),
        ("stateDir: state", "stateDir: 'state' is not an absolute path"),
        ("stateDir: 5", "stateDir: Expected str, got int"),
        ("splice: {mode: on}", "splice.mode: 'on' is none of auto, force, off"),
        ("splice: {excludePorts: 80}", "splice.excludePorts: Expected array, got int"),
        ("splice: {excludePorts: [80, 0]}", "splice.excludePorts[1]: Expected int >= 1"),
        ("splice: {excludePorts: [65536]}", "splice.excludePorts[0]: Expected int <= 65535"),
        ("splice: {limits: {connectionKib: 63}}", "splice.limits.connectionKib: Expected int >= 64"),
        ("splice: {limits: {kib: 63}}", "splice.limits.kib: unknown field"),
        ("splice: {limits: {endpointKib: 4095}}", "splice.limits.endpointKib: 4095 is less than connectionKib (4096)"),
        (
            "splice: {limits: {endpointKib: 8192, nodeKib: 8191}}",
            "splice.limits.nodeKib: 8191 is less than endpointKib or connectionKib (8192)",
        ),
        ("splice: {kernelFixes: CVE-2025-68227}", "splice.kernelFixes: Expected array, got str"),
        ("datapath: {programCache: here}", "datapath.programCache: 'here' is not an absolute path"),
        ("splice: {selfTestDir: here}", "splice.selfTestDir: 'here' is not an absolute path"),
        ("splice: {mode: true}", "splice.mode: Expected str, got bool"),
        ("killSwitch: {file: disabled}", "killSwitch.file: 'disabled' is not an absolute path"),
        ("killSwitch: {annotation: a b}", "killSwitch.annotation: 'a b' is not an annotation's key"),
        ("istio: {trustDomain: A.b}", "istio.trustDomain: 'A.b' is not a trust domain's name"),
        ("istio: {rootNamespace: a.b}", "istio.rootNamespace: 'a.b' is not a namespace's name"),
        ("policies: {kinds: []}", "policies.kinds: names no kind: say which, or leave it out for all"),
        (
            "policies: {kinds: [NetworkPolicy, Ingress]}",
            "policies.kinds[1]: 'Ingress' is none of AdminNetworkPolicy, AuthorizationPolicy, "
            "BaselineAdminNetworkPolicy, CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, "
            "ClusterNetworkPolicy, NetworkPolicy",
        ),
        ("enforcement: off", "enforcement: 'off' is none of audit, enforce"),
        ("identity: {labels: {only: [a]}}", "identity.labels.only: unknown field"),
        ("identity: {labels: {include: app}}", "identity.labels.include: Expected array, got str"),
        (
            "identity: {labels: {exclude: [app, 'a b']}}",
            "identity.labels.exclude[1]: 'a b' is not a key of a label, with * for anything",
        ),
        ("datapath: {maxPairs: 0}", "datapath.maxPairs: Expected int >= 1"),
        ("datapath: {socketLb: true}", "datapath.socketLb: Expected str, got bool"),
        ("datapath: {socketLb: force}", "datapath.socketLb: 'force' is none of auto, off, on"),
        ("datapath: {maxBackends: 0}", "datapath.maxBackends: Expected int >= 1"),
        ("datapath: {devices: eth0}", "datapath.devices: 'eth0' is none of auto, a list"),
        (
            "datapath: {devices: [eth0, a/b]}",
            "datapath.devices[1]: 'a/b' is not an interface's name (* and ? stand for others)",
        ),
        (
            "datapath: {devices: []}",
            "datapath.devices: names no interface: say auto, or by which packets come from outside",
        ),
        (
            "datapath: {devices: [auto]}",
            "datapath.devices[0]: auto stands alone (devices: auto), and is no name in a list",
        ),
        (
            "datapath: {devices: [eth0, spliceway0]}",
            "datapath.devices[1]: spliceway0 is Spliceway's own: by it nothing comes from outside",
        ),
        (
            "datapath: {devices: ['eth[01]']}",
            "datapath.devices[0]: 'eth[01]' is not an interface's name (* and ? stand for others)",
        ),
        ("uplinks: [eth0]", "uplinks: unknown field; datapath.devices is meant?"),
        ("datapath: {uplinks: [eth0]}", "datapath.uplinks: unknown field; datapath.devices is meant?"),
        ("datapath: {maxAffinities: 16777217}", "datapath.maxAffinities: Expected int <= 16777216"),
        ("datapath: {maxConnections: 4294967296}", "datapath.maxConnections: Expected int <= 16777216"),
        ("datapath: {eventBufferBytes: 2147483648}", "datapath.eventBufferBytes: Expected int <= 1073741824"),
        ("datapath: {devices: [lo]}", "datapath.devices[0]: by lo nothing comes from outside"),
        ("node: {name: Node_1}", "node.name: 'Node_1' is not a node name"),
        ("datapath: {mark: 0}", "datapath.mark: Expected int >= 1"),
        ("datapath: {mark: 0x8000}", "datapath.mark: 0x8000 has bits outside markMask 0x1002"),
        ("datapath: {proxyMark: 0x4000}", "datapath.proxyMark: 0x4000 has bits outside markMask 0x1002"),
        (
            "datapath: {proxyMark: 0x1000}",
            "datapath.proxyMark: is the same as mark: the proxy's own packets would be steered to it",
        ),
        ("datapath: {routeTable: 254}", "datapath.routeTable: 254 is a table of the kernel's own"),
        ("datapath: {eventBufferBytes: 5000}", "datapath.eventBufferBytes: 5000 is not a power of two"),
        ("metrics: {listen: nine}", "metrics.listen: 'nine' is not host:port"),
        ("metrics: {health: '1.2.3.4'}", "metrics.health: '1.2.3.4' is not host:port"),
        ("metrics: {listen: ':70000'}", "metrics.listen: ':70000' is not host:port"),
        (
            "xds: {listen: '0.0.0.0:18000'}",
            "xds.listen: needs xds.tls: whoever reaches it could read every policy. `insecure: true` allows plain TCP",
        ),
        ("xds: {listen: nine, insecure: true}", "xds.listen: 'nine' is not host:port"),
        ("xds: {insecure: true}", "xds.insecure: is for xds.listen, which is empty"),
        ("xds: {tls: {certFile: /a, keyFile: /b, clientCaFile: /c}}", "xds.tls: is for xds.listen, which is empty"),
        ("xds: {listen: ':1', tls: {certFile: /a, keyFile: /b}}", "xds.tls.clientCaFile: is required"),
        (
            "xds: {listen: ':1', insecure: true, tls: {certFile: /a, keyFile: /b, clientCaFile: /c}}",
            "xds.insecure: contradicts xds.tls",
        ),
        ("xds: {unsafeEnvoy: allow}", "xds.unsafeEnvoy: 'allow' is none of refuse, warn"),
        ("proxy: {apiType: REST}", "proxy.apiType: 'REST' is none of DELTA_GRPC, GRPC"),
        (
            "debug: {listen: '0.0.0.0:9878'}",
            "debug.listen: 0.0.0.0 is not a loopback address (127.0.0.1, [::1]): whoever reaches it reads every policy",
        ),
        (
            "debug: {listen: 'example.com:9878'}",
            "debug.listen: example.com is not a loopback address (127.0.0.1, [::1]): "
            "whoever reaches it reads every policy",
        ),
        ("flows: {bufferSize: 0}", "flows.bufferSize: Expected int >= 1"),
        ("cgroups: {pods: /a, proxy: /a}", "cgroups.proxy: is the same as cgroups.pods"),
        ("cgroups: {pods: auto}", "cgroups.pods: 'auto' is not an absolute path"),
        ("a: [", "broken YAML: .*"),
        ("flows: {}\nflows: {}", "broken YAML: line 1: duplicate key 'flows'"),
        ("a: 2024-13-45", "broken YAML: a date or a number that can't be, or nested too deeply"),
        (f"a: {'9' * 5000}", "broken YAML: a date or a number that can't be, or nested too deeply"),
        ("a: " + "[" * 5000, "broken YAML: a date or a number that can't be, or nested too deeply"),
    ],
)
def test_refused(text: str, message: str) -> None:
    base = BASE
    if text.startswith("cgroups"):
        base = "source: {directory: /d}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(base + text, "agent.yaml")
    pattern = "agent.yaml: " + (message if ".*" in message else re.escape(message))
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)


def test_a_line_that_is_broken_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(BASE + 'envoy: {extraClusters: [{private_key: "MIIEvQIB" AbC}]}', "agent.yaml")
    assert re.fullmatch(r"agent.yaml: broken YAML: line \d+: expected .*", str(caught.value))
    assert "MII" not in str(caught.value)
    assert "AbC" not in str(caught.value)


def test_required_and_not_a_mapping() -> None:
    with pytest.raises(ConfigError, match=r"agent.yaml: source: is required"):
        parse_config("cgroups: {pods: /p}", "agent.yaml")
    with pytest.raises(ConfigError, match=r"agent.yaml: is not a mapping of fields"):
        parse_config("", "agent.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: can't be read: No such file"):
        load_config(tmp_path / "nothing.yaml")
    big = tmp_path / "big.yaml"
    big.write_text("#" * (300 << 10))
    with pytest.raises(ConfigError, match=r"is larger than 256 KiB"):
        load_config(big)
    big.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8"):
        load_config(big)


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()

    def fields(section: Any, prefix: str = "") -> list[str]:
        found: list[str] = []
        for name, encoded in zip(section.__struct_fields__, section.__struct_encode_fields__, strict=True):
            inner = getattr(section, name)
            is_section = hasattr(inner, "__struct_fields__")
            found += fields(inner, f"{prefix}{encoded}.") if is_section else [f"{prefix}{encoded}"]
        return found

    for name in fields(parse_config(BASE, "x")):
        assert f"`{name}`" in text, f"docs/configuration.md says nothing of `{name}`"


def test_localhost_is_loopback_for_debug() -> None:
    config = parse_config(BASE + "debug: {listen: 'localhost:9878'}", "agent.yaml")
    assert debug_address(config.debug.listen, "agent") == ("127.0.0.1", 9878)
    assert debug_address("[::1]:9878", "agent") == ("::1", 9878)


def test_the_server_gets_what_is_said_of_tcp() -> None:
    assert xds_tcp(parse_config(BASE, "agent.yaml")) is None
    plain = xds_tcp(parse_config(BASE + "xds: {listen: ':18000', insecure: true}", "agent.yaml"))
    assert plain == TcpSettings(host="0.0.0.0", port=18000, plaintext=True)
    files = "certFile: /tls/agent.crt, keyFile: /tls/agent.key, clientCaFile: /tls/ca.crt"
    found = xds_tcp(parse_config(f"{BASE}xds: {{listen: '[::1]:18000', tls: {{{files}}}}}", "agent.yaml"))
    tls = TlsSettings(
        certificate=Path("/tls/agent.crt"),
        key=Path("/tls/agent.key"),
        client_ca=Path("/tls/ca.crt"),
        match_node=True,
        called=("xds.tls.certFile", "xds.tls.keyFile", "xds.tls.clientCaFile"),
    )
    assert found == TcpSettings(host="::1", port=18000, tls=tls)


LIMITS = """
proxy:
  workers: 3
  headersTimeout: 5
  idleTimeout: 7.5
  maxHeadKib: 16
  maxHeaders: 50
  explainDenied: true
  limits: {connections: 10, connectionsPerClient: 2, connectionAge: 60, bodyIdle: 3, tunnelIdle: 4, drain: 1}
"""


def test_what_the_embedded_proxy_is_started_with() -> None:
    config = parse_config(BASE + "stateDir: /state\nnode: {name: n1}\n" + LIMITS, "agent.yaml")
    settings = proxy_settings(config)
    assert settings.limits == Limits(
        connections=10, connections_per_client=2, connection_age=60, body_idle=3, tunnel_idle=4, drain=1
    )
    assert (settings.node_id, settings.workers) == ("n1", 3)
    assert {path.parent for path in (settings.xds_socket, settings.admin_socket, settings.state_file)} == {
        Path("/state")
    }
    listeners = resource_settings(config)
    assert (listeners.headers_timeout, listeners.idle_timeout) == (5, 7.5)
    assert (listeners.max_head_kib, listeners.max_headers, listeners.explain_denied) == (16, 50, True)
    assert listeners.connection_age == 0  # it stands in the limits


def test_what_envoy_can_limit_is_in_its_bootstrap_and_listeners() -> None:
    text = BASE + "proxy: {kind: envoy, workers: 3, limits: {connections: 10, connectionAge: 60}}"
    config = parse_config(text, "agent.yaml")
    settings, bootstrap = envoy_settings(config)
    assert (settings.concurrency, bootstrap.max_connections) == (3, 10)
    assert resource_settings(config).connection_age == 60


def test_extra_resources_and_unsafe_clients_have_their_place() -> None:
    parse_config(BASE + "proxy: {kind: envoy}\nenvoy: {extraListeners: []}\nxds: {unsafeEnvoy: warn}", "agent.yaml")
    parse_config(BASE + "xds: {listen: ':1', insecure: true, unsafeEnvoy: warn}", "agent.yaml")


def test_fixes_that_the_kernel_gate_does_not_know_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(BASE + "splice: {kernelFixes: [c77b3b79a92e, CVE-1999-1]}", "agent.yaml")
    assert str(caught.value).startswith("agent.yaml: splice.kernelFixes[1]: 'CVE-1999-1' is no fix")
    assert "c77b3b79a92e (CVE-2025-68227)" in str(caught.value)


def test_limits_of_unread_bytes_come_from_the_nodes_memory(tmp_path: Path) -> None:
    tcp_mem = tmp_path / "tcp_mem"
    tcp_mem.write_text("100\t393216\t900\n")
    pressure, mib = 393216 * os.sysconf("SC_PAGE_SIZE"), 1 << 20
    assert node_limits(SpliceLimitsConfig(), tcp_mem) == SpliceLimits(4 * mib, pressure // 32, pressure // 4)
    asked = SpliceLimitsConfig(connection_kib=64, endpoint_kib=128, node_kib=256)
    assert node_limits(asked, tcp_mem) == SpliceLimits(64 << 10, 128 << 10, 256 << 10)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert node_limits(SpliceLimitsConfig(), tmp_path / "nothing").node == pytest.approx(memory / 64, rel=0.01)
    tcp_mem.write_text("1\t2\t3\n")  # a small machine: one connection still gets what it may have
    assert node_limits(SpliceLimitsConfig(), tcp_mem) == SpliceLimits(4 * mib, 4 * mib, 4 * mib)
