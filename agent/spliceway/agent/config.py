"""The agent's configuration: camelCase YAML, every field typed, an unknown field is an error.

Every field and the reason for its default is in docs/configuration.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from spliceway.agent.configsections import (
    AdminConfig,
    CgroupsConfig,
    CniConfig,
    DatapathConfig,
    DebugConfig,
    EnvoyConfig,
    FlowsConfig,
    IdentityConfig,
    KillSwitchConfig,
    MetricsConfig,
    NodeConfig,
    PoliciesConfig,
    PortRange,
    ProxyConfig,
    ProxyKind,
    Section,
    SourceConfig,
    SpliceConfig,
    StatusConfig,
    XdsConfig,
)
from spliceway.agent.configtext import field_and_reason, read_mapping
from spliceway.agent.errors import ConfigError
from spliceway.agent.istioconfig import IstioConfig, check_istio
from spliceway.bpf.gate import declared_rows
from spliceway.bpf.steering import RECEIVING, SENDING
from spliceway.bpf.types import DatapathSettings, SpliceClasses
from spliceway.policy.budget import Limits
from spliceway.policy.engine import Options
from spliceway.policy.labelfilter import LabelFilter
from spliceway.proxy.model import Limits as ProxyLimits
from spliceway.xds.resources.extra import Extra, Reserved, load_extra
from spliceway.xds.resources.reading import FieldError

#: A configuration file has a few dozen lines; more than this is the wrong file.
MAX_CONFIG_BYTES = 256 << 10
#: Environment variable with the node's name: one configuration serves all nodes, and only the API server knows a pod's.
NODE_NAME = "SPLICEWAY_NODE_NAME"

_LABEL_PATTERN = re.compile(r"(?:[a-z0-9*][-a-z0-9.*]{0,252}/)?[A-Za-z0-9*][-A-Za-z0-9_.*]{0,62}")
_ANNOTATION = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Config(Section, frozen=True):
    """The whole file."""

    source: SourceConfig
    cgroups: CgroupsConfig = CgroupsConfig()
    node: NodeConfig = NodeConfig()
    state_dir: Path = Path("/var/lib/spliceway")
    bpffs: Path = Path("/sys/fs/bpf")
    admin: AdminConfig = AdminConfig()
    proxy: ProxyConfig = ProxyConfig()
    envoy: EnvoyConfig = EnvoyConfig()
    splice: SpliceConfig = SpliceConfig()
    datapath: DatapathConfig = DatapathConfig()
    metrics: MetricsConfig = MetricsConfig()
    xds: XdsConfig = XdsConfig()
    debug: DebugConfig = DebugConfig()
    flows: FlowsConfig = FlowsConfig()
    identity: IdentityConfig = IdentityConfig()
    cni: CniConfig = CniConfig()
    istio: IstioConfig = IstioConfig()
    enforcement: Literal["enforce", "audit"] = "enforce"
    kill_switch: KillSwitchConfig = KillSwitchConfig()
    policies: PoliciesConfig = PoliciesConfig()
    status: StatusConfig = StatusConfig()

    @property
    def node_name(self) -> str:
        """The configured name, what the environment says, or the host's (lower case, as Kubernetes does)."""
        return self.node.name or os.environ.get(NODE_NAME) or socket.gethostname().lower()

    @property
    def pods_cgroup(self) -> Path:
        """Whose sockets are pods'; of a configuration that `podcgroup.located` has gone through."""
        if self.cgroups.pods is None:
            raise AssertionError("nobody has looked for the pods' cgroup")
        return self.cgroups.pods

    def datapath_settings(self) -> DatapathSettings:
        """What the datapath needs of it. Nothing is spliced yet: `splicing` decides what is safe."""
        ports = self.proxy.listener_ports
        return DatapathSettings(
            bpffs=self.bpffs,
            state_dir=self.state_dir,
            pods_cgroup=self.pods_cgroup,
            proxy_cgroup=self.cgroups.proxy,
            listener_ports=(ports.first, ports.last),
            splice=SpliceClasses(clients=False, servers=False, wanted=self.splice.mode != "off"),
            unspliced_ports=frozenset(self.splice.exclude_ports),
            audit=self.enforcement == "audit",
            sidecars=self.istio.enabled,
            **(msgspec.structs.asdict(self.datapath) | {"program_cache": self._program_cache}),
        )

    @property
    def _program_cache(self) -> Path | None:
        configured = self.datapath.program_cache
        if configured is None:
            return self.state_dir / "programs"
        return Path(configured) if configured else None

    def envoy_extra(self, file: str = "") -> Extra:
        """The user's own Envoy resources, as `build_snapshot` takes them.

        Raises:
            ConfigError: one can't be served; of a configuration that was read with `parse_config` all can.
        """
        ports = self.proxy.listener_ports
        reserved = Reserved(ports.first, ports.last, (str(self.admin.socket), f"{self.state_dir}/"))
        try:
            return load_extra(self.envoy.extra_listeners, self.envoy.extra_clusters, reserved)
        except FieldError as error:
            raise ConfigError(file, error.field, error.reason) from error

    def engine_options(self, limits: Mapping[str, int]) -> Options:
        """What the compiler needs of it; `limits`: the room of the kernel's maps, by the names of `Limits`."""
        return Options(
            node=self.node_name,
            audit=self.enforcement == "audit",
            labels=LabelFilter(self.identity.labels.include, self.identity.labels.exclude),
            limits=Limits(**limits),
        )


def parse_config(text: str, file: str) -> Config:
    """Check and read a configuration. Raises ConfigError with file, field path and reason."""
    raw = read_mapping(text, file)
    try:
        config = msgspec.convert(raw, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(file, *field_and_reason(error, Config)) from error
    _check_kind(raw, config, file)
    _check(config, file)
    return config


def load_config(path: Path) -> Config:
    """Read a configuration file. Raises ConfigError, also when it can't be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), "", f"can't be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(str(path), "", f"is larger than {MAX_CONFIG_BYTES >> 10} KiB")
    try:
        return parse_config(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", f"is not UTF-8 (byte {error.start})") from error


def _decode(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    if kind is PortRange:
        return PortRange.parse(value)
    if kind is Path:
        path = Path(value)
        if not path.is_absolute():
            raise ValueError(f"{value!r} is not an absolute path")
        return path
    raise NotImplementedError(f"no decoder for {kind}")


#: Fields that count for one kind of proxy only.
_OF_KIND: dict[ProxyKind, tuple[str, ...]] = {
    "envoy": ("proxy.binary", "proxy.apiType", "envoy.extraListeners", "envoy.extraClusters"),
    "embedded": tuple(
        f"proxy.limits.{name}"
        for name in ProxyLimits.__struct_encode_fields__
        if name not in ("connections", "connectionAge")  # Envoy has these two
    ),
}


def _check_kind(raw: dict[str, Any], config: Config, file: str) -> None:
    """Refuse what the chosen proxy would not look at."""
    for kind, fields in _OF_KIND.items():
        for where in fields if kind != config.proxy.kind else ():
            if _is_there(raw, where):
                raise ConfigError(file, where, f"is for proxy.kind {kind} only, and that is {config.proxy.kind}")
    # Envoys of others may come over TCP, whatever the node's own proxy is.
    if config.proxy.kind != "envoy" and not config.xds.listen and _is_there(raw, "xds.unsafeEnvoy"):
        raise ConfigError(file, "xds.unsafeEnvoy", "is for proxy.kind envoy, or for xds.listen")


def _is_there(raw: Any, where: str) -> bool:
    """Whether a field is written in the file, and not null."""
    for part in where.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw is not None


def _check(config: Config, file: str) -> None:
    """Refuse what types can't: relations between fields."""
    datapath = config.datapath
    _check_source(config.source, file)
    if not _NAME.fullmatch(config.node_name):
        raise ConfigError(file, "node.name", f"{config.node_name!r} is not a node name")
    if datapath.mark & ~datapath.mark_mask:
        raise ConfigError(
            file, "datapath.mark", f"{datapath.mark:#x} has bits outside markMask {datapath.mark_mask:#x}"
        )
    if datapath.proxy_mark & ~datapath.mark_mask:
        reason = f"{datapath.proxy_mark:#x} has bits outside markMask {datapath.mark_mask:#x}"
        raise ConfigError(file, "datapath.proxyMark", reason)
    if datapath.proxy_mark == datapath.mark:
        raise ConfigError(
            file, "datapath.proxyMark", "is the same as mark: the proxy's own packets would be steered to it"
        )
    if datapath.route_table in (253, 254, 255):
        raise ConfigError(file, "datapath.routeTable", f"{datapath.route_table} is a table of the kernel's own")
    size = datapath.event_buffer_bytes
    if size & (size - 1):
        raise ConfigError(file, "datapath.eventBufferBytes", f"{size} is not a power of two")
    if datapath.program_cache and not Path(datapath.program_cache).is_absolute():
        reason = f"{datapath.program_cache!r} is not an absolute path"
        raise ConfigError(file, "datapath.programCache", reason)
    if datapath.devices != "auto":
        _check_devices(datapath.devices, file)
    for name in ("include", "exclude"):
        for index, pattern in enumerate(getattr(config.identity.labels, name)):
            if not _LABEL_PATTERN.fullmatch(pattern):
                reason = f"{pattern!r} is not a key of a label, with * for anything"
                raise ConfigError(file, f"identity.labels.{name}[{index}]", reason)
    if config.cgroups.pods == config.cgroups.proxy:
        raise ConfigError(file, "cgroups.proxy", "is the same as cgroups.pods")
    config.envoy_extra(file)
    if not config.policies.kinds:
        raise ConfigError(file, "policies.kinds", "names no kind: say which, or leave it out for all")
    if config.kill_switch.annotation and not _ANNOTATION.fullmatch(config.kill_switch.annotation):
        raise ConfigError(
            file, "killSwitch.annotation", f"{config.kill_switch.annotation!r} is not an annotation's key"
        )
    for field in ("listen", "health"):
        if text := getattr(config.metrics, field):
            listen_address(text, file, f"metrics.{field}")
    _check_cni(config.cni, file)
    check_istio(config.istio, file, writes=config.status.write)
    _check_told(config, file)
    _check_splice(config.splice, file)
    _check_xds(config.xds, file)
    if config.debug.listen:
        debug_address(config.debug.listen, file)


def _check_source(source: SourceConfig, file: str) -> None:
    if (source.directory is None) is (source.kubernetes is None):
        raise ConfigError(file, "source", "needs exactly one of directory, kubernetes")
    if source.kubernetes and source.kubernetes.context and source.kubernetes.kubeconfig is None:
        raise ConfigError(file, "source.kubernetes.context", "is one of a kubeconfig's, and there is none")


def _check_devices(devices: tuple[str, ...], file: str) -> None:
    if not devices:
        raise ConfigError(
            file, "datapath.devices", "names no interface: say auto, or by which packets come from outside"
        )
    for index, device in enumerate(devices):
        where = f"datapath.devices[{index}]"
        if not re.fullmatch(r"[^\s/:\[\]]{1,15}", device):
            raise ConfigError(file, where, f"{device!r} is not an interface's name (* and ? stand for others)")
        if device == "lo":
            raise ConfigError(file, where, "by lo nothing comes from outside")
        if device == "auto":
            raise ConfigError(file, where, "auto stands alone (devices: auto), and is no name in a list")
        if device in (SENDING, RECEIVING):
            raise ConfigError(file, where, f"{device} is Spliceway's own: by it nothing comes from outside")


def _check_cni(config: CniConfig, file: str) -> None:
    if len(str(config.socket).encode()) > 107:
        raise ConfigError(file, "cni.socket", "is longer than the 107 bytes that a Unix socket's path may have")
    for index, namespace in enumerate(config.exempt_namespaces):
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigError(file, f"cni.exemptNamespaces[{index}]", f"{namespace!r} is not a namespace's name")


def _check_told(config: Config, file: str) -> None:
    """What the agent tells the API server."""
    status, taint = config.status, config.node.not_ready_taint
    key, _, effect = taint.rpartition(":")
    for where, wanted in (("status.write", status.write), ("node.notReadyTaint", bool(taint))):
        if wanted and config.source.kubernetes is None:
            raise ConfigError(file, where, "is for source.kubernetes only: a directory has nobody to be told")
    if taint and (effect not in ("NoSchedule", "NoExecute", "PreferNoSchedule") or not _ANNOTATION.fullmatch(key)):
        raise ConfigError(file, "node.notReadyTaint", f"{taint!r} is not key:NoSchedule, key:NoExecute or the like")
    if not _NAMESPACE.fullmatch(status.namespace):
        raise ConfigError(file, "status.namespace", f"{status.namespace!r} is not a namespace's name")
    if not _NAME.fullmatch(status.lease):
        raise ConfigError(file, "status.lease", f"{status.lease!r} is not an object's name")


def _check_splice(config: SpliceConfig, file: str) -> None:
    for index, fix in enumerate(config.kernel_fixes):
        try:
            declared_rows((fix,))
        except ValueError as error:
            raise ConfigError(file, f"splice.kernelFixes[{index}]", str(error)) from error
    limits = config.limits
    for name, value, least, called in (
        ("endpointKib", limits.endpoint_kib, limits.connection_kib, "connectionKib"),
        ("nodeKib", limits.node_kib, limits.endpoint_kib or limits.connection_kib, "endpointKib or connectionKib"),
    ):
        if value and value < least:
            raise ConfigError(file, f"splice.limits.{name}", f"{value} is less than {called} ({least})")


def _check_xds(config: XdsConfig, file: str) -> None:
    if not config.listen:
        for name in ("tls", "insecure"):
            if getattr(config, name):
                raise ConfigError(file, f"xds.{name}", "is for xds.listen, which is empty")
        return
    listen_address(config.listen, file, "xds.listen")
    if config.tls is None and not config.insecure:
        reason = "needs xds.tls: whoever reaches it could read every policy. `insecure: true` allows plain TCP"
        raise ConfigError(file, "xds.listen", reason)
    if config.tls is not None and config.insecure:
        raise ConfigError(file, "xds.insecure", "contradicts xds.tls")


def debug_address(text: str, file: str) -> tuple[str, int]:
    """Split `debug.listen`, which is of the loopback device; `localhost` is 127.0.0.1. Raises ConfigError."""
    host, port = listen_address(text, file, "debug.listen")
    host = "127.0.0.1" if host == "localhost" else host
    if not _is_loopback(host):
        reason = f"{host} is not a loopback address (127.0.0.1, [::1]): whoever reaches it reads every policy"
        raise ConfigError(file, "debug.listen", reason)
    return host, port


def _is_loopback(host: str) -> bool:
    # Names are not looked up: what they mean can change.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen_address(text: str, file: str, where: str = "metrics.listen") -> tuple[str, int]:
    """Split «host:port» or «[v6]:port» of that field. Raises ConfigError."""
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\s]*)):(?P<port>\d{1,5})", text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ConfigError(file, where, f"{text!r} is not host:port")
    return match["v6"] or match["host"] or "0.0.0.0", int(match["port"])
